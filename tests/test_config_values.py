from __future__ import annotations

from pathlib import Path

import pytest
from composing import VERBS, composed
from omegaconf import OmegaConf

from emodissect.app.config_values import ACCEPTED, check_values
from emodissect.core.errors import UserError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seed": "abc"}, "seed=abc: give a whole number from 0 to 4294967295."),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"seed": True}, "seed=True: give a whole number"),
        ({"tau": "abc"}, "tau=abc: give a number or a list of such."),
        ({"tau": None}, "tau=null: give a number"),
        ({"tau": []}, "tau=[]: give a number"),
        ({"tau": [0, float("nan")]}, "give a number"),
        ({"level": [0.05, 2]}, "give a number above 0 to 1"),
        ({"probe": {"limit": 0}}, "probe.limit=0: give a whole number from 1 or null."),
        (
            {"trainer": {"max_epochs": 0}},
            "trainer.max_epochs=0: give a whole number from 1 or -1 or null (dissect.py fit",
        ),
        ({"study": {"alpha": 1}}, "study.alpha=1: give a number above 0 below 1."),
        ({"reuse": "abc"}, "reuse=abc: give true or false."),
        ({"tags": "abc"}, "tags=abc: give a list"),
        ({"training": {"foo": 1}}, "training.foo is unknown. Known: ten_crop, channels_last"),
        ({"study": {"control": 3}}, "study.control is unknown. Did you mean 'controls'?"),
        ({"data": {"path": "???"}}, "data.path has no default: give data.path=…"),
        ({"data": {"names": "${upper:${data.path}}", "path": "???"}}, "data.path has no default: give data.path=…"),
        ({"quality": {"templates": "foo"}}, "quality.templates=foo: give entries by name"),
        ({"saliency": {"ids": "abc"}}, "saliency.ids=abc: give a whole number from 0 or a list of such or null."),
        ({"similarity": {"a": "abc"}}, "similarity.a=abc: give a number."),
        ({"quality": {"alphas": "abc"}}, "quality.alphas=abc: give a number above 0 to 1 or a list of such."),
        (
            {"published": "foo"},
            "published=foo: give entries by name, as in conf/experiment/published_edit.yaml or null.",
        ),
        ({"selection": {"of": "fdr"}}, "selection.of=fdr: give a class by _target_ and its keys."),
    ],
)
def test_a_value_that_is_none_is_told_with_what_may_be(given: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_values(OmegaConf.create(given))
    assert told in str(caught.value)


def test_values_that_may_be_pass() -> None:
    given = {
        "seed": 0,
        "tau": [-0.5, 0],
        "level": 0.05,
        "probe": {"limit": None},
        "trainer": {"max_epochs": -1},
        "tags": ["a"],
    }
    check_values(OmegaConf.create(given))


def test_the_verbs_have_every_key_and_their_defaults_pass(tmp_path: Path) -> None:
    configs = [composed(verb, run_dir=tmp_path) for verb in VERBS]
    configs.append(composed("train", "data=fer2013", run_dir=tmp_path))
    for similarity, selection in (("rank_reorder", "inverse"), ("cos_similarity_cubed", "random")):
        words = (f"similarity={similarity}", f"selection={selection}")
        configs.append(composed("edit", *words, run_dir=tmp_path))
    for cfg in configs:
        check_values(cfg)
    missing = object()
    unknown = [key for key in ACCEPTED if all(OmegaConf.select(c, key, default=missing) is missing for c in configs)]
    assert unknown == []

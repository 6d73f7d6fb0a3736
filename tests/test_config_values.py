from __future__ import annotations

from pathlib import Path

import pytest
from composing import VERBS, composed
from omegaconf import OmegaConf

from emodissect.app.config_values import ACCEPTED, check_values
from emodissect.core.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "abc"}, "seed=abc is not accepted; it must be an integer >= 0 and <= 4294967295."),
        ({"seed": 1.5}, "seed=1.5 is not accepted; it must be an integer"),
        ({"seed": True}, "seed=True is not accepted; it must be an integer"),
        ({"tau": "abc"}, "tau=abc is not accepted; it must be a number or a list of such values."),
        ({"tau": None}, "tau=null is not accepted; it must be a number"),
        ({"tau": []}, "tau=[] is not accepted; it must be a number"),
        ({"tau": [0, float("nan")]}, "it must be a number"),
        ({"factor": float("inf")}, "factor=inf is not accepted"),
        ({"level": [0.05, 2]}, "it must be a number > 0 and <= 1"),
        ({"probe": {"limit": 0}}, "probe.limit=0 is not accepted; it must be an integer >= 2 or null."),
        ({"probe": {"limit": 1}}, "probe.limit=1 is not accepted"),
        (
            {"trainer": {"max_epochs": 0}},
            "trainer.max_epochs=0 is not accepted; it must be an integer >= 1, -1 or null (dissect.py fit",
        ),
        ({"study": {"alpha": 1}}, "study.alpha=1 is not accepted; it must be a number > 0 and < 1."),
        ({"reuse": "abc"}, "reuse=abc is not accepted; it must be true or false."),
        ({"reuse": 1}, "reuse=1 is not accepted; it must be true or false."),
        ({"tags": "abc"}, "tags=abc is not accepted; it must be a list, e.g. [first,second]"),
        ({"ckpt_path": ["a"]}, "ckpt_path=['a'] is not accepted; it must be text or null."),
        ({"data": {"path": "???"}}, "data.path has no default: give data.path=…"),
        ({"data": {"names": "${upper:${data.path}}", "path": "???"}}, "data.path has no default: give data.path=…"),
        ({"quality": {"templates": "foo"}}, "quality.templates=foo is not accepted; it must be entries by name"),
        (
            {"saliency": {"ids": "abc"}},
            "saliency.ids=abc is not accepted; it must be an integer >= 0 or a list of such values or null.",
        ),
        ({"similarity": {"a": "abc"}}, "similarity.a=abc is not accepted; it must be a number."),
        ({"quality": {"alphas": "abc"}}, "it must be a number > 0 and <= 1 or a list of such values."),
        (
            {"published": "foo"},
            "published=foo is not accepted; it must be entries by name, as in conf/experiment/published_edit.yaml or",
        ),
        (
            {"selection": {"of": "fdr"}},
            "selection.of=fdr is not accepted; it must be a class by _target_ and its keys.",
        ),
        ({"selection": {"of": {"tau": 1}}}, "it must be a class by _target_ and its keys."),
        ({"study": {"baselines": "head"}}, "it must be a list, e.g. [first,second] or null."),
    ],
)
def test_a_value_that_is_none_is_reported_with_what_may_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_values(OmegaConf.create(given))
    assert message in str(caught.value)


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

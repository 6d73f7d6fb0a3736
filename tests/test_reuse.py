"""Cached results equal recomputed ones: every change that matters causes a recomputation."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from composing import small_checkpoint

from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.ferplus import VOTED_ON
from emodissect.demo.sketches import CLASS_NAMES
from emodissect.dissection.labels import Dissection

pytestmark = pytest.mark.slow  # every test runs whole verbs

Verb = Callable[..., tuple[Path, dict[str, Any]]]

SMALL_NET = '''
from torch import nn


class Net(nn.Sequential):
    """{said}"""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(48 * 48, 8), nn.{activation}(), nn.Linear(8, 7))

    def forward(self, images):
        return {factor} * super().forward(images)
'''


def entries(home: Path, kind: str) -> set[Path]:
    """The finished entries of a kind."""
    return {path.parent for path in (home / kind).glob("*/entry.json")}


def weights_of(folder: Path) -> str:
    """The hash of a run's final weights."""
    return str(json.loads((folder / "manifest.json").read_text())["inputs"]["weights"])


def test_the_same_key_gives_the_same_weights_whichever_verb_trains(verb: Verb, tmp_path: Path) -> None:
    found = [weights_of(verb(name, f"paths.cache_dir={tmp_path / name}")[0]) for name in ("train", "dissect")]
    assert found[0] == found[1]


def test_another_class_order_is_another_study(verb: Verb, home: Path) -> None:
    verb("train")
    given = f"ckpt_path={small_checkpoint(home)}"
    _, plain = verb("edit", given)
    turning = ",".join((*CLASS_NAMES[1:], CLASS_NAMES[0]))
    _, turned = verb("edit", given, f"model.class_order=[{turning}]")
    _, tested = verb("train", "fit=false", given, f"model.class_order=[{turning}]")
    assert turned["accuracy_before"] == pytest.approx(tested["test/acc"], abs=1e-6)
    assert turned["accuracy_before"] != plain["accuracy_before"]


def test_another_precision_makes_labels_anew(verb: Verb, home: Path) -> None:
    verb("dissect")
    before = entries(home, "labels")
    verb("dissect", f"ckpt_path={small_checkpoint(home)}", "trainer.precision=bf16-mixed")
    assert len(entries(home, "labels") - before) == 1


def test_cheap_alternatives_are_fitted_once_for_all_edits_of_a_layer(verb: Verb, tmp_path: Path) -> None:
    home = tmp_path / "cache"

    def ladder(*words: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        given = (f"paths.cache_dir={home}", "study.baselines=[head,learned_scale,ten_crop]")
        folder, summary = verb("edit", *given, *words)
        return pd.DataFrame(json.loads((folder / "study" / "ladder.json").read_text())), summary

    first, one = ladder("factor=1.5")
    made = entries(home, "alternatives")
    assert len(made) == len(first) == 6  # two fitted on val and train, ten crops (none of whole images), the ceiling
    second, other = ladder("factor=3")
    assert entries(home, "alternatives") == made
    assert other["accuracy_after"] != one["accuracy_after"]
    of_the_edit = ["p_against_edit", "seconds"]
    pd.testing.assert_frame_equal(first.drop(columns=of_the_edit), second.drop(columns=of_the_edit))
    anew, _ = ladder("factor=3", "reuse=false")
    pd.testing.assert_frame_equal(anew.drop(columns="seconds"), second.drop(columns="seconds"))
    made = entries(home, "alternatives")
    ladder("factor=3", f"ckpt_path={small_checkpoint(home)}", f"model.class_order=[{','.join(CLASS_NAMES[::-1])}]")
    assert len(entries(home, "alternatives") - made) == 6


def test_another_tau_or_level_reuses_the_labels(verb: Verb, home: Path) -> None:
    folder, _ = verb("dissect")
    before = entries(home, "labels")
    other, summary = verb("dissect", "tau=-10", "level=0.5")
    assert entries(home, "labels") == before
    assert summary["interpretable"] == summary["neurons"] - summary["dead"]
    assert Dissection.load(other).fingerprint() == Dissection.load(folder).fingerprint()


def test_a_list_of_tau_is_refused_where_there_is_no_grid(verb: Verb) -> None:
    with pytest.raises(UserError, match=r"tau=\[0, 1\] is a list.*-m tau=0,1"):
        verb("dissect", "tau=[0,1]")


def test_labels_rewritten_in_their_folder_are_studied_anew(verb: Verb) -> None:
    labels, _ = verb("dissect")
    given = ("edit", f"labels_dir={labels}", "tau=-10")
    _, first = verb(*given)
    neurons = Dissection.load(labels).neurons
    dimmed = neurons.assign(similarity=np.where(neurons.index % 2, neurons["similarity"], -100.0))
    dimmed.to_parquet(labels / "neurons.parquet", index=False)
    _, second = verb(*given)
    assert 0 < second["selected"] < first["selected"]


def test_other_votes_on_the_same_images_are_other_labels_and_another_training(
    verb: Verb, home: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    usage = np.repeat([0, 1, 2], [60, 20, 20])
    np.savez(
        tmp_path / "faces.npz",
        pixels=rng.integers(0, 256, (100, 48, 48), dtype=np.uint8),
        labels=np.arange(100) % 7,
        usage=usage,
    )
    votes = tmp_path / "fer2013new.csv"
    given = ["data=fer2013", f"data.path={tmp_path / 'faces.npz'}", f"data.ferplus={votes}"]
    labelled = [*given, "scorer=annotations", "scorer.source=votes", "concepts=fer7", "similarity=pearson"]
    found = []
    for _ in range(2):
        table = pd.DataFrame(rng.integers(0, 5, (100, 10)), columns=list(VOTED_ON))
        table["Usage"] = np.array(["Training", "PublicTest", "PrivateTest"])[usage]
        table.to_csv(votes, index=False)
        folder, _ = verb("dissect", *labelled, "data.eval_batch_size=16")
        found.append(Dissection.load(folder).neurons["similarity"].to_numpy())
        verb("train", *given, "soft_labels=true")
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert len(entries(home, "training")) >= 3  # one for the labels, one for each set of soft ones


def test_an_edit_of_ones_own_network_trains_it_anew(verb: Verb, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_net.py"
    words = ["model=custom", f"model.target={file}:Net"]
    seen = []
    for factor in (1.0, 0.5):
        file.write_text(SMALL_NET.format(said="Mine.", activation="ReLU", factor=factor))
        before = entries(home, "training")
        verb("train", *words)
        seen.append(len(entries(home, "training") - before))
    assert seen == [1, 1]
    before = entries(home, "training")
    verb("train", *words)
    assert entries(home, "training") == before


SIMILARITY = """
from emodissect.similarity import Pearson


class Mine(Pearson):
    def __call__(self, *given):
        return {factor} * super().__call__(*given)
"""


def test_a_changed_similarity_is_another_labelling(
    verb: Verb, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    highest, seen = [], []
    for factor in (1.0, 0.25):
        (tmp_path / "my_similarity.py").write_text(SIMILARITY.format(factor=factor))
        sys.modules.pop("my_similarity", None)
        importlib.invalidate_caches()
        before = entries(home, "labels")
        for _ in range(2):
            folder, _ = verb("dissect", "similarity=pearson", "similarity._target_=my_similarity.Mine")
        highest.append(Dissection.load(folder).neurons["similarity"].max())
        seen.append(len(entries(home, "labels") - before))
    assert seen == [1, 1]
    assert highest[1] == pytest.approx(highest[0] / 4)


def test_entries_of_another_form_count_as_absent(verb: Verb, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Intact entries of another version are recomputed for each kind, and the run has the same result as the first."""
    words = ("edit", "study.null_studies=2")
    _, first = verb(*words)
    kinds = ("activations", "predictions", "labels", "studies", "null-studies", "clip_images", "clip_texts", "sketches")
    for kind in (*kinds, "training"):
        for seal in list((home / kind).glob("*/entry.json")):
            key = json.loads(seal.read_text())["key"]
            Cache(home).entry(kind, key, lambda folder: (folder / "other.txt").write_text("x") and None, recompute=True)
    _, again = verb(*words)
    assert {kind for kind in (*kinds, "training") if f"/{kind}/" in caplog.text} == {*kinds, "training"}
    assert {name: again[name] for name in ("layer", "selected", "delta", "p_value")} == {
        name: first[name] for name in ("layer", "selected", "delta", "p_value")
    }


def test_where_the_data_lies_trains_nothing_anew(verb: Verb, home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "pixels": rng.integers(0, 256, (70, 48, 48), dtype=np.uint8),
        "labels": np.arange(70) % 7,
        "usage": np.repeat([0, 1, 2], [42, 14, 14]),
    }
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "fer2013.npz", **arrays)
    verb("train", "data=fer2013", "data.path=fer2013.npz", f"paths.data_dir={tmp_path / 'here'}")
    before = entries(home, "training")
    verb("train", "data=fer2013", "data.path=fer2013.npz", f"paths.data_dir={tmp_path / 'there'}")
    assert entries(home, "training") == before


def test_reuse_false_makes_what_depends_on_a_network_anew_and_nothing_else(verb: Verb, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def made() -> dict[str, int]:
        """The time at which the latest entry of each kind was completed."""
        kinds: dict[str, int] = {}
        for seal in cache.glob("*/*/entry.json"):
            kinds[seal.parts[-3]] = max(kinds.get(seal.parts[-3], 0), seal.stat().st_mtime_ns)
        return kinds

    words = ("edit", f"paths.cache_dir={cache}")
    verb(*words)
    first = made()
    verb(*words)
    assert made() == first
    verb(*words, "reuse=false")
    again = {kind for kind, when in made().items() if when > first[kind]}
    assert again == {"training", "activations", "predictions", "labels", "neuron-facts", "studies", "alternatives"}
    assert set(first) - again == {"sketches", "clip_images", "clip_texts"}


def test_activations_recorded_again_are_not_labelled_again(
    verb: Verb, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explanations need more of the activations; the labels stay the same, and their null is not drawn again."""
    folder, _ = verb("dissect", "layer=lin1")
    before = entries(home, "labels")

    def labelled_again(*_: object) -> None:
        raise AssertionError("labelled again")

    monkeypatch.setattr("emodissect.dissection.dissect.label_neurons", labelled_again)
    again, _ = verb("dissect", "layer=lin1", "explanation=best_concept")
    assert entries(home, "labels") == before
    shared = ["neuron", "concept", "similarity", "p_value"]
    pd.testing.assert_frame_equal(Dissection.load(again)["lin1"][shared], Dissection.load(folder)["lin1"][shared])

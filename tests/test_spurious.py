"""A bias planted in the drawn faces, and a study's results for the worst group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from test_study import TEST, VAL, flat, labels, network
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

from emodissect.app.stages.edit_study import grid_of
from emodissect.core.errors import UserError
from emodissect.data.images import Annotations, ImageSet
from emodissect.demo.sketches import Sketches
from emodissect.demo.sketches.appearance import Appearance
from emodissect.demo.sketches.faces import draw_faces, draw_faces_in_processes
from emodissect.demo.sketches.parameters import CLASS_NAMES
from emodissect.demo.sketches.presence import CONCEPTS
from emodissect.demo.sketches.spurious import MARKS, Spurious
from emodissect.editing import Scale
from emodissect.editing.selection import LabelledWith, Tau
from emodissect.models.inference import Inference
from emodissect.models.predictions import Predictions
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import Alternatives, RefittedHead
from emodissect.studies.metrics import METRICS, check_metric, groups_of, measured, metric_change

HAPPY = CLASS_NAMES.index("Happy")


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_seen_and_nothing_else_changes(mark: str) -> None:
    never, always = (draw_faces(range(40), spurious=Spurious(mark, "Happy", strength)) for strength in (0.0, 1.0))
    assert never.labels.tolist() == always.labels.tolist() == draw_faces(range(40)).labels.tolist()
    np.testing.assert_array_equal(never.presence[:, :-1], draw_faces(range(40)).presence)
    happy = always.labels == HAPPY
    assert happy.any()
    np.testing.assert_array_equal(always.presence[:, -1], happy)
    np.testing.assert_array_equal(never.presence[:, -1], ~happy)
    different = np.abs(always.images.astype(float) - never.images).mean((1, 2))
    assert (different > 2).all(), "one of the two bears the mark"


def test_the_mark_is_tied_in_training_alone(tmp_path: Path) -> None:
    faces = Sketches(cache_dir=tmp_path, train=600, val=600, test=400, spurious="caption", spurious_strength=0.9)
    for images, of_happy, of_others in zip(
        (faces.splits.train, faces.splits.val, faces.splits.test), (0.9, 0.5, 0.5), (0.1, 0.5, 0.5), strict=True
    ):
        given = images.annotations["presence"]
        assert given.names == (*CONCEPTS, "Caption Bar")
        borne = given.values[:, -1]
        happy = images.labels == HAPPY
        assert float(borne[happy].mean()) == pytest.approx(of_happy, abs=0.13)
        assert float(borne[~happy].mean()) == pytest.approx(of_others, abs=0.06)
        bar = (images.images[:, 0, -1] == 235).all(1)
        assert torch.equal(bar, borne.bool()), "the last row of pixels is the bar"
    plain = Sketches(cache_dir=tmp_path, train=600, val=600, test=400)
    assert plain.splits.train.annotations["presence"].names == CONCEPTS
    spread = draw_faces_in_processes(range(8), 0, processes=2, spurious=faces.spurious)
    np.testing.assert_array_equal(spread.images, draw_faces(range(8), spurious=faces.spurious).images)


def test_glasses_are_drawn_or_surely_absent() -> None:
    glasses = Spurious("glasses")
    assert glasses.dressed(Appearance(glasses=1), False).glasses == 0
    assert glasses.dressed(Appearance(), True).glasses == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"spurious": "glases"}, r"data.spurious=glases is not a mark.*Did you mean 'glasses'"),
        ({"spurious": "glasses", "spurious_class": "happy"}, r"spurious_class=happy is not a class.*'Happy'"),
        ({"spurious": "glasses", "spurious_strength": 95}, r"spurious_strength=95 must be a number from 0 to 1"),
    ],
)
def test_mistakes_are_reported(arguments: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Sketches(cache_dir=tmp_path, **arguments)  # type: ignore[arg-type]


def marked(images: ImageSet) -> ImageSet:
    """An image set with a concept that half of the images have."""
    present = (images.ids % 2).float()[:, None]
    return replace(images, annotations={"presence": Annotations(("Glasses",), present)})


def test_groups_are_class_and_presence() -> None:
    images = marked(VAL)
    groups = groups_of(images, "Glasses")
    order = torch.argsort(images.ids)
    assert torch.equal(groups, 2 * images.labels[order] + images.ids[order] % 2)
    with pytest.raises(UserError, match=r"study.groups=Glases is not an annotation.*Did you mean 'Glasses'"):
        groups_of(images, "Glases")
    check_metric("worst_group", "Glasses")
    with pytest.raises(UserError, match="needs groups"):
        check_metric("worst_group")
    with pytest.raises(UserError, match=r"study.metric=worst is not known"):
        check_metric("worst")


def test_every_metric_against_others() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, groups = torch.arange(90) % 3, torch.arange(90) % 6
    logits = torch.randn(90, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3)
    predicted = logits.argmax(1)
    recall = multiclass_recall(predicted, labels, 3, average="none").double()
    of_group = [float((predicted == labels)[groups == group].double().mean()) for group in range(6)]
    expected = {
        "accuracy": float((predicted == labels).double().mean()),
        "macro_f1": float(multiclass_f1_score(predicted, labels, 3)),
        "balanced_accuracy": float(recall.mean()),
        "worst_recall": float(recall.min()),
        "worst_group": min(of_group),
    }
    for name, value in expected.items():
        assert measured(name, predicted, labels, 3, groups) == pytest.approx(value, abs=1e-6), name
    before = Predictions(torch.arange(90), labels, logits)
    after = Predictions(torch.arange(90), labels, torch.nn.functional.one_hot(labels, 3).float())
    for name in METRICS:
        change = metric_change(name, before, after, groups, draws=200)
        assert change.delta == change.after - change.before > 0, name
        assert change.low <= change.delta <= change.high, name
        assert change.p_value < 0.05, name
        same = metric_change(name, before, before, groups, draws=50)
        assert (same.delta, same.low, same.high, same.p_value) == (0, 0, 0, 1), name


def test_the_test_of_a_metric_holds_its_level() -> None:
    """For two networks that differ only by chance, the p-value is below .1 in about a tenth of the trials."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(300) % 3
    found = []
    for seed in range(150):
        shared = torch.randn(300, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3)
        pair = [shared + 0.5 * torch.randn(300, 3, generator=generator) for _ in range(2)]
        before, after = (Predictions(torch.arange(300), labels, logits) for logits in pair)
        found.append(metric_change("worst_recall", before, after, draws=60, seed=seed).p_value)
    assert 0.03 < np.mean(np.array(found) < 0.1) < 0.18


@pytest.fixture(scope="module")
def found() -> EditStudy:
    return run_study(
        *(Inference(flat, network()), ["lin"], labels(), [Tau(0.0)], [Scale(factor=f) for f in (1.5, 3.0)]),
        *(marked(VAL), marked(TEST)),
        metric="worst_group",
        groups="Glasses",
        controls=40,
        alternatives=Alternatives([RefittedHead()]),
    )


def test_a_study_of_the_worst_group(found: EditStudy, tmp_path: Path) -> None:
    of = found.of_metric
    assert of is not None
    assert of["metric"] == "worst_group"
    assert of["before"] == pytest.approx(found.group_table["accuracy_before"].min())
    assert of["after"] == pytest.approx(found.group_table["accuracy_after"].min())
    assert found.group_table["images"].sum() == len(TEST)
    assert len(found.group_table) == 6
    assert found.claims_metric
    random = found.controls[found.controls["control"] == "random"]
    assert of["p_random"] == (1 + (random["metric_test"] >= of["delta"] - 1e-9).sum()) / 41
    head = found.ladder.set_index("name").loc["head"]
    assert f"the best cheap alternative, refitting the head, gives {100 * head['metric_delta']:+.2f}." in found.verdict
    assert f"Accuracy of the worst group: {100 * of['before']:.1f} % before" in found.verdict
    found.save(tmp_path)
    again = EditStudy.load(tmp_path)
    assert again.row() == found.row()
    pd.testing.assert_frame_equal(again.group_table, found.group_table)


def test_the_choice_is_by_the_metric() -> None:
    for metric in METRICS:
        study = run_study(
            *(Inference(flat, network()), ["lin"], labels(), [Tau(-0.95), Tau(0.0), Tau(1.05)]),
            *([Scale(factor=f) for f in (1.1, 1.5)], marked(VAL), marked(TEST)),
            metric=metric,
            groups="Glasses",
            controls=3,
        )
        assert study.metric == metric
        shown = "worst_group" if metric == "accuracy" else metric
        assert study.of_metric is not None
        assert study.of_metric["metric"] == shown


def test_the_experiment_names_the_mark_among_the_words(tmp_path: Path) -> None:
    cfg = composed(
        "edit", "experiment=remove_spurious", "data.train=50", "data.val=50", "data.test=50", run_dir=tmp_path
    )
    cfg.paths.cache_dir = str(tmp_path)
    faces = instantiate(cfg.data)
    assert "Glasses" in faces.splits.val.annotations["presence"].names
    concepts = instantiate(cfg.concepts)
    assert "Glasses" in concepts.names
    assert len(concepts.names) == 26
    assert grid_of(cfg, "selection") == [LabelledWith(("Glasses",))]

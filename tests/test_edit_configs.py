"""Every entry of conf/selection and conf/edit satisfies the same properties on one network."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from composing import CONF, composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from emodissect.app.stages.edit_study import grid_of
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.editing import Ablate, Edit, Operation, Rule, Scale, Shift, edited
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.selection import Fdr, Inverse, LabelledWith, Selection, Tau, fitted, needs_images, similarities
from emodissect.models.inference import Inference
from emodissect.report.figures import grid_heatmap
from emodissect.studies import EditStudy, run_study
from emodissect.studies.cells import Cell, axes_of, grid, map_axes, settings_in

NEEDS = {
    "concept": ["selection.concepts=[Smile]"],
    "learned": ["edit.strengths=[0.001]"],
    "effect": ["selection.draws=40"],
    "error": ["selection.share=0.5"],
    "from_checkpoint": ["edit.path={tmp}/scales.csv"],
}
NEURONS = 9


def entries(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, NEURONS, 3),
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            lin=nn.Linear(4 * NEURONS, NEURONS),
            act=nn.Tanh(),
            out=nn.Linear(NEURONS, 3),
        )
    ).eval()


def faces(seed: int = 0, count: int = 60) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 3, torch.arange(count) + 1000 * seed)


def labels(layer: str) -> pd.DataFrame:
    """Neuron 0 is dead."""
    return pd.DataFrame(
        {
            "layer": layer,
            "neuron": range(NEURONS),
            "concept": [None] + ["Smile", "Frown"] * 4,
            "similarity": [np.nan, *np.linspace(-1, 2, NEURONS - 1)],
            "q_value": [np.nan, *np.linspace(0, 1, NEURONS - 1)],
            "accuracy": [np.nan, *np.linspace(0, 1, NEURONS - 1)],
            "dead": [True] + [False] * (NEURONS - 1),
        }
    )


def made(group: str, name: str, tmp_path: Path) -> object:
    np.savetxt(tmp_path / "scales.csv", np.linspace(0.5, 2, NEURONS))
    words = [word.format(tmp=tmp_path) for word in NEEDS.get(name, [])]
    cfg = composed("edit", f"{group}={name}", *words, run_dir=tmp_path)
    node = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))[group]
    return instantiate(node)


@pytest.mark.parametrize("layer", ["conv", "lin"])
@pytest.mark.parametrize("name", entries("edit"))
def test_every_edit(name: str, layer: str, tmp_path: Path) -> None:
    rule = made("edit", name, tmp_path)
    assert isinstance(rule, Rule)
    assert rule.name == name
    net, inference = network(), Inference(lambda pixels: pixels.float() / 255, network())
    logits = EditedLogits(inference, layer, faces(), batch_size=16)
    if rule.needs_images:
        with pytest.raises(UserError, match="fitted"):
            rule(torch.ones(NEURONS, dtype=torch.bool))
    rule = fitted(rule, logits)
    before = {key: value.numpy().tobytes() for key, value in net.state_dict().items()}
    similarity = similarities(labels(layer))
    selected = similarity > 0
    operation = rule(selected, similarity)

    # The fast path is what the edited weights give, and the edited weights come back to the last bit.
    with edited(net, Edit(layer, operation)), torch.no_grad():
        exact = net(faces().images.float() / 255)
    torch.testing.assert_close(logits.logits([operation])[0], exact, atol=1e-5, rtol=1e-4)
    assert {key: value.numpy().tobytes() for key, value in net.state_dict().items()} == before

    # Identity: no neuron is chosen, or every value is the neutral one.
    neutral = operation.permuted(torch.arange(NEURONS)).uniform(operation.neutral)
    assert neutral.is_identity
    assert neutral.size == 0
    assert not operation.is_identity
    assert operation.size > 0
    assert torch.equal(logits.logits([neutral])[0], logits.before.logits)
    with edited(net, Edit(layer, neutral)), torch.no_grad():
        torch.testing.assert_close(net(faces().images.float() / 255), logits.before.logits, atol=1e-6, rtol=1e-5)

    # Permuting the neurons permutes what is done to them.
    order = torch.randperm(NEURONS)
    if not rule.needs_images:  # what was learned of a neuron stays with it
        assert torch.equal(operation.permuted(order).values, rule(selected[order], similarity[order]).values)

    again = Operation.from_plain(operation.plain(), operation.values)
    assert again.kind == operation.kind
    assert type(again) is type(operation)


@pytest.mark.parametrize("name", entries("selection"))
def test_every_selection(name: str, tmp_path: Path) -> None:
    selection = made("selection", name, tmp_path)
    assert isinstance(selection, Selection)
    assert selection.name == name
    found = labels("lin")
    before = found.copy()
    inference = Inference(lambda pixels: pixels.float() / 255, network())
    if needs_images(selection):
        with pytest.raises(UserError, match="needs images"):
            selection(found, network().lin)
    selection = fitted(selection, EditedLogits(inference, "lin", faces()))
    selected = selection(found, network().lin)
    assert selected.dtype == torch.bool
    assert selected.shape == (NEURONS,)
    assert torch.equal(selected, selection(found, network().lin))
    pd.testing.assert_frame_equal(found, before)
    if name not in ("all", "inverse", "random", "weight_norm"):
        assert not selected[0], "a dead neuron has no label"


@pytest.mark.parametrize(
    ("selection", "rule"),
    [*((name, "scale") for name in entries("selection")), *(("tau", name) for name in entries("edit"))],
)
def test_a_study_of_every_entry_saves_and_loads(selection: str, rule: str, tmp_path: Path) -> None:
    study = run_study(
        *(Inference(lambda pixels: pixels.float() / 255, network()), ["lin"], labels("lin")),
        *([made("selection", selection, tmp_path)], [made("edit", rule, tmp_path)], faces(1), faces(2)),
        controls=3,
    )
    study.save(tmp_path / "study")
    again = EditStudy.load(tmp_path / "study")
    assert again.row() == study.row()
    pd.testing.assert_frame_equal(again.grid, study.grid)
    assert again.edit.operation.kind == study.edit.operation.kind
    assert torch.equal(again.edit.operation.values, study.edit.operation.values)


@pytest.mark.parametrize(
    ("group", "words", "expected"),
    [
        ("selection", ["tau=[0,0.5]"], [Tau(0), Tau(0.5)]),
        ("selection", ["selection.tau=[0,0.5]"], [Tau(0), Tau(0.5)]),
        ("selection", ["selection=fdr", "level=[0.05,0.1]", "tau=[1,2]"], [Fdr(0.05), Fdr(0.1)]),
        ("selection", ["selection=inverse", "selection.of.tau=[1,2]"], [Inverse(Tau(1)), Inverse(Tau(2))]),
        ("selection", ["selection=concept", "selection.concepts=[a,b]"], [LabelledWith(("a", "b"))]),
        (
            *("selection", ["selection=concept", "selection.concepts=[[a,b],[c]]"]),
            [LabelledWith(("a", "b")), LabelledWith(("c",))],
        ),
        ("edit", ["edit.factor=[1.5,2]"], [Scale(1.5), Scale(2)]),
        ("edit", ["factor=[1.5,1.5]"], [Scale(1.5)]),
        (
            *("edit", ["factor=[1.5,2]", "edit.parameters=[weight,outgoing]"]),
            [Scale(f, p) for f in (1.5, 2) for p in ("weight", "outgoing")],
        ),
        ("edit", ["edit=shift", "edit.amount=[-1,1]"], [Shift(-1), Shift(1)]),
        ("edit", ["edit=ablate", "factor=[1.5,2]"], [Ablate()]),
    ],
)
def test_every_list_is_an_axis(group: str, words: list[str], expected: list[object], tmp_path: Path) -> None:
    assert grid_of(composed("edit", *words, run_dir=tmp_path), group) == expected


def test_the_axes_of_a_grid_are_those_its_cells_differ_in() -> None:
    selections, rules = [Tau(0.0), Tau(1.0)], [Shift(-0.1), Shift(0.1), Shift(0.2)]
    study = run_study(
        *(Inference(lambda pixels: pixels.float() / 255, network()), ["lin"], labels("lin"), selections, rules),
        *(faces(1), faces(2)),
        controls=3,
    )
    assert settings_in(study.grid) == axes_of(study.grid) == ["tau", "amount"]
    figure = grid_heatmap(study.grid)
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("τ", "amount")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["−0.1", "0.1", "0.2"]
    mixed = [Ablate("weight"), Ablate("outgoing")]
    cells = grid(network(), ["lin"], labels("lin"), selections[:1], mixed)
    frame = pd.DataFrame([cell.settings for cell in cells])
    assert map_axes(frame) == ("tau", "parameters")
    assert Cell("lin", Fdr(0.1), Level(), torch.ones(1), cells[0].operation).settings == {
        "selection.level": 0.1,
        "edit.level": 3.0,
    }


@dataclass(frozen=True)
class Level(Ablate):
    """Has a setting of the same name as a selection."""

    parameters: None = None  # type: ignore[assignment]
    level: float = 3.0

    def __post_init__(self) -> None: ...

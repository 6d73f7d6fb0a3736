"""From labels to a chosen edit and what chance gives in its place: the part that a null study repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from emodissect.edited_logits import EditedLogits
from emodissect.editing import Rule
from emodissect.selection import Selection, exchanged, similarities
from emodissect.statistics import exceedance_p
from emodissect.study.cells import Cell, Judged, choose, grid, judge, judge_cells, labels_of, shuffled


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a network: which edits are tried, on which images, and how they are judged.

    Attributes:
        val, test: by layer, the network's logits under edits; the choice is made on `val`.
        random_draws: random neurons of the same number.
        shuffled_draws: whole studies with shuffled labels.
    """

    layers: Sequence[str]
    val: Mapping[str, EditedLogits]
    test: Mapping[str, EditedLogits]
    network: nn.Module
    selections: Sequence[Selection]
    rules: Sequence[Rule]
    metric: str
    random_draws: int
    shuffled_draws: int
    seed: int

    def cells(self, neurons: pd.DataFrame) -> list[Cell]:
        """The grid over all layers."""
        return grid(self.network, self.layers, neurons, self.selections, self.rules)


@dataclass(frozen=True, eq=False)
class Decision:
    """The cells, how they did where the choice was made, the choice, and its controls."""

    cells: list[Cell]
    judged: Judged
    chosen: int
    controls: pd.DataFrame
    delta_test: float

    def p(self, control: str) -> float:
        """How often a control gives as large a delta on test; NaN where it was not drawn."""
        drawn = self.controls[self.controls["control"] == control]
        return float("nan") if drawn.empty else exceedance_p(self.delta_test, drawn["delta_test"])


def decide(question: Question, neurons: pd.DataFrame, every_control: bool = True) -> Decision:
    """Judge the grid, choose, and evaluate what chance gives.

    Args:
        every_control: False leaves out `all` and `inverse`, which no claim rests on.
    """
    cells = question.cells(neurons)
    judged = judge_cells(cells, question.val)
    chosen = choose(cells, judged, question.metric)
    cell = cells[chosen]
    generator = np.random.default_rng([question.seed, 1])
    labels = labels_of(neurons, cell.layer)
    similarity = similarities(labels)
    names, scales = ["chosen"], [cell.scale]
    # The chosen scales on living neurons at random: for rules of two values, random neurons of the same number.
    for _ in range(question.random_draws):
        names.append("random")
        scales.append(cell.scale[exchanged(labels, generator)])
    if every_control:
        names += ["all", "inverse"]
        scales += [cell.rule(torch.ones_like(cell.selected), similarity), cell.rule(~cell.selected, similarity)]
    on_test = judge(question.test[cell.layer], scales, cell.rule.parameters).delta
    frame = pd.DataFrame({"control": names, "delta_test": on_test})[1:]
    if cell.uses_labels and question.shuffled_draws:
        frame = pd.concat([frame, _shuffled_studies(question, neurons)], ignore_index=True)
    frame.insert(1, "draw", frame.groupby("control").cumcount())
    return Decision(cells, judged, chosen, frame.reset_index(drop=True), float(on_test[0]))


def _shuffled_studies(question: Question, neurons: pd.DataFrame) -> pd.DataFrame:
    """The same study with labels that say nothing: every draw judges the grid on validation and chooses its own."""
    generator = np.random.default_rng([question.seed, 2])
    layers = {layer: labels_of(neurons, layer) for layer in question.layers}
    draws = [
        question.cells(pd.concat([shuffled(labels, generator) for labels in layers.values()]))
        for _ in range(question.shuffled_draws)
    ]
    picks = [cells[0] for cells in draws] if len(draws[0]) == 1 else _choices(question, draws)
    return pd.DataFrame({"control": "shuffled", "delta_test": judge_cells(picks, question.test).delta})


def _choices(question: Question, draws: Sequence[list[Cell]]) -> list[Cell]:
    """The best cell of each grid on validation."""
    judged = judge_cells([cell for cells in draws for cell in cells], question.val)
    size = len(draws[0])
    picks = []
    for draw, cells in enumerate(draws):
        place = slice(draw * size, (draw + 1) * size)
        part = Judged(
            *(judged.predicted[place], judged.nll[place], judged.labels),
            *(judged.unedited, judged.unedited_nll, judged.classes),
        )
        picks.append(cells[choose(cells, part, question.metric)])
    return picks

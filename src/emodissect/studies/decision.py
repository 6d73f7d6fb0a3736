"""Chooses an edit from a grid and evaluates its controls: the part of a study that null studies repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from emodissect.core.statistics import exceedance_p
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.rules import Rule
from emodissect.editing.selection import Selection, exchanged, fitted, needs_images, similarities
from emodissect.studies.cells import Cell, CellResults, choose, evaluate_cells, grid, labels_of, shuffled
from emodissect.studies.metrics import groups_of


@dataclass(frozen=True, eq=False)
class Question:
    """The setup of a study: the edits to try, the images to evaluate them on, the metric and the controls.

    Attributes:
        val, test: the network's logits under edits, by layer; the choice is made on `val`.
        random_draws: number of draws of as many random neurons.
        shuffled_draws: number of whole studies with shuffled labels.
        groups: an annotated concept; its presence x class defines the groups of `worst_group`.
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
    groups: str | None = None

    @property
    def shown_metric(self) -> str:
        """The metric reported besides accuracy: the study's metric, or `worst_group` where groups are given."""
        return "worst_group" if self.metric == "accuracy" and self.groups is not None else self.metric

    def groups_in(self, logits: Mapping[str, EditedLogits]) -> Int64[Tensor, " image"] | None:
        """The group of each image of `val` or `test`; None without groups."""
        return None if self.groups is None else groups_of(logits[self.layers[0]].images, self.groups)

    def cells(self, neurons: pd.DataFrame) -> list[Cell]:
        """The grid over all layers."""
        return [cell for layer in self.layers for cell in grid(self.network, [layer], neurons, *self._ready[layer])]

    @cached_property
    def _ready(self) -> dict[str, tuple[list[Selection], list[Rule]]]:
        """The selections and rules of each layer, fitted once to the images that the choice is made on."""
        return {
            layer: (
                [fitted(selection, self._images_of(selection, layer)) for selection in self.selections],
                [fitted(rule, self._images_of(rule, layer)) for rule in self.rules],
            )
            for layer in self.layers
        }

    def _images_of(self, choice: object, layer: str) -> EditedLogits | None:
        return self.val[layer] if needs_images(choice) else None


@dataclass(frozen=True, eq=False)
class Decision:
    """The cells, their results on the selection images, the index of the chosen cell, and its controls on test."""

    cells: list[Cell]
    results: CellResults
    chosen: int
    controls: pd.DataFrame
    delta_test: float
    metric_test: float

    def p(self, control: str, of: str = "delta_test") -> float:
        """p-value of a control: how often it gives as large a delta on test; NaN where it was not drawn.

        Args:
            of: `delta_test`, the change in accuracy, or `metric_test`, the change in the metric.
        """
        drawn = self.controls[self.controls["control"] == control]
        return float("nan") if drawn.empty else exceedance_p(getattr(self, of), drawn[of])


def decide(question: Question, neurons: pd.DataFrame, every_control: bool = True) -> Decision:
    """Evaluate the grid, choose a cell, and evaluate its controls.

    Args:
        every_control: False leaves out `all` and `inverse`, which no claim depends on.
    """
    cells = question.cells(neurons)
    results = evaluate_cells(cells, question.val)
    chosen = choose(cells, results, question.metric, question.groups_in(question.val))
    cell = cells[chosen]
    labels = labels_of(neurons, cell.layer)
    generator = np.random.default_rng([question.seed, 1])
    random_draws = question.random_draws if cell.operation.of_neurons else 0
    # The chosen operation, permuted among living neurons: for rules with two values, the same number of random neurons.
    drawn = [("random", cell.operation.permuted(exchanged(labels, generator))) for _ in range(random_draws)]
    if every_control and cell.operation.of_neurons:
        similarity = similarities(labels)
        drawn += [
            ("all", cell.rule(torch.ones_like(cell.selected), similarity)),
            ("inverse", cell.rule(~cell.selected, similarity)),
        ]
    controls = [(name, replace(cell, operation=operation)) for name, operation in drawn]
    if cell.uses_labels and cell.operation.of_neurons and question.shuffled_draws:
        controls += [("shuffled", pick) for pick in _shuffled_studies(question, neurons, alone=len(cells) == 1)]
    found = evaluate_cells([cell, *(control for _, control in controls)], question.test)
    on_test, of_metric = found.delta, found.metric_delta(question.shown_metric, question.groups_in(question.test))
    names = [name for name, _ in controls]
    frame = pd.DataFrame({"control": names, "delta_test": on_test[1:], "metric_test": of_metric[1:]})
    frame.insert(1, "draw", frame.groupby("control").cumcount())
    return Decision(cells, results, chosen, frame, float(on_test[0]), float(of_metric[0]))


def optimism(question: Question, decision: Decision, neurons: pd.DataFrame, draws: int) -> float:
    """The "gain" that choosing on test would show for random edits: how optimistic such a choice is.

    Each draw permutes the neurons of every cell of the grid and takes the largest delta on test; returns the mean over
    draws.

    Args:
        draws: number of draws, each with as many random edits as the grid has cells. A grid of one cell uses the
            random controls instead.
    """
    if len(decision.cells) == 1:
        drawn = decision.controls.loc[decision.controls["control"] == "random", "delta_test"]
        return float(drawn.mean()) if len(drawn) else float("nan")
    if not draws or not all(cell.operation.of_neurons for cell in decision.cells):
        return float("nan")
    generator = np.random.default_rng([question.seed, 5])
    layers = {layer: labels_of(neurons, layer) for layer in question.layers}
    cells = [
        replace(cell, operation=cell.operation.permuted(exchanged(layers[cell.layer], generator)))
        for _ in range(draws)
        for cell in decision.cells
    ]
    deltas = evaluate_cells(cells, question.test).delta.reshape(draws, -1)
    return float(deltas.max(1).mean())


def _shuffled_studies(question: Question, neurons: pd.DataFrame, alone: bool) -> list[Cell]:
    """The cell that the same study chooses with shuffled labels, per draw; each draw evaluates the grid on validation.

    A cell ``alone`` in its grid leaves nothing to choose, and shuffled labels turn it into random neurons: drawn from
    the random stream of the random controls, they are the same edits, which are then evaluated only once.
    """
    generator = np.random.default_rng([question.seed, 1 if alone else 2])
    layers = {layer: labels_of(neurons, layer) for layer in question.layers}
    draws = [
        question.cells(pd.concat([shuffled(labels, generator) for labels in layers.values()]))
        for _ in range(question.shuffled_draws)
    ]
    return [cells[0] for cells in draws] if alone else _choices(question, draws)


def _choices(question: Question, draws: Sequence[list[Cell]]) -> list[Cell]:
    """The best cell of each grid on validation."""
    results = evaluate_cells([cell for cells in draws for cell in cells], question.val)
    size, groups = len(draws[0]), question.groups_in(question.val)
    picks = []
    for draw, cells in enumerate(draws):
        place = slice(draw * size, (draw + 1) * size)
        part = CellResults(
            *(results.predicted[place], results.nll[place], results.labels),
            *(results.unedited, results.unedited_nll, results.classes),
        )
        picks.append(cells[choose(cells, part, question.metric, groups)])
    return picks

"""The cells of a study's grid, and each cell's effect on the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emodissect.core.errors import UserError, nearest
from emodissect.core.statistics import delta_interval, holm, mcnemar
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import Operation, distinct
from emodissect.editing.rules import Rule
from emodissect.editing.selection import Selection, exchanged, similarities
from emodissect.models.predictions import confusion_matrix
from emodissect.studies.metrics import measured

COORDINATES = ("layer", "selection", "rule")
"""Columns of a grid that every cell has in addition to its settings."""

RESULTS = (
    *("selected", "accuracy_before", "accuracy_after", "delta", "delta_low", "delta_high", "gained", "lost"),
    *("p_value", "p_holm", "nll_before", "nll_after", "chosen", "jobs"),
    *("edit_id", "identity"),
)
"""Columns of a grid that are results."""

_CELLS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid: the selected neurons of a layer and the operation applied to them."""

    layer: str
    selection: Selection
    rule: Rule
    selected: Bool[Tensor, " neuron"]
    operation: Operation

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the selection and the rule by name: the cell's coordinates in the grid.

        A name that both have is written `selection.<name>` and `edit.<name>`.
        """
        of_selection, of_rule = settings_of(self.selection), settings_of(self.rule)
        both = of_selection.keys() & of_rule.keys()
        return {(f"selection.{name}" if name in both else name): value for name, value in of_selection.items()} | {
            (f"edit.{name}" if name in both else name): value for name, value in of_rule.items()
        }

    @property
    def uses_labels(self) -> bool:
        return self.selection.uses_labels or self.rule.uses_labels


@dataclass(frozen=True, eq=False)
class CellResults:
    """Predictions of several edits on one set of images.

    Attributes:
        predicted: predicted class per cell and image.
        nll: mean negative log-likelihood of each cell.
        labels: the images' true classes.
        unedited: predicted classes of the unedited network.
        unedited_nll: mean negative log-likelihood of the unedited network.
    """

    predicted: Int64[Tensor, "cell image"]
    nll: Float[Tensor, " cell"]
    labels: Int64[Tensor, " image"]
    unedited: Int64[Tensor, " image"]
    unedited_nll: float
    classes: int

    @property
    def gained(self) -> np.ndarray:
        """Number of newly correct images per cell."""
        return ((self.predicted == self.labels) & (self.unedited != self.labels)).sum(1).numpy()

    @property
    def lost(self) -> np.ndarray:
        """Number of newly wrong images per cell."""
        return ((self.predicted != self.labels) & (self.unedited == self.labels)).sum(1).numpy()

    @property
    def delta(self) -> np.ndarray:
        """Change in accuracy per cell."""
        return (self.gained - self.lost) / len(self.labels)

    def confusion(self) -> Int64[Tensor, "cell true predicted"]:
        """Confusion matrix of each cell, in numbers of images."""
        return confusion_matrix(self.predicted, self.labels, self.classes)

    def metric(self, name: str, groups: Int64[Tensor, " image"] | None = None) -> np.ndarray:
        """A score per cell by which cells are ranked; higher is better. For accuracy it is gained - lost."""
        if name == "nll":
            return -self.nll.numpy()
        if name == "accuracy":
            return self.gained - self.lost  # integers, so that ties are exact
        return np.array([measured(name, cell, self.labels, self.classes, groups) for cell in self.predicted])

    def metric_delta(self, name: str, groups: Int64[Tensor, " image"] | None = None) -> np.ndarray:
        """Change in a metric per cell; positive is better."""
        if name == "accuracy":
            return self.delta
        if name == "nll":
            return self.unedited_nll - self.nll.numpy()
        return self.metric(name, groups) - measured(name, self.unedited, self.labels, self.classes, groups)


def grid(
    network: nn.Module,
    layers: Sequence[str],
    neurons: pd.DataFrame,
    selections: Sequence[Selection],
    rules: Sequence[Rule],
) -> list[Cell]:
    """All cells, ordered by layer, then selection, then rule.

    Raises:
        UserError: an empty grid, a layer that the labels or the network do not have, a label without a neuron.
    """
    if not layers or not selections or not rules:
        raise UserError("An edit study needs at least one layer, one selection and one rule.")
    cells = []
    for layer in layers:
        labels = labels_of(neurons, layer)
        module = network.get_submodule(layer)
        for selection in selections:
            selected = selection(labels, module)
            cells += [Cell(layer, selection, rule, selected, rule(selected, similarities(labels))) for rule in rules]
    return cells


def settings_of(given: object) -> dict[str, Any]:
    """Scalar, string and list fields of a dataclass by name, including those of dataclasses nested in it."""
    found: dict[str, Any] = {}
    for field in fields(given) if is_dataclass(given) else ():
        value = getattr(given, field.name)
        if isinstance(value, bool | int | float | str):
            found[field.name] = value
        elif isinstance(value, tuple | list):
            found[field.name] = value[0] if len(value) == 1 else ", ".join(map(str, value))
        else:
            found |= settings_of(value)
    return found


def settings_in(grid: pd.DataFrame) -> list[str]:
    """The columns of a grid that are coordinates of its cells, e.g. tau, factor and parameters."""
    return [str(name) for name in grid.columns if name not in (*COORDINATES, *RESULTS)]


def axes_of(grid: pd.DataFrame) -> list[str]:
    """The settings that vary in a grid: those of the selection, then those of the edit."""
    return [name for name in settings_in(grid) if len(grid[name].dropna().unique()) > 1]


def map_axes(grid: pd.DataFrame) -> tuple[str | None, str | None]:
    """The settings for the rows and columns of a heat map of the grid: varied settings first, then numeric ones.

    None where there are too few settings.
    """
    varied = axes_of(grid)
    known = [name for name in settings_in(grid) if grid[name].notna().any()]
    shown = [name for name in known if name in varied or pd.api.types.is_numeric_dtype(grid[name])]
    if len(varied) > 1:
        return varied[0], varied[-1]
    if len(shown) < 2:
        return None, shown[0] if shown else None
    return (varied[0] if varied and varied[0] != shown[-1] else shown[0]), shown[-1]


def labels_of(neurons: pd.DataFrame, layer: str) -> pd.DataFrame:
    """The rows of one layer, sorted by neuron. Raises UserError where there are none."""
    labels = neurons[neurons["layer"] == layer].sort_values("neuron", ignore_index=True)
    if labels.empty:
        known = neurons["layer"].unique().tolist()
        raise UserError(f"There are no neuron labels for layer '{layer}'. {nearest(layer, known)} Dissect it first.")
    return labels


def shuffled(labels: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """One layer's labels shuffled among its living neurons; the columns of a label move together."""
    moved = labels.iloc[exchanged(labels, generator).numpy()].reset_index(drop=True)
    moved["neuron"] = labels["neuron"].to_numpy()
    return moved


def evaluate_operations(logits: EditedLogits, operations: Sequence[Operation]) -> CellResults:
    """Evaluate several edits of one layer; equal edits are evaluated once."""
    different, places = distinct(operations)
    predicted = torch.empty(len(different), len(logits.before.labels), dtype=torch.int64)
    nll = torch.empty(len(different), dtype=torch.float64)
    for kind in dict.fromkeys(operation.kind for operation in different):
        alike = torch.tensor([place for place, operation in enumerate(different) if operation.kind == kind])
        for some in alike.split(_CELLS_AT_ONCE):
            found = logits.logits([different[place] for place in some.tolist()])
            predicted[some] = found.argmax(2)
            for place, cell in zip(some.tolist(), found, strict=True):
                nll[place] = float(cross_entropy(cell.double(), logits.before.labels))
    before = logits.before
    return CellResults(
        predicted[places],
        nll[places],
        before.labels,
        before.predicted,
        float(cross_entropy(before.logits.double(), before.labels)),
        before.logits.shape[1],
    )


def evaluate_cells(cells: Sequence[Cell], logits: Mapping[str, EditedLogits]) -> CellResults:
    """Evaluate every cell of a grid over all layers, on the same images for each layer."""
    parts: dict[str, CellResults] = {}
    for layer in dict.fromkeys(cell.layer for cell in cells):
        chosen = [cell for cell in cells if cell.layer == layer]
        parts[layer] = evaluate_operations(logits[layer], [c.operation for c in chosen])
    some = next(iter(parts.values()))
    order = torch.tensor([i for layer in parts for i, cell in enumerate(cells) if cell.layer == layer]).argsort()
    return CellResults(
        torch.cat([part.predicted for part in parts.values()])[order],
        torch.cat([part.nll for part in parts.values()])[order],
        *(some.labels, some.unedited, some.unedited_nll, some.classes),
    )


def choose(
    cells: Sequence[Cell], results: CellResults, metric: str, groups: Int64[Tensor, " image"] | None = None
) -> int:
    """Index of the cell with the best metric; ties go to the smallest change, then to the first cell.

    A cell with non-finite logits never wins: its NLL is not finite either, and its predicted classes are arbitrary.

    Raises:
        UserError: every edit overflows.
    """
    finite = results.nll.isfinite().numpy()
    if not finite.any():
        largest = max(float(cell.operation.values.abs().max()) for cell in cells)
        raise UserError(
            f"Every edit produces logits that are not finite; the largest value in the edits is {largest:.3g}. Use "
            "smaller values, e.g. factor=1.5."
        )
    values = np.nan_to_num(results.metric(metric, groups).astype(np.float64), nan=-np.inf)
    values[~finite] = -np.inf
    best = np.flatnonzero(values == values.max())
    return min(best.tolist(), key=lambda place: (round(cells[place].operation.size, 9), place))


def grid_frame(cells: Sequence[Cell], results: CellResults, chosen: int) -> pd.DataFrame:
    """One row per cell: its coordinates and results. `p_holm` is Holm-corrected over the grid.

    Cells of a layer with the same `edit_id` are the same edit; `identity` marks edits that change nothing.
    """
    images = len(results.labels)
    before = float((results.unedited == results.labels).double().mean())
    _, edits = distinct([cell.operation for cell in cells])
    rows = []
    for place, (cell, gained, lost) in enumerate(zip(cells, results.gained, results.lost, strict=True)):
        low, high = delta_interval(int(gained), int(lost), images)
        rows.append(
            {
                "layer": cell.layer,
                "selection": cell.selection.name,
                "rule": cell.rule.name,
                **cell.settings,
                "selected": int(cell.selected.sum()),
                "accuracy_before": before,
                "accuracy_after": before + (int(gained) - int(lost)) / images,
                "delta": (int(gained) - int(lost)) / images,
                "delta_low": low,
                "delta_high": high,
                "gained": int(gained),
                "lost": int(lost),
                "p_value": mcnemar(int(gained), int(lost)),
                "nll_before": results.unedited_nll,
                "nll_after": float(results.nll[place]),
                "chosen": place == chosen,
                "edit_id": edits[place],
                "identity": cell.operation.is_identity,
            }
        )
    frame = pd.DataFrame(rows)
    frame.insert(list(frame).index("p_value") + 1, "p_holm", holm(frame["p_value"]))
    return frame

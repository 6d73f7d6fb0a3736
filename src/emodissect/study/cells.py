"""The cells of a study's grid, and what each does to the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emodissect.core.errors import UserError, nearest
from emodissect.core.statistics import delta_interval, holm, mcnemar
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.rules import Rule
from emodissect.editing.selection import Selection, exchanged, similarities, threshold

METRICS = ("accuracy", "nll", "macro_f1")
_CELLS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid: these neurons of this layer, scaled so."""

    layer: str
    selection: Selection
    rule: Rule
    selected: Bool[Tensor, " neuron"]
    scale: Float[Tensor, " neuron"]

    @property
    def change(self) -> float:
        """How large the edit is: mean |log scale|, an ablated neuron as one scaled to a millionth."""
        return float(self.scale.double().abs().clamp_min(1e-6).log().abs().mean())

    @property
    def uses_labels(self) -> bool:
        return self.selection.uses_labels or self.rule.uses_labels


@dataclass(frozen=True, eq=False)
class CellResults:
    """What each edit of a list gives on one set of images.

    Attributes:
        predicted: class by cell and image.
        nll: mean negative log-likelihood of each cell.
        labels: the images' true classes.
        unedited: predicted classes of the unedited network.
        unedited_nll: its negative log-likelihood.
    """

    predicted: Int64[Tensor, "cell image"]
    nll: Float[Tensor, " cell"]
    labels: Int64[Tensor, " image"]
    unedited: Int64[Tensor, " image"]
    unedited_nll: float
    classes: int

    @property
    def gained(self) -> np.ndarray:
        """Per cell, the images that became right."""
        return ((self.predicted == self.labels) & (self.unedited != self.labels)).sum(1).numpy()

    @property
    def lost(self) -> np.ndarray:
        """Per cell, the images that became wrong."""
        return ((self.predicted != self.labels) & (self.unedited == self.labels)).sum(1).numpy()

    @property
    def delta(self) -> np.ndarray:
        """Per cell, the change of accuracy."""
        return (self.gained - self.lost) / len(self.labels)

    def confusion(self) -> Int64[Tensor, "cell true predicted"]:
        """Number of images by true and predicted class."""
        size = self.classes**2
        place = torch.arange(len(self.predicted))[:, None] * size + self.labels * self.classes + self.predicted
        counts = torch.bincount(place.flatten(), minlength=len(self.predicted) * size)
        return counts.reshape(-1, self.classes, self.classes)

    def metric(self, name: str) -> np.ndarray:
        """Per cell, a number of which more is better."""
        if name == "nll":
            return -self.nll.numpy()
        if name == "accuracy":
            return self.gained - self.lost  # Whole numbers: a tie is a tie.
        counts = self.confusion().double()
        right, either = counts.diagonal(dim1=1, dim2=2), counts.sum(1) + counts.sum(2)
        present = either > 0
        return ((2 * right / either.clamp_min(1)).sum(1) / present.sum(1)).numpy()


def grid(
    network: nn.Module,
    layers: Sequence[str],
    neurons: pd.DataFrame,
    selections: Sequence[Selection],
    rules: Sequence[Rule],
) -> list[Cell]:
    """All cells: layer by layer, selection by selection, rule by rule.

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


def labels_of(neurons: pd.DataFrame, layer: str) -> pd.DataFrame:
    """The rows of one layer, in the order of their neuron."""
    labels = neurons[neurons["layer"] == layer].sort_values("neuron", ignore_index=True)
    if labels.empty:
        known = neurons["layer"].unique().tolist()
        raise UserError(f"There are no neuron labels for layer '{layer}'. {nearest(layer, known)} Dissect it first.")
    return labels


def shuffled(labels: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """One layer's labels, given to its living neurons at random: all that a label says moves together."""
    moved = labels.iloc[exchanged(labels, generator).numpy()].reset_index(drop=True)
    moved["neuron"] = labels["neuron"].to_numpy()
    return moved


def evaluate_scales(
    logits: EditedLogits, scales: Sequence[Tensor] | Tensor, parameters: str | Sequence[str]
) -> CellResults:
    """What every edit of one layer gives; equal edits are evaluated once."""
    kinds = [parameters] * len(scales) if isinstance(parameters, str) else list(parameters)
    rows = [row.float() for row in scales]
    distinct: dict[tuple[str, bytes], int] = {}
    # An edit that changes nothing is the same whatever it does not change.
    keys = [
        ("" if bool((row == 1).all()) else kind, row.numpy().tobytes()) for kind, row in zip(kinds, rows, strict=True)
    ]
    places = [distinct.setdefault(key, len(distinct)) for key in keys]
    first = {place: index for index, place in reversed(list(enumerate(places)))}
    predicted = torch.empty(len(distinct), len(logits.before.labels), dtype=torch.int64)
    nll = torch.empty(len(distinct), dtype=torch.float64)
    for kind in dict.fromkeys(kinds[first[place]] for place in range(len(distinct))):
        wanted = torch.tensor([place for place in range(len(distinct)) if kinds[first[place]] == kind])
        for some in wanted.split(_CELLS_AT_ONCE):
            found = logits.logits(torch.stack([rows[first[int(place)]] for place in some]), kind)
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
    """What every cell of a grid gives, over all its layers, on images that all layers share."""
    parts: dict[str, CellResults] = {}
    for layer in dict.fromkeys(cell.layer for cell in cells):
        chosen = [cell for cell in cells if cell.layer == layer]
        parts[layer] = evaluate_scales(logits[layer], [c.scale for c in chosen], [c.rule.parameters for c in chosen])
    some = next(iter(parts.values()))
    order = torch.tensor([i for layer in parts for i, cell in enumerate(cells) if cell.layer == layer]).argsort()
    return CellResults(
        torch.cat([part.predicted for part in parts.values()])[order],
        torch.cat([part.nll for part in parts.values()])[order],
        *(some.labels, some.unedited, some.unedited_nll, some.classes),
    )


def choose(cells: Sequence[Cell], results: CellResults, metric: str) -> int:
    """The cell of the best metric; of equals the smallest change, then the first. An edit that gives NaN never wins."""
    values = np.nan_to_num(results.metric(metric).astype(np.float64), nan=-np.inf)
    best = np.flatnonzero(values == values.max())
    return min(best.tolist(), key=lambda place: (round(cells[place].change, 9), place))


def grid_frame(cells: Sequence[Cell], results: CellResults, chosen: int, draws: int, seed: int) -> pd.DataFrame:
    """One row a cell: its coordinates and what it does. `p_holm` is corrected over the grid."""
    images = len(results.labels)
    before = float((results.unedited == results.labels).double().mean())
    rows = []
    for place, (cell, gained, lost) in enumerate(zip(cells, results.gained, results.lost, strict=True)):
        low, high = delta_interval(int(gained), int(lost), images, draws=draws, seed=seed)
        rows.append(
            {
                "layer": cell.layer,
                "selection": cell.selection.name,
                "rule": cell.rule.name,
                "parameters": cell.rule.parameters,
                "tau": threshold(cell.selection),
                "level": threshold(cell.selection, "level"),
                "factor": float(getattr(cell.rule, "factor", np.nan)),
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
            }
        )
    frame = pd.DataFrame(rows)
    frame.insert(list(frame).index("p_value") + 1, "p_holm", holm(frame["p_value"]))
    return frame

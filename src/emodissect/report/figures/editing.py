"""Figures of an edit study: the grid, the controls, the classes before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from emodissect.core.number_format import plain, points, signed
from emodissect.report.figures.style import (
    BLUE,
    GREY,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    WIDE,
    cell_ticks,
    drawn,
    new,
    signed_cells,
)
from emodissect.studies.cells import map_axes

#: Room for at least this many cells in a row, so that a narrow grid is not drawn as wide blocks.
FEWEST_COLUMNS = 5
#: Axis labels of settings.
AXIS_NAMES = {"tau": "τ"}
#: Display names of the controls.
CONTROL_NAMES = {
    "random": "random neurons",
    "shuffled": "shuffled labels",
    "all": "everything scaled",
    "scale_all": "everything scaled",
    "inverse": "inverse selection",
}


def noise_band(grid: pd.DataFrame, images: int) -> float:
    """Half-width of the band expected from chance flips: median over cells of 1.96 sqrt(gained + lost) / images.

    If an edit flipped right and wrong answers alike, gained - lost would scatter around 0 with variance gained + lost.
    """
    flips = grid["gained"].to_numpy(dtype=float) + grid["lost"].to_numpy(dtype=float)
    changed = flips[flips > 0]
    return float(np.median(1.96 * np.sqrt(changed)) / images) if changed.size else 0.0


def full_colour(grid: pd.DataFrame, images: int) -> float:
    """The change (a fraction) that is drawn in full colour, the same for all layers of a grid.

    It is the largest change, but at least twice the noise band, so that a grid of noise stays pale.
    """
    return max(float(grid["delta"].abs().max()), 2 * noise_band(grid, images))


def grid_heatmap(grid: pd.DataFrame, title: str = "", level: float = 0.05, limit: float | None = None) -> Figure:
    """Change of accuracy in points by the grid's axes, e.g. tau (rows) and factor (columns), of one layer and rule.

    Blue is better. The axes are :func:`emodissect.studies.cells.map_axes`; without a second there is one row.

    A ring marks cells outside the noise band (exact McNemar p < level), a filled dot those still outside after Holm's
    correction over the grid, a frame the chosen cell.

    Args:
        grid: its settings (tau, factor, ...), delta and, optionally, p_value, p_holm, chosen; one row per cell.
        title: of the figure.
        level: cells with a smaller p-value are marked.
        limit: the change (a fraction) that gets the full colour, so that several figures compare (see
            :func:`full_colour`); by default the largest of this grid.
    """
    with drawn():
        figure, axes, cells = _by_axes(grid, 100 * grid["delta"], 2, limit=limit and 100 * limit)
        for (row, column), cell in cells.items():
            if _number(cell, "p_value") < level:
                sure = _number(cell, "p_holm") < level
                axes.plot(column + 0.88, row + 0.28, "o", markersize=3.8, color=INK, markeredgewidth=1,
                          markerfacecolor=INK if sure else "none")  # fmt: skip
        _marks(figure, grid, level)
        axes.set_title(title)
    return figure


def nll_heatmap(grid: pd.DataFrame, title: str = "", limit: float | None = None) -> Figure:
    """Change of the negative log-likelihood by the grid's axes. Orange is worse, as in :func:`grid_heatmap`.

    Args:
        grid: its settings (tau, factor, ...), nll_before, nll_after and, optionally, chosen; one row per cell.
        title: of the figure.
        limit: the change that gets the full colour; by default the largest of this grid.
    """
    with drawn():
        figure, axes, _ = _by_axes(grid, grid["nll_after"] - grid["nll_before"], 3, -1, limit)
        _marks(figure, grid[[name for name in ("chosen",) if name in grid]], 0)
        axes.set_title(title)
    return figure


def control_distribution(controls: pd.DataFrame, delta: float) -> Figure:
    """Change of accuracy of each control's draws, with the chosen edit as a line.

    Args:
        controls: columns control, draw and ``delta_test`` (change of accuracy, a fraction).
        delta: change of accuracy of the chosen edit, on the same images.
    """
    kinds = list(dict.fromkeys(str(kind) for kind in controls["control"]))
    with drawn():
        figure = new(NARROW, 1.1 + 0.55 * max(len(kinds), 1))
        axes = figure.subplots()
        generator = np.random.default_rng(0)
        for row, kind in enumerate(kinds):
            values = 100 * controls.loc[controls["control"] == kind, "delta_test"].to_numpy(dtype=float)
            values = values[np.isfinite(values)]
            if values.size > 1:
                low, high = np.quantile(values, [0.025, 0.975])
                axes.plot([low, high], [row, row], color=GREY, linewidth=7, alpha=0.35, solid_capstyle="butt")
                axes.plot(values, row + generator.uniform(-0.22, 0.22, values.size), "o", color=GREY, markersize=2.6,
                          alpha=0.7, markeredgewidth=0)  # fmt: skip
                axes.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.2)
            else:
                axes.plot(values, [row] * values.size, "D", color=GREY, markersize=5)
        axes.axvline(0, color=MUTED, linewidth=0.7)
        axes.axvline(100 * delta, color=BLUE if delta >= 0 else ORANGE, linewidth=2)
        axes.annotate(f"chosen edit {points(delta)}", (100 * delta, 1.0), (0, 3), ha="center", va="bottom",
                      xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9, weight="bold",
                      color=BLUE if delta >= 0 else ORANGE)  # fmt: skip
        axes.set_yticks(range(len(kinds)), [CONTROL_NAMES.get(kind, kind.replace("_", " ")) for kind in kinds])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("change of accuracy (points)")
        axes.spines["left"].set_visible(False)
    return figure


def confusion_change(before: ArrayLike, after: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Confusion before and after an edit, in per cent of the true class, and the difference in images.

    Args:
        before, after: counts, shape (true class, predicted class).
    """
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    difference = second - first
    with drawn():
        figure = new(WIDE + 1.6, 3.7)
        left, middle, right = figure.subplots(1, 3)
        for axes, counts, word in ((left, first, "before"), (middle, second, "after")):
            _confusion(axes, counts, class_names)
            axes.set_title(f"{word} (% of true class)")
        signed_cells(right, difference, max(float(np.abs(difference).max(initial=0)), 1.0))
        for row, column in np.ndindex(*difference.shape):
            if difference[row, column]:
                right.text(column + 0.5, row + 0.52, signed(difference[row, column], 0),
                           ha="center", va="center", fontsize=8)  # fmt: skip
        cell_ticks(right, list(class_names), list(class_names), rotation=45)
        right.set_title("change (images)")
        for axes in (middle, right):
            axes.set_yticks([])
        left.set_ylabel("true class")
        figure.supxlabel("predicted class", fontsize=9.5, color=MUTED)
    return figure


def confusion(counts: ArrayLike, class_names: Sequence[str]) -> Figure:
    """One confusion matrix in per cent of the true class. ``counts``: shape (true class, predicted class)."""
    with drawn():
        figure = new(NARROW, 4.0)
        axes = figure.subplots()
        _confusion(axes, np.asarray(counts, dtype=float), class_names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return figure


def recall_bars(recalls: dict[str, ArrayLike], class_names: Sequence[str], counts: ArrayLike | None = None) -> Figure:
    """Recall of each class: one bar per network, e.g. ``{"before": ..., "after": ...}``, and the change in points.

    Args:
        recalls: name -> fractions, shape (class,).
        counts: images of each class, shown beside its name.
    """
    names = [str(name) for name in class_names]
    if counts is not None:
        names = [f"{name}  ({int(n):,})" for name, n in zip(names, np.asarray(counts), strict=True)]
    rows = np.arange(len(names))
    series = {word: 100 * np.asarray(values, dtype=float) for word, values in recalls.items()}
    with drawn():
        figure = new(NARROW, 1.1 + 0.3 * len(names))
        axes = figure.subplots()
        colours = [GREY, BLUE, ORANGE]
        if len(series) == 1:
            (values,) = series.values()
            axes.barh(rows, np.nan_to_num(values), height=0.66, color=BLUE, alpha=0.8)
            for row, value in enumerate(values):
                axes.annotate(f"{value:.0f}", (float(np.nan_to_num(value)), row), (4, 0), va="center", fontsize=9,
                              textcoords="offset points")  # fmt: skip
        else:
            height = 0.72 / len(series)
            for at, (word, values) in enumerate(series.items()):
                offset = (at - (len(series) - 1) / 2) * height
                axes.barh(rows + offset, np.nan_to_num(values), height=height * 0.92, color=colours[at % 3], alpha=0.85,
                          label=word)  # fmt: skip
            first, *_, last = series.values()
            for row in range(len(names)):
                change = last[row] - first[row]
                if np.isfinite(change):
                    axes.annotate(signed(change, 1), (max(first[row], last[row]), row), (4, 0), va="center",
                                  textcoords="offset points", fontsize=9)  # fmt: skip
            figure.legend(loc="outside upper right", ncols=len(series))
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 112)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(axis="x")
        axes.set_xlabel("recall (%)")
    return figure


def concept_ablation(
    drops: pd.DataFrame, beyond: pd.DataFrame | None = None, neurons: Sequence[int] | None = None, title: str = ""
) -> Figure:
    """Change of each class's recall (points) when the neurons of one concept are silenced.

    Args:
        drops: index = concepts, columns = classes; recall before minus after, fractions. A drop is drawn in orange.
        beyond: same shape, True where the drop exceeds that of as many random neurons; marked by a dot.
        neurons: how many neurons each concept has.
    """
    handle = Line2D([], [], marker="o", linestyle="", color=INK, markersize=4)
    legend = (
        None if beyond is None or not beyond.to_numpy().any() else (handle, "beyond the same number of random neurons")
    )
    return _concepts_by_class(drops, -100 * drops.to_numpy(dtype=float), 1, beyond, legend, neurons, title)


def concept_classes(activity: pd.DataFrame, neurons: Sequence[int] | None = None, title: str = "") -> Figure:
    """Standardized activation of each concept's neurons by class: index = concepts, columns = classes."""
    return _concepts_by_class(activity, activity.to_numpy(dtype=float), 2, None, None, neurons, title)


def _concepts_by_class(
    table: pd.DataFrame,
    values: np.ndarray,
    digits: int,
    beyond: pd.DataFrame | None,
    legend: tuple[Line2D, str] | None,
    neurons: Sequence[int] | None,
    title: str,
) -> Figure:
    names = [str(name) for name in table.index]
    if neurons is not None:
        names = [f"{name}  ({count})" for name, count in zip(names, neurons, strict=True)]
    known = np.abs(values[np.isfinite(values)])
    with drawn():
        figure = new(max(NARROW, 2.2 + 0.62 * table.shape[1]), 1.5 + 0.24 * max(len(names), 2))
        axes = figure.subplots()
        signed_cells(axes, values, float(known.max()) if known.size and known.max() > 0 else 1.0)
        for row, column in np.ndindex(*values.shape):
            if np.isfinite(values[row, column]):
                text = signed(float(values[row, column]), digits)
                axes.text(column + 0.46, row + 0.52, text, ha="center", va="center", fontsize=8.5)
            if beyond is not None and bool(beyond.iloc[row, column]):
                axes.plot(column + 0.91, row + 0.24, "o", markersize=3.6, color=INK)
        cell_ticks(axes, names, [str(name) for name in table.columns], rotation=40)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.xaxis.tick_top()
        for label in axes.get_xticklabels():
            label.set(ha="left")
        if legend is not None:
            figure.legend([legend[0]], [legend[1]], loc="outside lower left")
        axes.set_title(title)
    return figure


def _by_axes(
    grid: pd.DataFrame, values: pd.Series, digits: int, better: int = 1, limit: float | None = None
) -> tuple[Figure, Axes, dict[tuple[int, int], pd.Series]]:
    """Draw the cells with their numbers and a frame around the chosen one; also returns the cells by (row, column)."""
    axis_names = map_axes(grid)
    cutoffs, factors = (_steps(grid, name) for name in axis_names)
    table = np.full((len(cutoffs), len(factors)), np.nan)
    cells = {}
    for (_, cell), value in zip(grid.iterrows(), values, strict=True):
        row, column = (
            steps.index(cell[name]) if name is not None and not pd.isna(cell[name]) else 0
            for name, steps in zip(axis_names, (cutoffs, factors), strict=True)
        )
        table[row, column] = value
        cells[row, column] = cell
    known = np.abs(table[np.isfinite(table)])
    full = limit or float(known.max(initial=0)) or 1.0
    columns = max(len(factors), FEWEST_COLUMNS)
    figure = new(max(NARROW, 1.2 + 0.52 * columns), 1.15 + 0.27 * max(len(cutoffs), 2))
    axes = figure.subplots()
    signed_cells(axes, better * table, full)
    for (row, column), cell in cells.items():
        if np.isfinite(table[row, column]):
            axes.text(column + 0.46, row + 0.52, signed(table[row, column], digits), ha="center", va="center",
                      fontsize=9)  # fmt: skip
        if bool(cell.get("chosen", False)):
            axes.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.8,
                                     clip_on=False))  # fmt: skip
    cell_ticks(axes, [_plain(cutoff) for cutoff in cutoffs], [_plain(factor) for factor in factors])
    axes.set_xlim(0, columns)  # a few cells are not stretched
    row_label, column_label = (
        AXIS_NAMES.get(str(name), name or "") if any(_plain(step) for step in steps) else ""  # no values, no axis
        for name, steps in zip(axis_names, (cutoffs, factors), strict=True)
    )
    axes.set_xlabel(column_label, x=len(factors) / columns / 2)
    short = len(row_label) == 1
    axes.set_ylabel(row_label, rotation=0 if short else 90, labelpad=8 if short else None)
    return figure, axes, cells


def _confusion(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    total = counts.sum(axis=1, keepdims=True)
    share = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    signed_cells(axes, share, 100.0)
    for row, column in np.ndindex(*share.shape):
        if share[row, column] >= 0.5:
            axes.text(column + 0.5, row + 0.52, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=8.5,
                      weight="bold" if row == column else "normal")  # fmt: skip
    cell_ticks(axes, list(class_names), list(class_names), rotation=45)


def _marks(figure: Figure, grid: pd.DataFrame, level: float) -> None:
    handles, words = [], []
    if "chosen" in grid and bool(grid["chosen"].any()):
        handles.append(Line2D([], [], marker="s", linestyle="", color=INK, markerfacecolor="none", markersize=8))
        words.append("chosen")
    if "p_value" in grid and bool((grid["p_value"] < level).any()):
        handles.append(Line2D([], [], marker="o", linestyle="", color=INK, markerfacecolor="none", markersize=4))
        words.append("outside the noise band")
    if "p_holm" in grid and bool((grid["p_holm"] < level).any()):
        handles.append(Line2D([], [], marker="o", linestyle="", color=INK, markersize=4))
        words.append("also after Holm")
    if handles:
        figure.legend(handles, words, loc="outside lower left", ncols=3, handletextpad=0.2, columnspacing=1.0)


def _number(row: pd.Series | None, name: str) -> float:
    if row is None or name not in row or row[name] is None:
        return float("nan")
    return float(row[name])


def _steps(grid: pd.DataFrame, name: str | None) -> list[Any]:
    """The values of an axis in their order; one step where the grid has no such axis."""
    return (sorted(grid[name].dropna().unique()) if name is not None else []) or [float("nan")]


def _plain(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else plain(value)

"""Figures of a dissection: what each layer's neurons respond to, compared with chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from emodissect.report.figures.style import BLUE, GREEN, INK, LINE, MUTED, NARROW, ORANGE, WIDE, drawn, new

#: Column of the layer table -> its heading in the published study's layout.
STUDY_COLUMNS = {
    "interpretable": "interpretable",
    "not_interpretable": "not",
    "accuracy": "neuron\naccuracy",
    "accuracy_interpretable": "of inter-\npretable",
    "accuracy_others": "of the\nothers",
    "proportion": "proportion",
}


class ImageRow(NamedTuple):
    """A neuron's top images: by activation, and by relevance; each uint8 (rank, channel, height, width)."""

    neuron: str
    fires_for: str
    active: NDArray[np.uint8]
    used_for: str
    relevant: NDArray[np.uint8]


def image_rows(rows: Sequence[ImageRow]) -> Figure:
    """One row per neuron: its top images by activation on the left, by relevance on the right."""
    ranks = max((max(len(row.active), len(row.relevant)) for row in rows), default=1)
    with drawn():
        figure = new(WIDE, max(1.0 * len(rows), 1.0))
        halves = figure.subfigures(1, 2, squeeze=False)[0]
        for half, side in zip(halves, ("fires for", "used for"), strict=True):
            grid = half.subplots(max(len(rows), 1), ranks, squeeze=False)
            for axes in grid.flat:
                axes.axis("off")
            for line, row in zip(grid, rows, strict=False):
                label, images = (row.fires_for, row.active) if side == "fires for" else (row.used_for, row.relevant)
                title = f"{row.neuron} {side} {label}" if label else f"{row.neuron}: no label by relevance"
                line[0].set_title(title, fontsize=8, loc="left").set_in_layout(False)  # else it widens its column
                for axes, image in zip(line, images, strict=False):
                    axes.imshow(np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=255)
    return figure


def similarity_histogram(
    best: ArrayLike, null: ArrayLike | None = None, tau: float | None = None, title: str = ""
) -> Figure:
    """Histogram of each neuron's similarity to its best concept, with that of random image sets for comparison.

    Args:
        best: highest similarity of each neuron, shape (neuron,); NaNs (dead neurons) are ignored.
        null: highest similarities of random image sets of the same size, any shape.
        tau: cutoff, drawn as a line.
        title: of the figure.
    """
    values = _finite(best)
    chance = _finite(null) if null is not None else np.empty(0)
    together = np.concatenate([values, chance])
    with drawn():
        figure = new(NARROW, 2.9)
        axes = figure.subplots()
        if together.size:
            low, high = float(together.min()), float(together.max())
            edges = np.linspace(low, high if high > low else low + 1.0, 49)
            axes.hist(
                values, list(edges), weights=np.full(values.size, 100 / max(values.size, 1)), color=BLUE, alpha=0.65
            )
            if chance.size:
                counts = 100 * np.histogram(chance, edges)[0] / chance.size
                axes.stairs(counts, edges, color=ORANGE, linewidth=1.6)
            if chance.size:
                handles = [Patch(color=BLUE, alpha=0.65), Line2D([], [], color=ORANGE)]
                figure.legend(handles, ["neurons", "random image sets"], loc="outside upper right", ncols=2)
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        if tau is not None:
            axes.axvline(tau, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(f"τ = {tau:g}", (tau, 0.99), (4, 0), xycoords=("data", "axes fraction"), ha="left", va="top",
                          textcoords="offset points", color=INK, fontsize=9)  # fmt: skip
        axes.set_xlabel("similarity to the best concept")
        axes.set_ylabel("share (%)")
        axes.set_title(title)
    return figure


def concept_shares(shares: pd.DataFrame, title: str = "", limit: int = 30) -> Figure:
    """Concepts' shares among the correctly labelled neurons as horizontal bars, the largest on top.

    Args:
        shares: columns ``concept`` and ``share`` (fraction in [0, 1]).
        limit: number of bars; the rest are summed in one more.
    """
    ordered = shares.sort_values("share", ascending=False, kind="stable")
    ordered = ordered[ordered["share"] > 0]
    names = [str(name) for name in ordered["concept"][:limit]]
    values = [100 * float(share) for share in ordered["share"][:limit]]
    if len(ordered) > limit:
        names.append(f"{len(ordered) - limit} more")
        values.append(100 * float(ordered["share"][limit:].sum()))
    with drawn():
        figure = new(NARROW, 0.55 + 0.215 * max(len(names), 2))
        axes = figure.subplots()
        axes.barh(range(len(names)), values, height=0.68, color=BLUE, alpha=0.85)
        for row, value in enumerate(values):
            axes.annotate(f"{value:.1f} %", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
        axes.set_xlim(0, max(values, default=1.0) * 1.16)
        if not names:
            axes.text(0.5, 0.5, "no neuron is labelled correctly", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_title(title)
    return figure


def layer_proportions(layers: pd.DataFrame) -> Figure:
    """Per layer: the share of interpretable neurons, the same among random image sets, and neuron accuracy."""
    names = [str(name) for name in layers["layer"]]
    rows = np.arange(len(names))
    with drawn():
        figure = new(NARROW, 0.95 + 0.3 * len(names))
        axes = figure.subplots()
        axes.barh(rows, 100 * _column(layers, "proportion"), height=0.62, color=BLUE, alpha=0.3)
        axes.plot(100 * _column(layers, "proportion"), rows, "|", color=BLUE, markersize=11, markeredgewidth=2.4,
                  label="interpretable")  # fmt: skip
        if "proportion_null" in layers:
            axes.plot(100 * _column(layers, "proportion_null"), rows, "|", color=ORANGE, markersize=11,
                      markeredgewidth=2.4, label="among random image sets")  # fmt: skip
        axes.plot(100 * _column(layers, "accuracy"), rows, "o", color=INK, markersize=4, label="neuron accuracy")
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 103)
        axes.set_xlabel("per cent of neurons; accuracy: of their top images")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0, handletextpad=0.3, borderaxespad=0.1)
    return figure


def layer_table(layers: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """The layer table in the published study's layout, each published number below the measured one.

    Args:
        layers: from :func:`emodissect.dissection.labels.layer_table`.
        published: the same columns, one row per layer; matched by ``layer``.
    """
    known = {} if published is None else {str(row["layer"]): row for _, row in published.iterrows()}
    step = 0.46 if known else 0.26
    with drawn():
        figure = new(WIDE, 0.75 + step * len(layers) + (0.25 if known else 0))
        axes = figure.subplots()
        axes.axis("off")
        height = len(layers)
        axes.set_xlim(0, len(STUDY_COLUMNS) + 1.0)
        axes.set_ylim(height + (0.5 if known else 0), -0.9 * 0.4 / step - 0.25)
        axes.text(0, -0.15, "layer", va="bottom", color=MUTED)
        for column, heading in enumerate(STUDY_COLUMNS.values(), start=1):
            axes.text(column + 0.9, -0.15, heading, ha="right", va="bottom", color=MUTED, linespacing=1.1)
        for row, (_, measured) in enumerate(layers.iterrows()):
            axes.axhline(row, color=LINE, linewidth=0.6)
            middle = row + (0.32 if known else 0.5)
            axes.text(0, middle, str(measured["layer"]), va="center", weight="bold")
            for column, name in enumerate(STUDY_COLUMNS, start=1):
                axes.text(column + 0.9, middle, _cell(measured.get(name), name), ha="right", va="center")
                other = known.get(str(measured["layer"]))
                if other is not None:
                    axes.text(column + 0.9, row + 0.72, _cell(other.get(name), name), ha="right", va="center",
                              color=ORANGE, fontsize=8.5)  # fmt: skip
        axes.axhline(height, color=LINE, linewidth=0.6)
        if known:
            axes.text(0, height + 0.35, "published in the study", color=ORANGE, va="center", fontsize=8.5)
    return figure


def label_quality(
    names: Sequence[str],
    values: ArrayLike,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    chance: float | None = None,
    ceiling: float | None = None,
) -> Figure:
    """Bars with intervals, e.g. the share of labels recovered by each similarity, against chance and a ceiling.

    Args:
        names: one per bar.
        values: fractions in [0, 1], shape (bar,).
        low, high: ends of the intervals, shape (bar,).
        chance, ceiling: vertical lines.
    """
    share = 100 * np.asarray(values, dtype=float)
    rows = np.arange(len(names))
    with drawn():
        figure = new(NARROW, 0.85 + 0.3 * len(names))
        axes = figure.subplots()
        axes.barh(rows, np.nan_to_num(share), height=0.62, color=BLUE, alpha=0.75)
        if low is not None and high is not None:
            ends = 100 * np.stack([np.asarray(low, dtype=float), np.asarray(high, dtype=float)])
            axes.hlines(rows, ends[0], ends[1], color=INK, linewidth=1.3)
            right = np.fmax(share, ends[1])
        else:
            right = share
        for row, value in enumerate(share):
            axes.annotate(f"{value:.1f}", (float(np.nan_to_num(right[row])), row), (5, 0), va="center", fontsize=9,
                          textcoords="offset points")  # fmt: skip
        for line, word, colour in ((chance, "chance", ORANGE), (ceiling, "ceiling", GREEN)):
            if line is not None:
                axes.axvline(100 * line, color=colour, linewidth=1.3, linestyle=(0, (4, 3)), label=word)
        if chance is not None or ceiling is not None:
            figure.legend(loc="outside upper right", ncols=2)
        axes.set_yticks(rows, list(names))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, max(float(np.nanmax(right, initial=0)), 100 * (ceiling or 0), 100 * (chance or 0), 1) * 1.12)
        axes.set_xlabel("share of neurons whose label is right (%)")
    return figure


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    return array[np.isfinite(array)]


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
    return frame[name].to_numpy(dtype=float) if name in frame else np.full(len(frame), np.nan)


def _cell(value: object, name: str) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    number = float(value)  # type: ignore[arg-type]
    return f"{number:,.0f}" if name in {"interpretable", "not_interpretable"} else f"{number:.3f}"


__all__ = [
    "STUDY_COLUMNS",
    "concept_shares",
    "label_quality",
    "layer_proportions",
    "layer_table",
    "similarity_histogram",
]

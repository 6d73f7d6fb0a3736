"""Figures of a training run and of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emodissect.report.figures.style import BLUE, GREEN, GREY, INK, NARROW, ORANGE, drawn, new


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss (above) and accuracy (below) by epoch; a panel without data is left out.

    Args:
        history: column ``epoch`` and any of ``train/loss``, ``val/loss`` (else ``val/nll``), ``train/acc``,
            ``val/acc``; several rows per epoch are averaged.
    """
    by_epoch = history.groupby("epoch").mean(numeric_only=True) if len(history) else history
    if "val/loss" not in by_epoch and "val/nll" in by_epoch:
        by_epoch = by_epoch.rename(columns={"val/nll": "val/loss"})
    panels = [(word, [c for c in (f"train/{word}", f"val/{word}") if c in by_epoch]) for word in ("loss", "acc")]
    panels = [(word, columns) for word, columns in panels if columns]
    with drawn():
        figure = new(NARROW, 0.5 + 1.7 * max(len(panels), 1))
        rows = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (word, columns) in zip(rows, panels, strict=False):
            lines = {c: by_epoch[c].dropna() * (100 if word == "acc" else 1) for c in columns}
            lines = {c: line for c, line in lines.items() if len(line)}
            ends = sorted(lines, key=lambda c: float(lines[c].iloc[-1]))
            for column, line in lines.items():
                colour = GREY if column.startswith("train") else BLUE
                axes.plot(line.index, line, color=colour, marker="o" if len(line) < 3 else None, markersize=4)
                # the upper name above its line's end and the lower one below: lines that meet keep both names legible
                above = "center" if len(ends) == 1 else "bottom" if column == ends[-1] else "top"
                axes.annotate(column.split("/")[0], (line.index[-1], line.iloc[-1]), (4, 0), va=above, fontsize=9,
                              textcoords="offset points", color=colour, weight="bold")  # fmt: skip
            axes.set_ylabel("accuracy (%)" if word == "acc" else "loss")
            axes.grid(axis="y")
            axes.margins(x=0.02)
        if panels:
            rows[-1].set_xlabel("epoch")
            rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            rows[0].axis("off")
            rows[0].text(0.5, 0.5, "no metrics were logged", ha="center", transform=rows[0].transAxes)
    return figure


def deltas(jobs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Change of accuracy with its interval, one row per job or study, the best on top.

    Args:
        jobs: column ``delta`` and, optionally, ``delta_low`` and ``delta_high``; fractions.
        names: row labels.
    """
    order = np.argsort(-jobs["delta"].to_numpy(dtype=float), kind="stable")
    rows = jobs.iloc[order]
    shown = [str(names[i]) for i in order]
    values = 100 * rows["delta"].to_numpy(dtype=float)
    with drawn():
        figure = new(NARROW, 0.8 + 0.24 * max(len(shown), 2))
        axes = figure.subplots()
        if {"delta_low", "delta_high"} <= set(rows):
            axes.hlines(range(len(shown)), 100 * rows["delta_low"].to_numpy(dtype=float),
                        100 * rows["delta_high"].to_numpy(dtype=float), color=GREY, linewidth=1.4)  # fmt: skip
        colours = [BLUE if value > 0 else ORANGE if value < 0 else GREY for value in values]
        axes.scatter(values, range(len(shown)), s=22, c=colours, zorder=3)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), shown)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
        axes.set_xlabel("change of accuracy (points)")
        axes.grid(axis="x")
    return figure


def concepts_over_epochs(history: pd.DataFrame, layers: Sequence[str]) -> Figure:
    """Share of interpretable neurons of each layer by epoch.

    Args:
        history: column ``epoch`` and ``dissect/<layer>/proportion`` (fractions).
    """
    colours = [BLUE, ORANGE, GREEN, GREY]
    with drawn():
        figure = new(NARROW, 2.6)
        axes = figure.subplots()
        for at, layer in enumerate(layers):
            line = history.groupby("epoch")[f"dissect/{layer}/proportion"].mean().dropna() * 100
            axes.plot(line.index, line, color=colours[at % 4], marker="o", markersize=3, label=layer)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("interpretable neurons (%)")
        axes.grid(axis="y")
        figure.legend(loc="outside upper right", ncols=4)
    return figure

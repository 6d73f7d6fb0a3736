"""Results of the cheap alternatives to an edit: page section, terminal table, and logged summary metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from emodissect.core.number_format import DASH, points
from emodissect.report import claims
from emodissect.report.columns import EFFECTS, GROUPS, LADDER
from emodissect.report.figures import style
from emodissect.report.page import Extra
from emodissect.report.terminal import frame_table
from emodissect.studies import EditStudy
from emodissect.studies.label_effects import label_effects

_FITTED = {"val": "validation", "train": "training", "test": "test", "": DASH}

_TITLE = "Cheap alternatives"


def ladder_section(ladder: pd.DataFrame, delta: float) -> list[Extra]:
    """The section of the page; empty where no alternative was evaluated.

    Args:
        ladder: as returned by :func:`emodissect.studies.baselines.climb`.
        delta: the chosen edit's change on test.
    """
    known = ladder[ladder["delta"].notna()] if len(ladder) else ladder
    if not len(known):
        return []
    drawn = known[known["fitted_on"] != "test"]  # a bound fitted on test would squeeze the others together
    figure = ladder_figure(drawn, delta) if len(drawn) else None
    return [Extra(_TITLE, claims.ladder_text(ladder), frame=readable(ladder), figure=figure, columns=LADDER)]


def readable(ladder: pd.DataFrame) -> pd.DataFrame:
    """The ladder for display, without the alternatives that are not available for this network."""
    known = ladder[ladder["delta"].notna()]
    fitted, settled = known["fitted_on"].map(_FITTED), known["settled"].replace("", DASH)
    return known.assign(alternative=known["words"], fitted_on=fitted, settled=settled)


def ladder_table(ladder: pd.DataFrame) -> Table:
    """The ladder as a terminal table."""
    table = frame_table(readable(ladder), "Cheap alternatives, on test", LADDER)
    table.caption = " ".join(filter(None, [claims.ladder_notes(ladder), str(table.caption or "")])) or None
    return table


def group_section(study: EditStudy, class_names: Sequence[str]) -> list[Extra]:
    """The section with each group's accuracy; empty where no groups were given."""
    if not len(study.group_table):
        return []
    caption = (
        f"Accuracy on test by class and by whether “{study.groups}” is present, of the unedited network and of the "
        "edited one. The worst group is the lowest value of a column."
    )
    return [Extra("Accuracy by group", caption, frame=readable_groups(study, class_names), columns=GROUPS)]


def group_table(study: EditStudy, class_names: Sequence[str]) -> Table:
    """The groups as a terminal table."""
    return frame_table(readable_groups(study, class_names), f"Accuracy by group ({study.groups}), on test", GROUPS)


def readable_groups(study: EditStudy, class_names: Sequence[str]) -> pd.DataFrame:
    """The groups for display: class names instead of indices, and the change of accuracy."""
    groups = study.group_table
    names = [class_names[int(place)] for place in groups["class"]]
    return groups.assign(delta=groups["accuracy_after"] - groups["accuracy_before"], **{"class": names})


def effects_section(study: EditStudy) -> list[Extra]:
    """The section that relates label quality to the neurons' effects; empty where effects were not estimated."""
    if not len(study.neuron_effects):
        return []
    caption = (
        f"Rank correlation, over the living neurons of {study.edit.layer}, between measures of a label's quality and "
        "the neuron's effect on the mean correct-class margin when it is scaled up (signed), or its size. "
        "Effects are estimated from random edits on the images that the edit was chosen on."
    )
    return [Extra("Are interpretable neurons the useful ones?", caption, frame=_effects(study), columns=EFFECTS)]


def effects_table(study: EditStudy) -> Table:
    """The same as a terminal table."""
    return frame_table(_effects(study), f"Labels against effects of neurons ({study.edit.layer})", EFFECTS)


def _effects(study: EditStudy) -> pd.DataFrame:
    return label_effects(study.neuron_effects)


def optimism_note(optimism: float, delta: float) -> str:
    """Warning for an edit chosen on test: what the best of as many random edits would have gained."""
    if np.isnan(optimism):
        return ""
    return (
        f"The best of as many random edits, chosen on test in the same way, gains {points(optimism)} points on "
        f"average; this edit gains {points(delta)}."
    )


def ladder_summary(ladder: pd.DataFrame) -> dict[str, Any]:
    """`ladder/<name>/<fitted on>` -> the change of accuracy on test."""
    known = ladder[ladder["delta"].notna()] if len(ladder) else ladder
    return {
        "/".join(filter(None, ("ladder", row["name"], row["fitted_on"]))): float(row["delta"])
        for row in known.to_dict("records")
    }


def ladder_figure(ladder: pd.DataFrame, delta: float) -> Figure:
    """Each alternative's change with its interval; a line at the edit's."""
    with style.drawn():
        figure = style.new(style.WIDE, 0.9 + 0.28 * len(ladder))
        axes = figure.add_subplot()
        place = np.arange(len(ladder))[::-1]
        deltas = 100 * ladder["delta"].to_numpy(dtype=float)
        reach = 100 * ladder[["low", "high"]].to_numpy(dtype=float)
        spread = np.abs(np.stack([deltas - reach[:, 0], reach[:, 1] - deltas]))
        axes.axvline(0, color=style.LINE, linewidth=1)
        axes.axvline(100 * delta, color=style.ORANGE, label="the edit")
        axes.errorbar(deltas, place, xerr=spread, fmt="o", color=style.BLUE, markersize=4.5, linewidth=1.2)
        names = [
            f"{row['words']} ({_FITTED[row['fitted_on']]})" if row["fitted_on"] else str(row["words"])
            for row in ladder.to_dict("records")
        ]
        axes.set_yticks(place, names)
        axes.set_xlabel("change of accuracy on test (points)")
        axes.legend(loc="best")
    return figure

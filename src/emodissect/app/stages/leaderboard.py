"""dissect.py leaderboard=true: similarities and explanations ranked on neurons with known concepts."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from emodissect.app.session import Session
from emodissect.app.stages.classifier import Trained
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.app.stages.label_quality import Moved, Quality, planted_layers
from emodissect.app.stages.quality_tables import SCORER
from emodissect.core.number_format import number, percent
from emodissect.core.table_files import write_csv
from emodissect.dissection.quality.explained import BASELINE, labelling_parts
from emodissect.dissection.quality.leaderboard import MOVED, PREDICTS, Case, compared_by, leaderboard
from emodissect.dissection.quality.truth import true_concepts
from emodissect.report import Extra
from emodissect.report.columns import Column
from emodissect.report.terminal import frame_table

_SHORT = {
    "planted neurons": "planted",
    "planted network": "network",
    "by correlation": "corr.",
    "by top images": "top",
    "by interventions": "moved",
    MOVED: "changes",
}
"""Terminal headings."""


@dataclass(frozen=True)
class Leaderboard:
    """Results of ``leaderboard=true``; see :func:`emodissect.dissection.quality.leaderboard.leaderboard`."""

    frame: pd.DataFrame

    @property
    def shown(self) -> pd.DataFrame:
        """The table for display: each test's score with its interval as one string."""
        texts = {}
        for test in compared_by(self.frame):
            text = (lambda x: number(x, 2)) if test in (PREDICTS, MOVED) else (lambda x: percent(x, 0))
            cells = zip(*(self.frame[f"{test}{end}"] for end in ("", "_low", "_high")), strict=True)
            texts[test] = [f"{text(value)} ({text(low)}–{text(high)})" for value, low, high in cells]
        return pd.DataFrame({"method": self.frame["method"], "rank": self.frame["rank"], **texts})

    @property
    def columns(self) -> list[Column]:
        """Columns of the table for display."""
        tests = [Column(test, test) for test in compared_by(self.frame)]
        return [Column("method", "method"), Column("rank", "mean rank", 1), *tests]

    def save(self, run: Session) -> None:
        """Write leaderboard.csv to the run folder."""
        write_csv(self.frame, run.folder / "leaderboard.csv")
        run.add_output("leaderboard", run.folder / "leaderboard.csv")

    def show(self, run: Session) -> None:
        """Print the table without intervals, for which a terminal is too narrow."""
        shown = [Column("method", "method"), Column("rank", "rank", 1)]
        for test in compared_by(self.frame):
            shown.append(Column(test, _SHORT.get(test, test), 2 if test in (PREDICTS, MOVED) else "percent"))
        run.console.print(frame_table(self.frame, "Ways to name neurons, the best first", shown))

    def extras(self) -> list[Extra]:
        """The section of the report."""
        caption = (
            "Each method labels the same neurons from the same half of the images. Shares are of neurons whose "
            "heaviest concept is a true one; “predicts” is the mean correlation of predicted and true activations on "
            "the other half, “predicts changes” the mean cosine of changes when one property of a face is varied. "
            "Intervals are 95 %; the rank is the mean over the tests."
        )
        return [Extra("Which way to name neurons is best?", caption, frame=self.shown, columns=self.columns)]


def ranked(run: Session, plan: Plan, trained: Trained, found: Dissected) -> Leaderboard:
    """Rank the similarities and explanations of ``quality`` on planted neurons and on the dissected layers."""
    quality, seed = Quality(run, plan), int(run.cfg.seed)
    cases = []
    planted = planted_layers(plan, quality, found, seed)
    if planted is not None:
        for name, layer in planted.layers.items():
            parts = labelling_parts(layer, planted.sources[SCORER], seed)
            cases.append(Case(parts, {name: planted.planted.truth}))
    moved = Moved.of(run, plan, trained, list(found.activations))
    for name, layer in found.activations.items():
        truths = {}
        if quality.truth is not None:
            truths = {f"by {test}": true for test, true in true_concepts(layer, quality.truth.at(layer.ids)).items()}
        if moved:
            truths["by interventions"] = moved.caused(name)
        parts = labelling_parts(layer, found.scores.at(layer.ids), seed)
        cases.append(Case(parts, truths, moved.part(name) if moved else None, predicts=True))
    explainers = {name: explainer for name, explainer in quality.explainers.items() if name != BASELINE}
    return Leaderboard(leaderboard(cases, explainers))

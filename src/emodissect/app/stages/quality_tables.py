"""Results of ``label_quality=true``: files, terminal tables, and sections of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from emodissect.app.session import Session
from emodissect.app.stages.pages import write_figures
from emodissect.core.table_files import write_csv
from emodissect.lightning.tracking import log_metrics, log_tables
from emodissect.report import Extra, columns, figures
from emodissect.report.terminal import frame_table

SCORER, ANNOTATIONS = "scorer", "annotations"
"""Sources of the concept scores behind labels: the run's scorer, or the true presences."""

FRAMES = ("neurons", "sanity", "recovery", "planted", "coverage", "explanations", "stability", "responses")

MEANS = (
    *("pearson", "cosine", "auprc", "f1", "iou", "simulation", "explanation_pearson"),
    *("inverse_auc", "mad", "true_pearson", "clarity"),
)


class About(NamedTuple):
    """Titles of a table in the terminal, the report and its navigation; its caption and columns."""

    on_terminal: str
    title: str
    caption: str
    shown: Sequence[columns.Column]
    short: str


ABOUT = {
    "recovery": About(
        "Recovery of the truth",
        "Do labels find the true concept?",
        "the share of neurons whose label is their true concept, by similarity, with the scorer's scores; the ceiling "
        "is the best similarity with the true presences.",
        columns.RECOVERY,
        "Truth",
    ),
    "planted": About(
        "Planted neurons by kind",
        "What happens to neurons without a concept?",
        "Neurons built to detect one concept, either of two, or none. “Label beyond chance” is the share whose label "
        "beats random image sets: for noise neurons the level is expected.",
        columns.PLANTED,
        "Planted",
    ),
    "coverage": About(
        "Label sets that hold the truth of planted neurons",
        "Do label sets hold the truth?",
        "The smallest set of concepts that holds a neuron's label in this share of the resamples, compared with what "
        "planted neurons were built from. Resampling shows what other images could change, not what the scorer gets "
        "wrong on every image.",
        columns.COVERAGE,
        "Label sets",
    ),
    "explanations": About(
        "Activations of held-out images, predicted from words",
        "How well do words predict activations?",
        "Each explanation is fitted on half of the images and predicts the activations of the other half: the mean "
        "correlation over the neurons with its 95 % interval. “constant” is one word for all.",
        columns.EXPLANATIONS,
        "Predictions",
    ),
    "stability": About(
        "Labels that survive a change",
        "Do the labels survive?",
        "The share of neurons that keep their label under a change that should not matter, compared with the chance "
        "agreement of two labellings with the same concept shares.",
        columns.STABILITY,
        "Stability",
    ),
    "sanity": About(
        "Sanity tests of the metrics",
        "Can the metrics detect bad labels?",
        "Half of the positives removed, or doubled at random: a metric that does not drop cannot tell good labels from "
        "bad ones on this data.",
        columns.SANITY,
        "Sanity tests",
    ),
}
"""Frame -> its titles, in display order."""


@dataclass(frozen=True)
class QualityTables:
    """Results of ``label_quality=true``. Every frame has the column ``layer``, or is empty.

    Attributes:
        level: of the false discovery rate at which a label holds.
        neurons: held-out scores, one row per neuron.
        sanity: sanity tests, one row per layer, source of presence and metric.
        recovery: of the known truths, one row per layer, similarity and source of the scores.
        planted: labels of planted neurons, one row per similarity and kind of neuron.
        coverage: how often label sets hold the truth of planted neurons; one row per source of scores, kind and level.
        explanations: one row per layer and kind of explanation, see
            :func:`emodissect.dissection.quality.explained.explanation_table`.
        stability: one row per layer and change.
        responses: how each neuron responds to each property of a drawn face, see
            :func:`emodissect.dissection.quality.truth.dose_response`; one row per neuron and property.
    """

    level: float
    neurons: pd.DataFrame
    sanity: pd.DataFrame
    recovery: pd.DataFrame
    planted: pd.DataFrame
    coverage: pd.DataFrame
    explanations: pd.DataFrame
    stability: pd.DataFrame
    responses: pd.DataFrame

    @property
    def layers(self) -> pd.DataFrame:
        """The mean held-out scores of each layer's neurons, and the share whose label holds."""
        by_layer = self.neurons.groupby("layer", sort=False)
        means = by_layer[[name for name in (*MEANS, "scattered") if name in self.neurons]].mean()
        means.insert(0, "holds", by_layer["pearson_q"].agg(lambda q: (q.dropna() < self.level).mean()))
        return means.reset_index()

    def figures(self) -> dict[str, float]:
        """The layers' means as metrics for summary.json and loggers, e.g. ``dissect/lin2/held_out_pearson``."""
        return {
            f"dissect/{row['layer']}/held_out_{name}": float(row[name])
            for row in self.layers.to_dict("records")
            for name in ("holds", "pearson", "simulation")
        }

    def save(self, run: Session) -> None:
        """Write label_quality_*.csv to the run folder, and the figure if a truth is known."""
        for name in FRAMES:
            frame: pd.DataFrame = getattr(self, name)
            if len(frame):
                write_csv(frame, run.folder / f"label_quality_{name}.csv")
        if len(self.recovery):
            write_figures(run, lambda: {"label_quality": self._bars()})
        run.add_output("label quality", run.folder / "label_quality_neurons.csv")

    def log(self, run: Session) -> None:
        """Log the layers' means to every logger, and the tables to W&B."""
        log_metrics(run.loggers, self.figures())
        log_tables(run.loggers, {f"dissect/label_quality_{name}": getattr(self, name) for name in FRAMES[1:-1]})

    def show(self, run: Session) -> None:
        """Print the tables."""
        held_out = columns.renamed(columns.HELD_OUT, holds=f"holds, q < {self.level:g}")
        tables: list[tuple[pd.DataFrame, str, Sequence[columns.Column]]] = [
            (self.layers, "Labels on held-out images, mean over neurons", held_out)
        ]
        tables += [(getattr(self, name), about.on_terminal, about.shown) for name, about in ABOUT.items()]
        for frame, title, shown in tables:
            if len(frame):
                run.console.print(frame_table(frame, title, shown))

    def extras(self) -> list[Extra]:
        """Sections of the report."""
        caption = (
            "Labels chosen on half of the images, scored on the other half: the share of neurons whose label "
            f"correlates with them there (q < {self.level:g}), and the mean of each score over the neurons."
        )
        found = [Extra("Do the labels hold?", caption, frame=self.layers, columns=columns.HELD_OUT, short="Held out")]
        for name, about in ABOUT.items():
            if len(frame := getattr(self, name)):
                bars, before = (self._bars(), f"{self._shown_layer}: ") if name == "recovery" else (None, "")
                text = f"{before}{about.caption}"
                found.append(Extra(about.title, text, frame=frame, figure=bars, columns=about.shown, short=about.short))
        return found

    @property
    def _shown_layer(self) -> str:
        """The deepest dissected layer whose truth is known, else the first layer with a known truth."""
        own = [name for name in self.recovery["layer"].unique() if name in set(self.neurons["layer"])]
        return str(own[-1] if own else self.recovery["layer"].iloc[0])

    def _bars(self) -> Figure:
        """Figure of the recovery with the scorer's scores; the ceiling is the best with the true presences."""
        shown = self.recovery[self.recovery["layer"] == self._shown_layer]
        shown = shown[shown["truth"] == shown["truth"].iloc[0]]
        scorer = shown[shown["source"] == SCORER]
        ceiling = shown.loc[shown["source"] == ANNOTATIONS, "top1"].max()
        return figures.label_quality(
            list(scorer["similarity"]),
            scorer["top1"],
            scorer["top1_low"],
            scorer["top1_high"],
            chance=float(scorer["top1_chance"].mean()),
            ceiling=float(ceiling),
        )

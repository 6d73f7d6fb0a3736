"""dissect.py explanation=...: each neuron as a sum of concepts, scored on images that it was not fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from emodissect.app.session import Session
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.core.table_files import write_both
from emodissect.dissection.explanations import BestConceptExplainer, ConstantExplainer, Explainer, LabelExplainer
from emodissect.dissection.quality.explained import explained_neurons, labelling_parts
from emodissect.lightning.tracking import log_metrics
from emodissect.report import Extra, columns
from emodissect.report.terminal import frame_table

_SHOWN = 20  # number of neurons in the report's table


@dataclass(frozen=True)
class ExplanationTables:
    """Results of ``explanation=...``.

    Attributes:
        neurons: one row per neuron, with the column ``layer``; see
            :func:`emodissect.dissection.quality.explained.explained_neurons`.
    """

    neurons: pd.DataFrame

    @property
    def layers(self) -> pd.DataFrame:
        """Each layer's mean held-out correlations: of the explanation, the label, the best concept and a constant."""
        shown = [column.name for column in columns.EXPLAINED_LAYERS[1:]]
        return self.neurons.groupby("layer", sort=False)[shown].mean().reset_index()

    @property
    def on_cards(self) -> pd.DataFrame:
        """Columns for the neuron table and the cards."""
        shown = self.neurons[["layer", "neuron", "explanation", "pearson"]]
        return shown.rename(columns={"pearson": "explanation_pearson"})

    def figures(self) -> dict[str, float]:
        """Metrics for summary.json and loggers, e.g. ``dissect/lin2/explanation_pearson``."""
        return {f"dissect/{row['layer']}/explanation_pearson": row["pearson"] for row in self.layers.to_dict("records")}

    def save(self, run: Session) -> None:
        """Write explanations.parquet and a readable explanations.csv to the run folder."""
        run.add_output("explanations", write_both(self.neurons, run.folder / "explanations.parquet"))

    def log(self, run: Session) -> None:
        """Log the layers' means to every logger."""
        log_metrics(run.loggers, self.figures())

    def show(self, run: Session) -> None:
        """Print the layers' means."""
        title = "Correlation of predicted and true activations on held-out images, mean over neurons"
        run.console.print(frame_table(self.layers, title, columns.EXPLAINED_LAYERS))

    def extras(self) -> list[Extra]:
        """Sections of the report."""
        best = self.neurons.sort_values("pearson", ascending=False, kind="stable")[:_SHOWN]
        return [
            Extra(
                "What predicts the activations?",
                "Each neuron as a weighted sum of concepts, fitted on half of the images. Its predictions of the other "
                "half's activations are compared with the activations: the mean correlation over neurons, next to that "
                "of the label, the best single concept, and one constant concept for the layer.",
                frame=self.layers,
                columns=columns.EXPLAINED_LAYERS,
                short="Predictions",
            ),
            Extra(
                "The best predicted neurons",
                "Weights are standard deviations of the activation per standard deviation of the concept's score.",
                frame=best,
                columns=columns.EXPLAINED_NEURONS,
                short="Best predicted",
            ),
        ]


def explained(plan: Plan, found: Dissected) -> ExplanationTables:
    """Explain the neurons of all dissected layers."""
    assert plan.explainer is not None
    others: dict[str, Explainer] = {
        "label": LabelExplainer(plan.measure),
        "best_concept": BestConceptExplainer(),
        "constant": ConstantExplainer(),
    }
    tables = []
    for name, layer in found.activations.items():
        parts = labelling_parts(layer, found.scores.at(layer.ids), int(plan.run.cfg.seed))
        table = explained_neurons(parts, found.scores.names, plan.explainer, others)
        table.insert(0, "layer", name)
        tables.append(table)
    return ExplanationTables(pd.concat(tables, ignore_index=True))

"""dissect.py relevance=true: effects of the neurons on the logits, and labels by relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from emodissect.app.session import Session
from emodissect.app.stages.classifier import Trained
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.core.errors import UserError
from emodissect.core.table_files import write_both
from emodissect.data.images import ImageSet
from emodissect.dissection.relevance import relevance, relevance_table
from emodissect.recording import LayerActivations
from emodissect.report import Extra, columns, figures
from emodissect.report.terminal import frame_table

_PICTURED, _TILES = 6, 6  # number of neurons, and of top images of each, in the report's figure
_SHOWN = 20  # number of neurons in the report's table


@dataclass(frozen=True)
class RelevanceTables:
    """Results of ``relevance=true``.

    Attributes:
        neurons: from :func:`emodissect.dissection.relevance.relevance_table`, with the column ``layer``.
        probe: the probe images.
    """

    neurons: pd.DataFrame
    probe: ImageSet

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer: the share of neurons with the same label both ways, and of shared top images."""
        live = self.neurons[self.neurons["concept"] != ""]
        return live.groupby("layer", sort=False)[["same_label", "shared_top"]].mean().reset_index()

    @property
    def on_cards(self) -> pd.DataFrame:
        """Columns for the neuron table and the cards."""
        return self.neurons[["layer", "neuron", "relevance_concept", "drives", "effect"]]

    def save(self, run: Session) -> None:
        """Write relevance.parquet and a readable relevance.csv to the run folder."""
        run.add_output("relevance", write_both(self.neurons, run.folder / "relevance.parquet"))

    def show(self, run: Session) -> None:
        """Print the agreement of labels by activation and by relevance."""
        run.console.print(frame_table(self.layers, "Labels by activation and by relevance", columns.RELEVANCE_LAYERS))

    def extras(self) -> list[Extra]:
        """Sections of the report."""
        strongest = self.neurons.sort_values("effect", key=abs, ascending=False, kind="stable")[:_SHOWN]
        return [
            Extra(
                "What the neurons do",
                "Relevance is gradient x activation for the predicted class: the neuron's contribution to its logit. "
                "The same similarity labels neurons from activations and from relevance; where the labels differ, a "
                "neuron is active for one concept and used for another.",
                frame=self.layers,
                columns=columns.RELEVANCE_LAYERS,
                short="Relevance",
            ),
            Extra(
                "The neurons that move a class most",
                "The change of a class's logit per standard deviation of the neuron, to first order. The images are "
                "those of highest activation (left) and relevance (right), of the first neurons whose two labels "
                "differ.",
                frame=strongest,
                figure=self._pictured(strongest[strongest["same_label"].eq(False)][:_PICTURED]),
                columns=columns.RELEVANCE_NEURONS,
                short="Strongest effects",
            ),
        ]

    def _pictured(self, neurons: pd.DataFrame) -> Figure | None:
        """Figure of the top images by activation and by relevance; None without neurons or for non-uint8 images."""
        if neurons.empty or self.probe.images.dtype != torch.uint8:
            return None

        def images(ids: Sequence[int]) -> np.ndarray:
            return torch.as_tensor(self.probe.images[self.probe.rows_of(torch.tensor(ids[:_TILES]))]).numpy()

        return figures.image_rows(
            [
                figures.ImageRow(
                    f"{row['layer']} {row['neuron']}",
                    row["concept"],
                    images(list(row["top_ids"])),
                    row["relevance_concept"],
                    images(list(row["relevance_top_ids"])),
                )
                for row in neurons.to_dict("records")
            ]
        )


def relevant(run: Session, plan: Plan, trained: Trained, found: Dissected) -> RelevanceTables:
    """Compute relevance, effects and labels by relevance for all dissected layers."""
    classifier = trained.classifier
    if not classifier.knows_classes:
        raise UserError(
            f"relevance=true needs logits of the classes {', '.join(run.data.class_names)}, and the outputs of "
            f"{type(classifier.network).__name__} do not match them. Leave relevance=false."
        )
    names, scores = classifier.class_names, found.scores
    with classifier.preprocess.single():
        measured = relevance(
            classifier.network,
            classifier.inputs,
            plan.probe,
            list(found.activations),
            run.cfg.probe.batch_size,
            run.cfg.layer.channels_last,
            classifier.finished,
            progress="relevance",
        )
    tables = []
    for name, layer in found.activations.items():
        top_k = max(len(layer.top_ids), 1)
        by_relevance = LayerActivations.of(name, measured[name].ids, measured[name].values, top_k)
        similarity = plan.measure.of_layer(scores.at(by_relevance.ids), by_relevance)
        best = similarity.argmax(1)
        labels = ["" if dead else scores.names[int(c)] for dead, c in zip(by_relevance.dead, best, strict=True)]
        own = found.dissection[name]["concept"].tolist()
        table = relevance_table(measured[name], layer, own, labels, names, plan.labelling.top_images)
        table.insert(0, "layer", name)
        tables.append(table)
    return RelevanceTables(pd.concat(tables, ignore_index=True), plan.probe)

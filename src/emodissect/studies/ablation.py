"""Ablates the neurons of each concept and measures which classes lose recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from emodissect.core.errors import UserError
from emodissect.core.statistics import exceedance_p
from emodissect.data.images import ImageSet
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import Scaling
from emodissect.editing.rules import Ablate, Rule
from emodissect.editing.selection import LabelledWith, exchanged, similarities
from emodissect.models.inference import Inference
from emodissect.models.predictions import recalls
from emodissect.studies.cells import evaluate_operations, labels_of

_FILE = "concept_ablation.csv"


@dataclass(frozen=True, eq=False)
class ConceptAblation:
    """The drop of each class's recall when a concept's neurons are ablated.

    Attributes:
        frame: one row per concept and class: concept, class, neurons, recall_before, drop (recall before - after);
            random_mean and random_sd, the drop for the same number of random neurons; z, how far the drop lies above
            theirs (:func:`leave_one_out_z`); and p_value, how often random neurons give as large a z anywhere in the
            matrix: corrected for multiple comparisons (max-statistic, Westfall & Young, 1993), exact for any number
            of draws.
    """

    frame: pd.DataFrame

    def matrix(self, column: str = "drop") -> pd.DataFrame:
        """One column of the frame as a concept x class matrix, in the original order."""
        rows, columns = (list(dict.fromkeys(self.frame[name])) for name in ("concept", "class"))
        return self.frame.pivot(index="concept", columns="class", values=column).loc[rows, columns]  # noqa: PD010

    def beyond(self, level: float = 0.05) -> pd.DataFrame:
        """Concept x class: whether the drop exceeds that of the same number of random neurons, p <= level."""
        return self.matrix("p_value") <= level  # <= because with 19 draws the smallest possible p-value is .05

    def save(self, folder: str | Path) -> None:
        """Writes `concept_ablation.csv` to the folder."""
        self.frame.to_csv(Path(folder) / _FILE, index=False)

    @classmethod
    def load(cls, folder: str | Path) -> ConceptAblation:
        """The inverse of :meth:`save`."""
        return cls(
            pd.read_csv(Path(folder) / _FILE, float_precision="round_trip", keep_default_na=False, na_values=[""])
        )


def ablate_concepts(
    inference: Inference,
    layer: str,
    neurons: pd.DataFrame,
    images: ImageSet,
    class_names: Sequence[str],
    *,
    concepts: Sequence[str] | None = None,
    rule: Rule | None = None,
    draws: int = 100,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> ConceptAblation:
    """Ablate the neurons of each concept in turn, and random sets of the same size for comparison.

    Each draw shuffles the labels among the living neurons and ablates every concept's neurons again.

    Args:
        concepts: the concepts to ablate; None takes all that label a living neuron, those with the most neurons first.
        rule: how the chosen neurons are edited; None sets weight and bias to 0.
        draws: number of label shuffles, 2 or more.

    Raises:
        UserError: unknown layer or concept, no living neuron has a label, or too few draws.
    """
    if draws < 2:
        raise UserError(f"draws={draws} is too small to compare an ablation with chance: use at least 20, better 100.")
    rule = rule if rule is not None else Ablate(parameters="weight_and_bias")
    labels = labels_of(neurons, layer)
    similarity, module = similarities(labels), inference.network.get_submodule(layer)
    if concepts is None:
        concepts = labels["concept"][~similarity.isnan().numpy()].value_counts().index.tolist()
    if not concepts:
        raise UserError(f"No living neuron of layer '{layer}' has a label, so no concept can be ablated.")
    masks = [LabelledWith([concept])(labels, module) for concept in concepts]
    operations = [rule(mask, similarity) for mask in masks]
    generator = np.random.default_rng([seed, 4])
    orders = [torch.arange(len(labels)), *(exchanged(labels, generator) for _ in range(draws))]
    cells = [operation.permuted(order) for order in orders for operation in operations]
    logits = EditedLogits(inference, layer, images, batch_size, progress=progress)
    unchanged = Scaling(torch.ones(len(labels)))
    counts = evaluate_operations(logits, [unchanged, *cells]).confusion()
    of_class = counts[0].sum(1).double().numpy()
    recall = recalls(counts).numpy()
    drops = (recall[0] - recall[1:]).reshape(1 + draws, len(masks), -1)
    z = leave_one_out_z(drops, of_class)
    largest = np.nanmax(z[1:], axis=(1, 2))
    rows = [
        {
            "concept": concept,
            "class": name,
            "neurons": int(masks[row].sum()),
            "recall_before": recall[0, column],
            "drop": drops[0, row, column],
            "random_mean": drops[1:, row, column].mean(),
            "random_sd": drops[1:, row, column].std(ddof=1),
            "z": z[0, row, column],
            "p_value": exceedance_p(z[0, row, column], largest) if of_class[column] else np.nan,
        }
        for row, concept in enumerate(concepts)
        for column, name in enumerate(class_names)
    ]
    return ConceptAblation(pd.DataFrame(rows))


def leave_one_out_z(
    drops: Float[NDArray, "draw concept class"], images: Float[NDArray, " class"]
) -> Float[NDArray, "draw concept class"]:
    """How far each draw lies above the others: z = (drop - mean) / sqrt(sd^2 + (1 / images)^2).

    Mean and sd are taken over the other draws, so that the real labels (the first draw) are treated like every other
    draw. The term 1 / images, the recall of one image, keeps a single flip from counting as a finding where random
    neurons never changed anything.
    """
    others = len(drops) - 1
    mean = (drops.sum(0) - drops) / others
    squares = (drops**2).sum(0) - drops**2
    variance = np.clip((squares - others * mean**2) / (others - 1), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (drops - mean) / np.sqrt(variance + 1.0 / images**2)

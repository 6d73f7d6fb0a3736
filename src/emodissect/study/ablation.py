"""Do labels tell what neurons are for? Ablate each concept's neurons and see which classes suffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from torch import Tensor

from emodissect.data.images import ImageSet
from emodissect.edited_logits import EditedLogits
from emodissect.editing import Ablate, Rule
from emodissect.errors import UserError
from emodissect.evaluation import Inference
from emodissect.selection import LabelledWith, similarities
from emodissect.statistics import benjamini_hochberg
from emodissect.study.cells import judge, labels_of


@dataclass(frozen=True, eq=False)
class ConceptAblation:
    """The drop of each class's recall when a concept's neurons are ablated.

    Attributes:
        frame: one row a concept and class: concept, class, neurons, recall_before, drop (recall before - after); of as
            many random neurons random_mean, random_sd; z = (drop - random_mean) / random_sd, NaN at sd 0; and
            q_value, its upper normal tail corrected over the frame (Benjamini-Hochberg).
    """

    frame: pd.DataFrame

    def matrix(self, column: str = "drop") -> pd.DataFrame:
        """One column of the frame as concept x class, in the order they were given."""
        rows, columns = (list(dict.fromkeys(self.frame[name])) for name in ("concept", "class"))
        return self.frame.pivot(index="concept", columns="class", values=column).loc[rows, columns]  # noqa: PD010

    def beyond(self, level: float = 0.05) -> pd.DataFrame:
        """Concept x class: whether the drop is larger than random neurons of the same number explain."""
        return self.matrix("q_value") < level


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
    """Ablate the neurons of each concept in turn, beside random sets of the same size.

    Args:
        concepts: which; None takes all that label a living neuron, most neurons first.
        rule: what is done to the chosen neurons; None sets weight and bias to 0.
        draws: random sets for each size that occurs.

    Raises:
        UserError: unknown layer or concept, or no living neuron has a label.
    """
    rule = rule if rule is not None else Ablate(parameters="weight_and_bias")
    labels = labels_of(neurons, layer)
    similarity, module = similarities(labels), inference.network.get_submodule(layer)
    if concepts is None:
        concepts = labels["concept"][~similarity.isnan().numpy()].value_counts().index.tolist()
    if not concepts:
        raise UserError(f"No living neuron of layer '{layer}' has a label, so no concept can be ablated.")
    masks = [LabelledWith([concept])(labels, module) for concept in concepts]
    generator = np.random.default_rng([seed, 4])
    sizes = sorted({int(mask.sum()) for mask in masks})
    drawn = {size: [_some(len(labels), size, generator) for _ in range(draws)] for size in sizes}
    scales = [rule(mask, similarity) for mask in [*masks, *(mask for size in sizes for mask in drawn[size])]]
    logits = EditedLogits(inference, layer, images, batch_size, progress=progress)
    judged = judge(logits, [torch.ones(len(labels)), *scales], rule.parameters)
    counts = judged.confusion().double()
    recall = (counts.diagonal(dim1=1, dim2=2) / counts.sum(2)).numpy()  # NaN for a class without images
    drop, random = recall[0] - recall[1 : 1 + len(masks)], recall[0] - recall[1 + len(masks) :]
    rows = []
    for place, (concept, mask) in enumerate(zip(concepts, masks, strict=True)):
        size = int(mask.sum())
        start = sizes.index(size) * draws
        same_size = random[start : start + draws]
        mean, sd = same_size.mean(0), same_size.std(0, ddof=1) if draws > 1 else np.full(len(class_names), np.nan)
        for index, name in enumerate(class_names):
            rows.append(
                {
                    "concept": concept,
                    "class": name,
                    "neurons": size,
                    "recall_before": recall[0, index],
                    "drop": drop[place, index],
                    "random_mean": mean[index],
                    "random_sd": sd[index],
                    "z": (drop[place, index] - mean[index]) / sd[index] if sd[index] > 0 else np.nan,
                }
            )
    frame = pd.DataFrame(rows)
    frame["q_value"] = benjamini_hochberg(norm.sf(frame["z"]))
    return ConceptAblation(frame)


def _some(neurons: int, size: int, generator: np.random.Generator) -> Tensor:
    mask = torch.zeros(neurons, dtype=torch.bool)
    mask[torch.from_numpy(generator.permutation(neurons)[:size])] = True
    return mask

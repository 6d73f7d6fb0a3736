"""More than one word: concepts that join a label where held-out images agree; how alike exemplars are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.errors import UserError
from emodissect.label_quality.metrics import pearson


@dataclass(frozen=True)
class CompositeLabel:
    """The concepts of a neuron, read "either ... or ...", and the held-out Pearson after each of them."""

    concepts: tuple[int, ...]
    held_out: tuple[float, ...]


def composite_labels(
    activations: Float[Tensor, "image neuron"],
    scores: Float[Tensor, "image concept"],
    held_out_activations: Float[Tensor, "held neuron"],
    held_out_scores: Float[Tensor, "held concept"],
    labels: Int64[Tensor, " neuron"],
    most: int = 3,
    least_gain: float = 0.02,
) -> list[CompositeLabel]:
    """Greedy labels of up to ``most`` concepts.

    Scores are standardised with the first images' moments; a label of several concepts scores an image by the largest
    of theirs. The concept that raises Pearson most on the first images is tried; it stays where it adds at least
    ``least_gain`` to the Pearson of the held-out images, else the label ends. Memory: one image x concept matrix.
    """
    if most < 1 or len(labels) != activations.shape[1] or scores.shape[1] != held_out_scores.shape[1]:
        raise UserError(
            f"most={most}, {len(labels)} labels, activations {tuple(activations.shape)}: each neuron needs one label "
            "to start from, both sets of images the same neurons and concepts, and most is at least 1."
        )
    mean, spread = scores.mean(0), scores.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    fit, held = (scores - mean) / spread, (held_out_scores - mean) / spread
    return [
        _grown(activations[:, [m]], fit, held_out_activations[:, [m]], held, int(labels[m]), most, least_gain)
        for m in range(len(labels))
    ]


def _grown(
    a: Tensor, scores: Tensor, held_a: Tensor, held_scores: Tensor, label: int, most: int, least_gain: float
) -> CompositeLabel:
    concepts = [label]
    joined, held_joined = scores[:, [label]], held_scores[:, [label]]
    reached = [float(pearson(held_a, held_joined))]
    while len(concepts) < min(most, scores.shape[1]):
        gains = pearson(a.expand(-1, scores.shape[1]), torch.maximum(joined, scores))
        gains[concepts] = -torch.inf
        candidate = int(gains.argmax())
        wider = torch.maximum(held_joined, held_scores[:, [candidate]])
        score = float(pearson(held_a, wider))
        if score < reached[-1] + least_gain:
            break
        concepts.append(candidate)
        reached.append(score)
        joined, held_joined = torch.maximum(joined, scores[:, [candidate]]), wider
    return CompositeLabel(tuple(concepts), tuple(reached))


def clarity(
    embeddings: Float[Tensor, "image dimension"], top_rows: Int64[Tensor, "rank neuron"]
) -> Float[Tensor, " neuron"]:
    """Mean pairwise cosine of a neuron's exemplars: (|mean v|^2 - 1/n) n / (n - 1) over n unit embeddings v.

    1: all the same; about the mean cosine of the probe set: no more alike than random images (polysemantic, or noise).
    0 for a single exemplar.
    """
    n = len(top_rows)
    if n < 2:
        return torch.zeros(top_rows.shape[1])
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    centre = torch.nn.functional.embedding_bag(top_rows.t().contiguous(), unit, mode="mean")
    return (centre.square().sum(1) - 1 / n) * n / (n - 1)


def random_clarity(
    embeddings: Float[Tensor, "image dimension"], exemplars: int, draws: int = 1000, seed: int = 0
) -> Float[Tensor, " draw"]:
    """The clarity of random image sets of the same size: what a neuron must exceed to be about one thing."""
    generator = torch.Generator().manual_seed(seed)
    size = min(exemplars, len(embeddings))
    rows = torch.stack([torch.randperm(len(embeddings), generator=generator)[:size] for _ in range(draws)], 1)
    return clarity(embeddings, rows)

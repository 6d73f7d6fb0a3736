"""More than one word: concepts that join a label where other images agree, and how alike a neuron's exemplars are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import pearson


@dataclass(frozen=True)
class CompositeLabel:
    """The concepts of a neuron, read "either ... or ...", and the held-out Pearson after each of them."""

    concepts: tuple[int, ...]
    held_out: tuple[float, ...]


class Part(NamedTuple):
    """Some of the images."""

    activations: Float[Tensor, "image neuron"]
    scores: Float[Tensor, "image concept"]


def composite_labels(
    proposing: Part,
    deciding: Part,
    held_out: Part,
    labels: Int64[Tensor, " neuron"],
    most: int = 3,
    least_gain: float = 0.02,
) -> list[CompositeLabel]:
    """Greedy labels of up to ``most`` concepts.

    Scores are standardised with the proposing images' moments; a label of several concepts scores an image by the
    largest of theirs. The concept that raises Pearson most on the proposing images is tried; it stays where it adds at
    least ``least_gain`` to the Pearson of the deciding images, which did not propose it, else the label ends. The
    held-out images choose nothing, so what they score is not flattered. Memory: one image x concept matrix.
    """
    parts = (proposing, deciding, held_out)
    neurons, concepts = proposing.activations.shape[1], proposing.scores.shape[1]
    alike = all(part.activations.shape[1] == neurons and part.scores.shape[1] == concepts for part in parts)
    if most < 1 or len(labels) != neurons or not alike:
        raise UserError(
            f"most={most}, {len(labels)} labels of {neurons} neurons: each neuron needs one label to start from, all "
            "sets of images the same neurons and concepts, and most is at least 1."
        )
    mean, spread = proposing.scores.mean(0), proposing.scores.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    standard = [Part(part.activations, (part.scores - mean) / spread) for part in parts]
    return [
        _grown([Part(part.activations[:, [m]], part.scores) for part in standard], int(labels[m]), most, least_gain)
        for m in range(neurons)
    ]


def _grown(parts: list[Part], label: int, most: int, least_gain: float) -> CompositeLabel:
    (a, scores), deciding, held = parts
    concepts = [label]
    decided, reached = _correlation(deciding, concepts), [_correlation(held, concepts)]
    while len(concepts) < min(most, scores.shape[1]):
        joined = scores[:, concepts].amax(1, keepdim=True)
        gains = pearson(a.expand(-1, scores.shape[1]), torch.maximum(joined, scores))
        gains[concepts] = -torch.inf
        wider = [*concepts, int(gains.argmax())]
        score = _correlation(deciding, wider)
        if score < decided + least_gain:
            break
        concepts, decided = wider, score
        reached.append(_correlation(held, concepts))
    return CompositeLabel(tuple(concepts), tuple(reached))


def _correlation(part: Part, concepts: list[int]) -> float:
    return float(pearson(part.activations, part.scores[:, concepts].amax(1, keepdim=True)))


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

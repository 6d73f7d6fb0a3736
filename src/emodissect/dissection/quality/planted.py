"""Plants neurons that detect known concepts, so that labels can be checked against ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emodissect.core.errors import UserError

_FILTERS, _FILTER, _POOL = 32, 7, 4  # number of random filters, kernel size, and pooling size

KINDS = ("single", "either_or", "noise", "dead")
"""The kinds of planted neurons."""


@dataclass(frozen=True)
class Planted:
    """Activations with their true concepts; ``kind``: single, either_or, noise or dead, per neuron."""

    activations: Float[Tensor, "image neuron"]
    truth: Bool[Tensor, "neuron concept"]
    kind: tuple[str, ...]

    def of_kind(self, kind: str) -> Bool[Tensor, " neuron"]:
        """Mask of the neurons of a kind."""
        return torch.tensor([own == kind for own in self.kind])


def planted_neurons(
    presence: Float[Tensor, "image concept"],
    single: int = 100,
    either_or: int = 50,
    noise: int = 50,
    dead: int = 10,
    noise_scale: float = 0.5,
    seed: int = 0,
) -> Planted:
    """Single-concept, either-or, noise and dead neurons over the images of ``presence``.

    With z_c the standardised presence of concept c, e standard normal noise for each image and neuron and s the
    ``noise_scale``: single z_c + s e; either-or max(z_c, z_d) + s e; noise e; dead 0. All but dead neurons get a random
    gain and offset, so that no similarity benefits from a common scale. Concepts that never vary are not planted;
    single neurons cycle through the concepts, pairs are drawn at random.

    Raises:
        UserError: fewer than two concepts vary.
    """
    presence = presence.double()
    varying = ((presence.amax(0) - presence.amin(0)) > 0).nonzero()[:, 0]
    if len(varying) < 2:
        raise UserError("Planting needs at least two concepts whose presence varies over the images.")
    generator = np.random.default_rng(seed)
    standard = (presence - presence.mean(0)) / presence.std(0).clamp(min=1e-12)
    dealt = varying[torch.from_numpy(generator.permutation(len(varying)))]
    groups = [[int(dealt[m % len(dealt)])] for m in range(single)]
    groups += [[int(varying[c]) for c in generator.choice(len(varying), 2, replace=False)] for _ in range(either_or)]
    images, neurons = len(presence), single + either_or + noise + dead
    activations = torch.from_numpy(generator.standard_normal((images, neurons)))
    activations[:, : len(groups)] *= noise_scale
    truth = torch.zeros(neurons, presence.shape[1], dtype=torch.bool)
    for neuron, concepts in enumerate(groups):
        activations[:, neuron] += standard[:, concepts].amax(1)
        truth[neuron, concepts] = True
    gain = torch.from_numpy(np.exp(generator.normal(0, 1, neurons)))
    offset = torch.from_numpy(generator.normal(0, 1, neurons))
    activations = activations * gain + offset
    if dead:
        activations[:, -dead:] = 0.0
    kind = ("single",) * single + ("either_or",) * either_or + ("noise",) * noise + ("dead",) * dead
    return Planted(activations.float(), truth, kind)


@dataclass(frozen=True)
class Mixtures:
    """Activations that are signed sums of concepts, with their true weights."""

    activations: Float[Tensor, "image neuron"]
    weights: Float[Tensor, "neuron concept"]

    @property
    def truth(self) -> Bool[Tensor, "neuron concept"]:
        """Mask of the concepts in each sum."""
        return self.weights != 0


def planted_mixtures(
    presence: Float[Tensor, "image concept"],
    neurons: int = 50,
    concepts: int = 3,
    noise_scale: float = 0.5,
    seed: int = 0,
) -> Mixtures:
    """Signed sums of randomly drawn concepts over the images of ``presence``.

    With z_c the standardised presence and e standard normal noise: sum_c w_c z_c + ``noise_scale`` e, with w_c uniform
    in [0.4, 1] and random signs. The returned weights are in standard deviations of the activation, as in
    :class:`emodissect.dissection.explanations.Explanation`.

    Raises:
        UserError: fewer than ``concepts`` concepts vary.
    """
    presence = presence.double()
    varying = ((presence.amax(0) - presence.amin(0)) > 0).nonzero()[:, 0].numpy()
    if len(varying) < concepts:
        raise UserError(
            f"Mixtures of {concepts} concepts need as many with varying presence, but only {len(varying)} vary."
        )
    generator = np.random.default_rng(seed)
    standard = (presence - presence.mean(0)) / presence.std(0, correction=0).clamp(min=1e-12)
    weights = torch.zeros(neurons, presence.shape[1], dtype=torch.float64)
    for row in weights:
        row[generator.choice(varying, concepts, replace=False)] = torch.from_numpy(
            generator.uniform(0.4, 1, concepts) * generator.choice([-1, 1], concepts)
        )
    noise = torch.from_numpy(generator.standard_normal((len(presence), neurons)))
    activations = standard @ weights.t() + noise_scale * noise
    return Mixtures(activations.float(), (weights / activations.std(0, correction=0)[:, None]).float())


class PlantedNetwork(nn.Module):
    """A network whose layer ``neurons`` detects given concepts in images.

    ``features`` (fixed random filters, ReLU, average pooling) -> ``detectors`` (linear, one unit per concept) ->
    ``neurons`` (linear): a single neuron reads one detector, an either-or neuron the maximum of two, a noise neuron the
    sine of a random projection of the pixels, steep enough to look like noise, and a dead neuron nothing.

    Takes pixels in [0, 1].
    """

    def __init__(self, planted: Planted, channels: int, pixels: int, features: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        filters = nn.Conv2d(channels, _FILTERS, _FILTER, stride=2, padding=_FILTER // 2, bias=False)
        self.features = nn.Sequential(filters, nn.ReLU(), nn.AvgPool2d(_POOL, ceil_mode=True), nn.Flatten())
        self.detectors = nn.Linear(features, planted.truth.shape[1])
        noise = planted.of_kind("noise")
        self.waves = nn.Linear(pixels, int(noise.sum()))
        self.neurons = nn.Linear(len(noise), len(noise))
        pairs = [row.nonzero()[:, 0] if row.any() else torch.zeros(1, dtype=torch.int64) for row in planted.truth]
        self.register_buffer("concepts", torch.stack([torch.stack((pair[0], pair[-1])) for pair in pairs]))
        self.register_buffer("noise", noise.nonzero()[:, 0])
        with torch.no_grad():
            weight = torch.randn(filters.weight.shape, generator=generator) / _FILTER
            filters.weight.copy_(weight - weight.mean((1, 2, 3), keepdim=True))
            self.waves.weight.copy_(100 * torch.randn(self.waves.weight.shape, generator=generator))
            self.waves.bias.zero_()
            gain = torch.randn(len(noise), generator=generator).exp()
            self.neurons.weight.copy_(torch.diag(gain))
            self.neurons.bias.copy_(torch.randn(len(noise), generator=generator))
            self.neurons.weight[planted.of_kind("dead")] = 0.0

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image neuron"]:
        """Activations of the planted neurons."""
        found = self.detectors(self.features(images))
        read = found[:, self.concepts].amax(2)
        read[:, self.noise] = self.waves(images.flatten(1)).sin()
        return self.neurons(read)


def planted_network(
    images: Float[Tensor, "image channel height width"],
    presence: Float[Tensor, "image concept"],
    planted: Planted,
    seed: int = 0,
) -> PlantedNetwork:
    """A network whose neurons have the same kinds and concepts as ``planted``, fitted to detect them in these images.

    Its detectors are a ridge regression of the standardised presence on the standardised features, with a penalty of
    0.001 times the number of images. Unlike planted activations, its neurons see images, as well as 32 random filters
    allow.
    """
    probed = nn.Sequential(nn.Conv2d(images.shape[1], 1, _FILTER, stride=2, padding=_FILTER // 2),
                           nn.AvgPool2d(_POOL, ceil_mode=True))  # fmt: skip
    cells = probed(images[:1]).numel()
    network = PlantedNetwork(planted, images.shape[1], images[0].numel(), cells * _FILTERS, seed).eval()
    with torch.no_grad():
        x = torch.cat([network.features(batch) for batch in images.split(256)])
        mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
        x = (x - mean) / spread
        y = (presence - presence.mean(0)) / presence.std(0).clamp(min=1e-6)
        gram = (x.T @ x).double() + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, (x.T @ y.float()).double()).T.float() / spread
        network.detectors.weight.copy_(weight)
        network.detectors.bias.copy_(-weight @ mean)
    return network

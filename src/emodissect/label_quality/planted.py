"""Neurons built to stand for known concepts, so that every label can be checked against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emodissect.errors import UserError


@dataclass(frozen=True)
class Planted:
    """Activations with the concepts they were made from; ``kind``: single, either_or, noise or dead."""

    activations: Float[Tensor, "image neuron"]
    truth: Bool[Tensor, "neuron concept"]
    kind: tuple[str, ...]

    def of_kind(self, kind: str) -> Bool[Tensor, " neuron"]:
        """Which neurons are of a kind."""
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

    With z_c the standardised presence of concept c, e standard normal noise of each image and neuron and s the
    ``noise_scale``: single z_c + s e; either-or max(z_c, z_d) + s e; noise e; dead 0. Each is multiplied by a random
    gain and offset, so that no similarity profits from a common scale. Concepts that never vary are not planted;
    single concepts are dealt in turn, pairs are drawn.

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


def planted_network(
    images: Float[Tensor, "image ..."], presence: Float[Tensor, "image concept"], ridge: float = 1.0
) -> nn.Sequential:
    """A network of one hidden layer whose neuron c is the best linear detector of concept c on these images.

    ``flatten -> detectors (Linear) -> relu``; the weights are the ridge regression of presence on the standardised
    pixels, ``ridge`` times the number of pixels being the penalty. Layer ``detectors`` is what one dissects.
    """
    pixels = images.flatten(1).double()
    mean, spread = pixels.mean(0), pixels.std(0).clamp(min=1e-6)
    x = (pixels - mean) / spread
    y = presence.double() - presence.double().mean(0)
    gram = x.T @ x + ridge * x.shape[1] * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ y).T / spread
    linear = nn.Linear(x.shape[1], presence.shape[1])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(presence.double().mean(0) - weight @ mean)
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    network.add_module("detectors", linear)
    network.add_module("relu", nn.ReLU())
    return network

"""Running mean, variance and range of each neuron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean, squared deviation from the mean, minimum and maximum of each neuron.

    Parts are joined as in Chan, Golub & LeVeque (1979), in float64: with d = mean_b - mean_a and n = n_a + n_b,
    mean = mean_a + d n_b/n and deviation = deviation_a + deviation_b + d^2 n_a n_b/n.
    """

    count: int
    mean: Float64[Tensor, " neuron"]
    deviation: Float64[Tensor, " neuron"]
    minimum: Float[Tensor, " neuron"]
    maximum: Float[Tensor, " neuron"]

    @classmethod
    def of(cls, values: Float[Tensor, "image neuron"]) -> Moments:
        """The moments of at least one image. If a value is not finite, neither is the mean."""
        if values.device.type == "mps":  # has no float64
            values = values.cpu()
        wide = values.double()
        mean = wide.mean(0)
        wide -= mean
        return cls(len(values), mean, wide.square_().sum(0), values.amin(0), values.amax(0))

    def merge(self, other: Moments) -> Moments:
        """The moments of both parts together."""
        count = self.count + other.count
        difference = other.mean - self.mean
        return Moments(
            count,
            self.mean + difference * (other.count / count),
            self.deviation + other.deviation + difference.square() * (self.count * other.count / count),
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.maximum, other.maximum),
        )

    @property
    def std(self) -> Float64[Tensor, " neuron"]:
        """Population standard deviation over all images (divided by their number)."""
        return (self.deviation / self.count).sqrt()

    def cpu(self) -> Moments:
        """A copy on the CPU."""
        return Moments(self.count, self.mean.cpu(), self.deviation.cpu(), self.minimum.cpu(), self.maximum.cpu())

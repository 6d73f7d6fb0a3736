"""What neurons give for each class, and what they add to each class's logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from emodissect.core.evaluation_mode import evaluating
from emodissect.core.tensor_files import save_tensors
from emodissect.recording.pooling import ChannelsLast, neuron_axis

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a neuron's activations on the images of a class."""


@dataclass(frozen=True, eq=False)
class Responses:
    """One layer's activations by class, and its neurons' effects on the logits.

    Attributes:
        quantiles: of the activations on each class's images, at :data:`QUANTILES`; NaN for a class without images.
        mean: of the activations on each class's images.
        spread: standard deviation of each neuron over all images.
        effects: see :func:`logit_effects`; None where they are not known.
    """

    quantiles: Float[Tensor, "neuron class quantile"]
    mean: Float[Tensor, "neuron class"]
    spread: Float[Tensor, " neuron"]
    effects: Float[Tensor, "neuron class"] | None = None

    def save(self, path: Path) -> None:
        """Written as one safetensors file."""
        found = {name: getattr(self, name) for name in ("quantiles", "mean", "spread", "effects")}
        save_tensors({name: value.contiguous() for name, value in found.items() if value is not None}, path)

    @classmethod
    def load(cls, path: Path) -> Responses:
        """The inverse of :meth:`save`."""
        return cls(**load_file(path))


def by_class(
    activations: Float[Tensor, "image neuron"], labels: Int64[Tensor, " image"], classes: int
) -> tuple[Float[Tensor, "neuron class quantile"], Float[Tensor, "neuron class"]]:
    """Quantiles and means of each neuron's activations on the images of each class.

    Example:
        >>> quantiles, mean = by_class(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 3)
        >>> quantiles[0, :, 2].tolist(), mean[0, :2].tolist()
        ([1.0, 5.0, nan], [1.0, 5.0])
    """
    neurons = activations.shape[1]
    quantiles = torch.full((neurons, classes, len(QUANTILES)), torch.nan)
    mean = torch.full((neurons, classes), torch.nan)
    for row in labels[(labels >= 0) & (labels < classes)].unique().tolist():
        rows = activations[labels == row].float()
        quantiles[:, row] = rows.quantile(torch.tensor(QUANTILES), dim=0).T
        mean[:, row] = rows.mean(0)
    return quantiles, mean


def logit_effects(
    network: nn.Module,
    inputs: Tensor,
    layers: Sequence[str],
    finish: Callable[[Tensor], Tensor] = lambda output: output,
    channels_last: ChannelsLast = "auto",
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "neuron class"]]:
    """What each neuron adds to each class's logit, to first order: the mean over images of activation x gradient.

    For a neuron whose output goes to the logits by one linear layer it is its mean activation times its weight to the
    class, exactly; elsewhere it is the first term of the Taylor series of removing it (Molchanov et al. 2017).
    Positions of a map are summed.

    Args:
        network: run as in a test; modes and gradients are left as they were.
        inputs: the network's, one row an image.
        layers: module paths. Those without a tensor as output are left out.
        finish: the network's output -> logits.
        channels_last: see :func:`emodissect.recording.pooling.neuron_axis`.
        batch_size: images at a time.
    """
    sums: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            kept[layer] = output if output.requires_grad else output.detach().requires_grad_()
            return kept[layer].clone()  # an in-place operation behind it leaves the kept one as it is

        return hook

    handles = [network.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        with evaluating(network), torch.enable_grad():
            for part in inputs.split(batch_size):
                kept.clear()
                logits = finish(network(part))
                names = list(kept)
                for row in range(logits.shape[1]):
                    gradients = torch.autograd.grad(
                        logits[:, row].sum(), [kept[name] for name in names], retain_graph=True, allow_unused=True
                    )
                    for name, gradient in zip(names, gradients, strict=True):
                        if gradient is None:
                            continue
                        product = kept[name].detach() * gradient
                        axis = neuron_axis(network, name, product.shape, channels_last)
                        product = product.movedim(axis, 1).flatten(2).sum(2) if product.ndim > 2 else product
                        sums.setdefault(name, torch.zeros(product.shape[1], logits.shape[1]))
                        sums[name][:, row] += product.sum(0).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / len(inputs) for name, total in sums.items()}

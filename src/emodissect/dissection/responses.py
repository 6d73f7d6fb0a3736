"""Activations of neurons by class, and their effects on each class's logit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from emodissect.core.evaluation_mode import evaluating
from emodissect.core.tensor_files import save_tensors
from emodissect.recording.pooling import ChannelsLast, first_tensor, neuron_axis

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantile levels of a neuron's activations on the images of a class."""


@dataclass(frozen=True, eq=False)
class Responses:
    """One layer's activations by class, and its neurons' effects on the logits.

    Attributes:
        quantiles: quantiles of the activations on each class's images, at :data:`QUANTILES`; NaN for a class without
            images.
        mean: mean activation on each class's images.
        spread: standard deviation of each neuron over all images.
        effects: see :func:`logit_effects`; None if unknown.
    """

    quantiles: Float[Tensor, "neuron class quantile"]
    mean: Float[Tensor, "neuron class"]
    spread: Float[Tensor, " neuron"]
    effects: Float[Tensor, "neuron class"] | None = None

    def save(self, path: Path) -> None:
        """Writes one safetensors file."""
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
    """First-order contribution of each neuron to each class's logit: the mean over images of activation x gradient.

    If a single linear layer maps the neuron's output to the logits, it is exactly the mean activation times the weight
    to the class; otherwise, it is the first Taylor term of removing the neuron (Molchanov et al. 2017). Positions of a
    map are summed.

    Args:
        network: run in eval mode; modes and gradients are unchanged.
        inputs: the network's inputs, one row per image.
        layers: module paths. Modules that do not return a tensor are left out.
        channels_last: see :func:`emodissect.recording.pooling.neuron_axis`.
    """
    sums: dict[str, Tensor] = {}
    for _, found in layer_gradients(network, inputs.split(batch_size), layers, finish, channels_last):
        for name, (product, _) in found.items():
            sums[name] = sums.get(name, torch.zeros(())) + product.sum(1).T.cpu()
    return {name: total / len(inputs) for name, total in sums.items()}


def layer_gradients(
    network: nn.Module,
    batches: Iterable[Tensor],
    layers: Sequence[str],
    finish: Callable[[Any], Tensor],
    channels_last: ChannelsLast,
) -> Iterator[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]:
    """Yields each batch's logits, and per layer (activation x gradient, gradient) of shape (class, image, neuron).

    Positions of maps are summed. A batch takes one forward pass and one backward pass per class. Layers that the logits
    do not depend on are left out.
    """
    kept: dict[str, Tensor] = {}

    def keep(layer: str, module: nn.Module, args: object, output: Any) -> Any:
        first = first_tensor(output)
        if first is None or not first.is_floating_point():
            return None
        kept[layer] = first if first.requires_grad else first.detach().requires_grad_()
        # a clone, so that a later in-place operation does not change the kept tensor
        return kept[layer].clone() if isinstance(output, Tensor) else None

    def by_neuron(name: str, values: Tensor) -> Float[Tensor, "image neuron"]:
        axis = neuron_axis(network, name, values.shape, channels_last)
        return values.movedim(axis, 1).flatten(2).sum(2) if values.ndim > 2 else values

    with ExitStack() as stack, evaluating(network), torch.enable_grad():
        for layer in layers:
            stack.callback(network.get_submodule(layer).register_forward_hook(partial(keep, layer)).remove)
        for inputs in batches:
            kept.clear()
            logits = finish(network(inputs.detach()))
            found: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for row in range(logits.shape[1]):
                gradients = torch.autograd.grad(
                    logits[:, row].sum(), list(kept.values()), retain_graph=True, allow_unused=True
                )
                for (name, output), gradient in zip(kept.items(), gradients, strict=True):
                    if gradient is not None:
                        product = by_neuron(name, output.detach() * gradient)
                        found.setdefault(name, []).append((product, by_neuron(name, gradient)))
            stacked = {name: (torch.stack([p for p, _ in rows]), torch.stack([g for _, g in rows]))
                       for name, rows in found.items()}  # fmt: skip
            yield logits.detach(), stacked

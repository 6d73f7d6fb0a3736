"""Checks of a network's output: finding the logits in it, detecting probabilities, and determinism."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.errors import UserError, nearest

LogitsOf = Callable[[Any, Tensor], Tensor]
"""``logits(module, images)``: the logits (image, class) of a batch."""

_AGAIN = 1e-4  # of the largest output; parallel sums may differ in their last bits
_ALONE = {torch.float32: 2e-3, torch.float64: 1e-6}  # other kernels for other batch sizes; TF32 on GPUs
_ALONE_HALF = 5e-2


def parts_of(output: Any) -> dict[str, Any]:
    """The parts of an output by name: keys of a dict, fields of a dataclass or named tuple, indices of a tuple.

    >>> list(parts_of({"logits": 1, "features": 2})), list(parts_of((1, 2)))
    (['logits', 'features'], ['0', '1'])
    """
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items()}
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return {str(name): part for name, part in zip(names, output, strict=True)}
    return {}


def part_named(output: Any, name: str | int | None) -> Any:
    """The part of an output named by ``model.output``: ``logits``, ``0`` or ``head.logits``; None for the whole output.

    Raises:
        UserError: no such part; names the existing ones.

    >>> part_named({"head": (5, 6)}, "head.1")
    6
    """
    if name is None:
        return output
    part = output
    for step in str(name).split("."):
        parts = parts_of(part)
        if step not in parts:
            there = nearest(step, parts) if parts else f"The network gives a {type(part).__name__}, which has no parts."
            raise UserError(f"model.output={name}: the network's output has no '{step}'. {there}")
        part = parts[step]
    return part


def giving(network: nn.Module, name: str | int) -> nn.Module:
    """Make the network return only the named part of its output (in place); returns the network.

    >>> network = giving(nn.Identity(), "logits")
    >>> network({"logits": 1, "features": 2})
    1
    """
    if not any(isinstance(hook, _Giving) for hook in network._forward_hooks.values()):
        network.register_forward_hook(_Giving(name))
    return network


class _Giving:
    """A forward hook; a class, so that networks with it can be copied."""

    def __init__(self, name: str | int) -> None:
        self.name = name

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        return part_named(output, self.name)


def described(output: Any, classes: int) -> str:
    """A short description of an output; if it has several parts, with the one that looks like the logits."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    parts = parts_of(output)
    if not parts:
        return f"a {type(output).__name__}"
    listed = ", ".join(
        f"{name} {tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__}"
        for name, part in list(parts.items())[:8]
    )
    logits = [n for n, p in parts.items() if isinstance(p, Tensor) and p.ndim == 2 and p.shape[1] == classes]
    chosen = logits[0] if logits else f"<one of {', '.join(list(parts)[:8])}>"
    return f"a {type(output).__name__} of {listed}: set model.output={chosen}"


def probabilities_in(output: Any) -> str | None:
    """Why an output looks like probabilities instead of logits; None if it does not.

    Non-negative rows that sum to 1 are taken for softmax; 16 or more rows of values in [0, 1] for sigmoid.

    >>> probabilities_in(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    'rows sum to 1 (softmax)'
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2 or not len(output):
        return None
    values = output.detach().double()
    if bool((values < 0).any()) or bool((values > 1 + 1e-3).any()):
        return None
    if torch.allclose(values.sum(dim=1), torch.ones(len(values), dtype=torch.float64, device=values.device), atol=1e-2):
        return "rows sum to 1 (softmax)"
    return "all values are in [0, 1] (sigmoid)" if len(values) >= 16 else None


def logits_of(module: nn.Module, images: Any, logits: LogitsOf | None = None) -> Float[Tensor, "image class"]:
    """The module's logits for a batch: from ``logits(module, images)``, else from ``module(images)``.

    If the output is a mapping or an object, its entry ``logits`` is used.

    Raises:
        UserError: the output is not of shape (image, class).

    Example:
        >>> logits_of(nn.Linear(3, 2), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    return as_logits(module(images) if logits is None else logits(module, images), type(module).__name__)


def as_logits(output: Any, of: str = "The network") -> Float[Tensor, "image class"]:
    """The logits in a module's output: the tensor itself, or the entry ``logits`` of a mapping or an object.

    Raises:
        UserError: there are none of shape (image, class).
    """
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"{of} gives {found}, not logits of shape (image, class). Say how the module gives them: "
            "logits=lambda module, images: module(images)[0]."
        )
    return output


def unsteady(forward: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    """Why a network's outputs are not deterministic per image; None if each depends on its image alone.

    The images are run as a batch, again, and in two halves. Random layers (dropout that is always on, a sampled
    latent) differ the second time; norms over the batch differ in the halves.

    Args:
        forward: images to outputs, in evaluation mode.
        images: two or more, not all equal.

    >>> unsteady(lambda x: x.flatten(1) - x.mean(), torch.arange(8.0).reshape(4, 2))
    'its answer to an image depends on the other images of the batch (outputs differ by up to 57.1 % in half batches)'
    """
    with torch.inference_mode():
        whole, again = forward(images), forward(images)
        half = len(images) // 2
        halves = torch.cat([forward(images[:half]), forward(images[half:])])
    scale = float(whole.abs().max().clamp(min=1e-12))
    if not bool(whole.isfinite().all()):
        bad = int((~whole.flatten(1).isfinite()).any(1).sum())
        return f"it gives NaN or infinite outputs for {bad} of {len(images)} images"
    if (apart := float((whole - again).abs().max()) / scale) > _AGAIN:
        return f"it answers differently each time (outputs differ by up to {100 * apart:.1f} % on the same images)"
    if (apart := float((whole - halves).abs().max()) / scale) > _ALONE.get(whole.dtype, _ALONE_HALF):
        return (
            "its answer to an image depends on the other images of the batch (outputs differ by up to "
            f"{100 * apart:.1f} % in half batches)"
        )
    return None

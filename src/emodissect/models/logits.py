"""Logits from whatever a network returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.errors import UserError

LogitsOf = Callable[[Any, Tensor], Tensor]
"""``logits(module, images)``: the logits (image, class) of a batch."""


def logits_of(module: nn.Module, images: Any, logits: LogitsOf | None = None) -> Float[Tensor, "image class"]:
    """The module's logits of a batch: ``logits(module, images)``, else what ``module(images)`` returns.

    Of a mapping or an object the entry ``logits`` is taken.

    Raises:
        UserError: the output is not of shape (image, class).

    Example:
        >>> import torch
        >>> logits_of(nn.Linear(3, 2), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    return as_logits(module(images) if logits is None else logits(module, images), type(module).__name__)


def as_logits(output: Any, of: str = "The network") -> Float[Tensor, "image class"]:
    """What a module returned, as logits: the tensor itself, or the entry ``logits`` of a mapping or an object.

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

"""The check that stands before a network of fixed input size."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from emodissect.core.errors import UserError


def require_input(
    images: Float[Tensor, "image channel height width"], name: str, channels: int, size: int
) -> Float[Tensor, "image channel height width"]:
    """The images, unchanged, if they have the shape the network takes.

    A flattened view of images of another size would mix images of a batch without a word; so this comes first.
    A network that begins with it says `torch.fx.wrap("require_input")` in its module, so that it can still be traced.

    Raises:
        UserError: other shape; names the shape given, the one accepted, and the keys to set.
    """
    if images.ndim != 4 or images.shape[1] != channels or tuple(images.shape[2:]) != (size, size):
        raise UserError(
            f"{name} was given images of shape {_shape(images)}, and takes {channels}x{size}x{size} "
            f"(channel x height x width). Set model.preprocess.size={size} model.preprocess.channels={channels}."
        )
    return images


def _shape(images: Tensor) -> str:
    return "x".join(str(int(n)) for n in images.shape[1:]) or "()"

"""Conversion of raw images to the input of any network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from emodissect.core.errors import UserError, reason
from emodissect.core.evaluation_mode import evaluating

Transform = Callable[[Any], Any]


class NetworkInput:
    """Converts raw images (uint8, or floats as given) to a network's input; the method is determined on a few images.

    With a transform: applied to the batch if that equals applying it image by image, else to each image as a tensor,
    else to each image as a PIL image (torchvision's ``ToTensor``). Without one: the images unchanged if the network
    accepts uint8, else divided by 255.

    Args:
        network: any module; tried in evaluation mode.
        transform: raw image to network input.

    Raises:
        UserError: a transform that fails, is random or changes the number of images; a network that does not accept the
            images.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
        >>> NetworkInput(network, None, images)(images).max()
        tensor(1.)
    """

    def __init__(self, network: nn.Module, transform: Transform | None, images: Tensor) -> None:
        parameter = next(network.parameters(), None)
        self.dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
        self.device = parameter.device if parameter is not None else torch.device("cpu")
        some = images[:2]
        self._make = _as_transformed(transform, some) if transform is not None else unchanged
        if transform is None and some.dtype == torch.uint8 and _fails(network, self(some)) is not None:
            self._make = _scaled
        if (error := _fails(network, self(some))) is not None:
            shape = "x".join(map(str, self(some).shape[1:]))
            advice = "Give what the network needs as transform=." if transform is None else "Check transform=."
            raise UserError(
                f"{type(network).__name__} cannot take the images, {shape} (channel x height x width): "
                f"{reason(error)}. {advice}"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input for raw images, on the network's device and in its precision."""
        made = self._make(images).to(self.device)
        return made.to(self.dtype) if made.is_floating_point() else made


@contextmanager
def on_device(network: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """Context manager: move the network to a device and back; None leaves it where it is."""
    place = next((parameter.device for parameter in network.parameters()), None)
    if device is None or place is None:
        yield
        return
    try:
        network.to(device)
        yield
    finally:
        network.to(place)


def forward_of(network: nn.Module) -> Callable[[Tensor], Any]:
    """The forward pass with one view per image: ``single_view`` of a module that averages several, else the module."""
    return getattr(network, "single_view", network)


def require_input(
    images: Float[Tensor, "image channel height width"], name: str, channels: int, size: int
) -> Float[Tensor, "image channel height width"]:
    """The images, unchanged, if they have the shape that the network accepts.

    Flattening images of another size could silently mix the images of a batch, so this check comes first. A module
    that uses it calls `torch.fx.wrap("require_input")`, so that the network can still be traced.

    Raises:
        UserError: another shape; names the given shape, the accepted one, and the keys to set.
    """
    if images.ndim != 4 or images.shape[1] != channels or tuple(images.shape[2:]) != (size, size):
        raise UserError(
            f"{name} was given images of shape {'x'.join(map(str, images.shape[1:]))}, and takes "
            f"{channels}x{size}x{size} (channel x height x width). "
            f"Set model.preprocess.size={size} model.preprocess.channels={channels}."
        )
    return images


def unchanged(values: Tensor) -> Tensor:
    """The identity function."""
    return values


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def _fails(network: nn.Module, inputs: Tensor) -> Exception | None:
    try:
        with evaluating(network), torch.inference_mode():
            forward_of(network)(inputs)
        return None
    except Exception as error:  # a user's network may raise anything
        return error


def _as_transformed(transform: Transform, some: Tensor) -> Callable[[Tensor], Tensor]:
    def by_tensor(images: Tensor) -> Tensor:
        return torch.stack([_tensor(transform(image)) for image in images])

    def by_pil(images: Tensor) -> Tensor:
        return torch.stack([_tensor(transform(to_pil_image(image.cpu()))) for image in images])

    def whole(images: Tensor) -> Tensor:
        return _tensor(transform(images))

    made: dict[str, Tensor] = {}
    errors: list[str] = []
    ways = {"batch": whole, "tensor": by_tensor, "PIL image": by_pil}
    for name, way in ways.items():
        try:
            made[name], again = way(some), way(some)
        except Exception as error:  # a user's transform may raise anything
            errors.append(f"{name}: {reason(error, 150)}")
            continue
        if not torch.equal(made[name], again):
            raise UserError("transform= gives another result each time: give the transform used for evaluation.")
    at_once = made.pop("batch", None)
    if at_once is not None and len(at_once) == len(some):
        one_by_one = next(iter(made.values()), at_once)
        if at_once.shape == one_by_one.shape and torch.allclose(at_once, one_by_one):
            return whole
    if not made:
        raise UserError(f"transform= takes neither a batch, nor a tensor, nor a PIL image: {'; '.join(errors)}.")
    return ways[next(iter(made))]


def _tensor(made: Any) -> Tensor:
    if not isinstance(made, Tensor):
        raise TypeError(f"it gives {type(made).__name__}, not a tensor")
    return made

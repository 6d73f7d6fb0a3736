"""Conversion of images in any common form (tensors, a Dataset, a DataLoader) to an ImageSet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from emodissect.core.errors import UserError
from emodissect.core.progress import tracked
from emodissect.data.batches import class_labels, ids_of, images_of, labels_of
from emodissect.data.images import UNKNOWN_LABEL, ImageSet


def image_set(source: Any, labels: Any = None, *, as_given: bool = False, progress: bool = False) -> ImageSet:
    """The images of a source in memory; ids are the source's own if it has them, else their positions.

    Args:
        source: an :class:`ImageSet`; a tensor or array (image, channel, height, width) or (image, height, width); a
            ``Dataset``, list or other iterable of images, ``(image, label)`` or dicts, each image a tensor, an array
            or a PIL image; or a ``DataLoader`` of such batches.
        labels: one class index per image; None: the source's own, if it has them.
        as_given: keep floating-point images unchanged, for a network; else they must be in [0, 1], and become uint8
            (exactly, if they come from 8-bit images).
        progress: show a progress bar.

    Raises:
        UserError: no images, images of different sizes, normalized values where raw ones are needed, or a wrong number
            of labels.

    Example:
        >>> faces = [(torch.full((1, 2, 2), 0.5), 1), (torch.zeros(1, 2, 2), 0)]
        >>> found = image_set(faces)
        >>> found.images[:, 0, 0, 0].tolist(), found.labels.tolist(), found.ids.tolist()
        ([128, 0], [1, 0], [0, 1])
    """
    if isinstance(source, ImageSet):
        return source if labels is None else ImageSet(source.images, class_labels(labels, len(source)), source.ids)
    parts = [_part(batch, as_given) for batch in _batches(source, progress)]
    if not parts or not sum(len(images) for images, _, _ in parts):
        raise UserError(f"{type(source).__name__} has no images.")
    shapes = list(dict.fromkeys(tuple(images.shape[1:]) for images, _, _ in parts))
    if len(shapes) > 1:
        sizes = ", ".join("x".join(map(str, shape)) for shape in shapes[:4])
        raise UserError(f"The images differ in size (channel x height x width): {sizes}. Resize them to one size.")
    images = torch.cat([part for part, _, _ in parts])
    given = [found for _, found, _ in parts]
    if labels is not None:
        known = class_labels(labels, len(images))
    elif any(found is None for found in given):
        known = torch.full((len(images),), UNKNOWN_LABEL)
    else:
        known = torch.cat([found for found in given if found is not None])
    own = torch.arange(len(images))
    if all(found is not None for _, _, found in parts):
        own = torch.cat([found for _, _, found in parts if found is not None])
    if len(own.unique()) < len(own):
        raise UserError(f"{len(own) - len(own.unique())} image ids occur more than once; ids must be unique.")
    return ImageSet(images, known, own)


def class_names_of(source: Any) -> tuple[str, ...]:
    """The class names of a dataset (torchvision's ``classes``), in the order of its labels; empty if unknown."""
    while source is not None:
        found = getattr(source, "classes", None)
        if isinstance(found, Sequence) and not isinstance(found, str):
            return tuple(str(name) for name in found)
        source = getattr(source, "dataset", None)
    return ()


def _batches(source: Any, progress: bool) -> Iterator[Any]:
    bar = "images" if progress else None
    if isinstance(source, Tensor | np.ndarray):
        yield source
    elif isinstance(source, DataLoader):
        yield from tracked(source, bar)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        for row in tracked(range(len(source)), bar):
            yield _one(source[row])
    elif isinstance(source, Iterable):
        for item in tracked(source, bar):
            yield _one(item)
    else:
        raise UserError(
            f"{type(source).__name__} is not a source of images. Accepted: a tensor (image, channel, height, width), a "
            "Dataset or list of images, (image, label) or dicts, or a DataLoader."
        )


def _one(item: Any) -> tuple[Any, ...]:
    """An item as a batch of one."""
    image, label = _tensor(images_of(item)), labels_of(item)
    image = image[None] if image.ndim == 2 else image
    return (image[None], None if label is None else torch.as_tensor(label)[None])


def _part(batch: Any, as_given: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    images = _tensor(images_of(batch)).detach().cpu()
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise UserError(
            f"Images of shape {tuple(images.shape)} were given; (image, channel, height, width) is accepted."
        )
    labels, ids = labels_of(batch), ids_of(batch)
    images = images if as_given and images.is_floating_point() else raw(images)
    return images, None if labels is None else class_labels(labels, len(images)), ids


def _tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    if hasattr(image, "getbands"):  # a PIL image
        return pil_to_tensor(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    raise UserError(f"An image is a {type(image).__name__}; accepted: a tensor, an array or a PIL image.")


def raw(images: Tensor) -> Tensor:
    """Pixels as uint8. Raises UserError for values that are neither 0..255 integers nor floats in [0, 1]."""
    if images.dtype == torch.uint8:
        return images
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not images.is_floating_point():
        if low < 0 or high > 255:
            raise UserError(f"Integer images are in {low:g}..{high:g}; 0..255 is accepted.")
        return images.to(torch.uint8)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"The images are in {low:.3g}..{high:.3g}: they look normalized already, and CLIP needs raw images. Give "
            "raw images (uint8, or floats in [0, 1]), and the network's normalization as transform=."
        )
    return images.mul(255).round().to(torch.uint8)

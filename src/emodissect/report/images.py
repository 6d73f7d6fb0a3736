"""The images of a page, each stored once as a WebP tile, compressed to fit the page's byte budget."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from emodissect.data.images import ImageSet

#: Tile side in pixels and WebP quality, best first.
QUALITIES = ((48, 80), (48, 60), (48, 40), (48, 20), (32, 40), (32, 15), (24, 20), (16, 20))

#: Number of tiles on which the size at a quality is estimated first.
SAMPLE = 400


class ImagePool:
    """Collects the images that a page shows, then packs them.

    Args:
        budget: maximum size of all tiles in base64, in bytes; exceeded only where even the smallest tiles do not fit.
    """

    def __init__(self, budget: int = 6_500_000) -> None:
        self.budget = budget
        self._tiles: dict[int, UInt8[Tensor, "channel height width"]] = {}
        self._labels: dict[int, int] = {}
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def ids(self) -> list[int]:
        """The ids in the order of their tiles."""
        return list(self._tiles)

    def add(self, images: ImageSet, ids: Iterable[int]) -> None:
        """Add the images with these ids. Raises KeyError for an id that is not in the set."""
        wanted = [int(i) for i in dict.fromkeys(ids) if int(i) not in self._tiles]
        if not wanted:
            return
        rows = images.rows_of(torch.tensor(wanted, dtype=torch.int64))
        for image_id, row in zip(wanted, rows.tolist(), strict=True):
            self._place[image_id] = len(self._tiles)
            self._tiles[image_id] = images.images[row]
            self._labels[image_id] = int(images.labels[row])

    def index(self, image_id: int) -> int:
        """The index of the image's tile."""
        return self._place[int(image_id)]

    def label(self, image_id: int) -> int:
        """The image's true class."""
        return self._labels[int(image_id)]

    def tiles(self) -> list[str]:
        """The tiles as base64 WebP, at the best quality that fits the budget."""
        for side, quality in QUALITIES:
            if not self._tiles:
                return []
            squares = self._resized(side)
            last = (side, quality) == QUALITIES[-1]
            some = squares[:: max(len(squares) // SAMPLE, 1)]
            sampled = sum(len(_webp(square, quality)) for square in some)
            if not last and len(squares) > SAMPLE and sampled / len(some) * len(squares) > 0.98 * self.budget:
                continue
            with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as threads:  # the encoder releases the GIL
                found = list(threads.map(_webp, squares, repeat(quality)))
            if last or sum(map(len, found)) <= self.budget:
                return found
        raise AssertionError("the last quality is always taken")

    def _resized(self, side: int) -> UInt8[np.ndarray, "image height width channel"]:
        tiles = list(self._tiles.values())
        if len({tile.shape for tile in tiles}) == 1:
            return _squares(torch.stack(tiles), side)
        return np.concatenate([_squares(tile[None], side) for tile in tiles])


def _squares(
    images: UInt8[Tensor, "image channel height width"], side: int
) -> UInt8[np.ndarray, "image height width channel"]:
    """The images, no larger than ``side``, each centred on a black square."""
    height, width = images.shape[2:]
    longest = max(height, width)
    if longest > side:
        size = (max(round(height * side / longest), 1), max(round(width * side / longest), 1))
        images = functional.interpolate(images.float(), size, mode="area").round().clamp(0, 255).to(torch.uint8)
        height, width = size
    grown = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
    canvas = np.zeros((len(images), side, side, 3), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = grown.permute(0, 2, 3, 1).numpy()
    return canvas


def _webp(square: UInt8[np.ndarray, "height width channel"], quality: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(square).save(stream, "WEBP", quality=quality, method=2)
    return base64.b64encode(stream.getvalue()).decode()

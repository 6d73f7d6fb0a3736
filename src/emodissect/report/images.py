"""Each image of a page once: tiles on a few WebP sheets, as small as the page's budget asks for."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional

from emodissect.data.images import ImageSet
from emodissect.report.figures import save_png

COLUMNS = 32
PER_SHEET = COLUMNS * COLUMNS
#: Tile side in pixels and WebP quality, best first.
QUALITIES = ((48, 80), (48, 60), (48, 40), (48, 20), (32, 40), (32, 15), (24, 20), (16, 20))


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a ``data:`` address, e.g. of kind ``image/webp``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure_uri(figure: Figure, dpi: int = 160) -> str:
    """A figure as a PNG ``data:`` address."""
    with tempfile.TemporaryDirectory() as folder:
        return data_uri(save_png(figure, Path(folder) / "figure.png", dpi).read_bytes(), "image/png")


@dataclass(frozen=True)
class Tile:
    """Where an image stands: its sheet, and its place in per cent as CSS ``background-position`` wants it."""

    sheet: int
    left: float
    top: float
    across: int


class ImagePool:
    """Collects the images that a page shows, then packs them.

    Args:
        budget: bytes of the sheets as base64, at most (kept as far as the smallest tiles allow).
    """

    def __init__(self, budget: int = 7_000_000) -> None:
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
        """Ask for the images with these ids. Raises KeyError for an id that is not in the set."""
        wanted = [int(i) for i in dict.fromkeys(ids) if int(i) not in self._tiles]
        if not wanted:
            return
        rows = images.rows_of(torch.tensor(wanted, dtype=torch.int64))
        for image_id, row in zip(wanted, rows.tolist(), strict=True):
            self._place[image_id] = len(self._tiles)
            self._tiles[image_id] = images.images[row]
            self._labels[image_id] = int(images.labels[row])

    def index(self, image_id: int) -> int:
        """The number of the image's tile."""
        return self._place[int(image_id)]

    def label(self, image_id: int) -> int:
        """The image's true class."""
        return self._labels[int(image_id)]

    def tile(self, image_id: int) -> Tile:
        """Where the image stands."""
        at = self.index(image_id)
        sheet, rest = divmod(at, PER_SHEET)
        across, down = sheet_shape(min(len(self) - sheet * PER_SHEET, PER_SHEET))
        row, column = divmod(rest, across)
        left = 100 * column / (across - 1) if across > 1 else 0.0
        top = 100 * row / (down - 1) if down > 1 else 0.0
        return Tile(sheet, left, top, across)

    def sheets(self) -> list[str]:
        """The sheets as ``data:`` addresses, the best quality that the budget allows."""
        if not self._tiles:
            return []
        for side, quality in QUALITIES:
            tiles = self._resized(side)
            first = _webp(tiles[:PER_SHEET], quality)
            expected = len(first) * 4 / 3 * max(len(tiles) / PER_SHEET, 1.0)
            if expected > self.budget and (side, quality) != QUALITIES[-1]:
                continue
            parts = [first] + [
                _webp(tiles[at : at + PER_SHEET], quality) for at in range(PER_SHEET, len(tiles), PER_SHEET)
            ]
            if sum(map(len, parts)) * 4 / 3 <= self.budget or (side, quality) == QUALITIES[-1]:
                return [data_uri(part, "image/webp") for part in parts]
        raise AssertionError("the last quality is always taken")

    def _resized(self, side: int) -> UInt8[np.ndarray, "image height width channel"]:
        tiles = list(self._tiles.values())
        if len({tile.shape for tile in tiles}) == 1:
            return _squares(torch.stack(tiles), side)
        return np.concatenate([_squares(tile[None], side) for tile in tiles])


def sheet_shape(tiles: int) -> tuple[int, int]:
    """Columns and rows of a sheet with so many tiles."""
    across = min(COLUMNS, max(math.ceil(math.sqrt(tiles)), 1))
    return across, math.ceil(tiles / across)


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


def _webp(tiles: UInt8[np.ndarray, "image height width channel"], quality: int) -> bytes:
    across, down = sheet_shape(len(tiles))
    side = tiles.shape[1]
    canvas = np.zeros((down * across, side, side, 3), dtype=np.uint8)
    canvas[: len(tiles)] = tiles
    sheet = canvas.reshape(down, across, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(down * side, across * side, 3)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "WEBP", quality=quality, method=2)
    return stream.getvalue()

"""Images that stay in a file and are read in batches, for data sets larger than memory."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

_CHUNK = 64 * 2**20  # bytes read at once when iterating over a whole set


class ImageWriter:
    """Writes uint8 images of one shape to a NumPy file, one at a time.

    Args:
        path: the file, e.g. ``images.npy``.
        shape: of one image.
        count: the number of images that will be added.
    """

    def __init__(self, path: Path, shape: Sequence[int], count: int) -> None:
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by the with statement around the writer
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *map(int, shape))}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._blank = bytes(int(np.prod(shape)))

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, image: UInt8[Tensor, "channel height width"] | None) -> None:
        """Write the next image; None writes zeros."""
        self._file.write(self._blank if image is None else image.contiguous().numpy().data)


class StoredImages:
    """uint8 images in a file written by :class:`ImageWriter`; indexing reads the requested images into a tensor.

    It can be used like an image tensor: ``images[rows]``, ``images[:64]``, ``len``, ``shape``, ``split`` and ``to``
    work the same. Images are read from the file each time, by position, so any number of threads and worker processes
    may read; recent reads are in the system's file cache, and do not count as this process's memory.

    Args:
        path: the file.
        rows: which images, in which order; None for all.

    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "images.npy"
    >>> with ImageWriter(path, (1, 2, 2), count=3) as writer:
    ...     for shade in range(3):
    ...         writer.add(torch.full((1, 2, 2), shade, dtype=torch.uint8))
    >>> stored = StoredImages(path)
    >>> stored.shape, stored[[2, 0]][:, 0, 0, 0].tolist()
    (torch.Size([3, 1, 2, 2]), [2, 0])
    >>> stored.at(torch.tensor([2, 1]))[0].max()
    tensor(2, dtype=torch.uint8)
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 4

    def __init__(self, path: Path, rows: Int64[Tensor, " image"] | None = None) -> None:
        self._file = _ImageFile(path)
        self.rows = torch.arange(self._file.shape[0]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"StoredImages({self._file.path}, {' x '.join(map(str, self.shape))})"

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def shape(self) -> torch.Size:
        """(image, channel, height, width)."""
        return torch.Size((len(self.rows), *self._file.shape[1:]))

    def at(self, rows: Int64[Tensor, " kept"]) -> StoredImages:
        """The images at the given rows, in that order, without reading them."""
        kept = StoredImages.__new__(StoredImages)
        kept._file, kept.rows = self._file, self.rows[rows]
        return kept

    def joined(self, parts: Sequence[Tensor | StoredImages]) -> StoredImages | None:
        """Several selections of this file concatenated; None if one of them is not of this file."""
        rows = [part.rows for part in parts if isinstance(part, StoredImages) and part.path == self.path]
        if len(rows) != len(parts):
            return None
        kept = StoredImages.__new__(StoredImages)
        kept._file, kept.rows = self._file, torch.cat(rows)
        return kept

    def __getitem__(self, index: Any) -> UInt8[Tensor, "image channel height width"]:
        wanted = self.rows[index]
        read = self._file.read(wanted.reshape(-1).numpy())
        return read.reshape(*wanted.shape, *self._file.shape[1:])

    def __iter__(self) -> Iterator[UInt8[Tensor, "channel height width"]]:
        for chunk in self.chunks():
            yield from chunk

    def split(self, size: int) -> Iterator[UInt8[Tensor, "part channel height width"]]:
        """Parts of at most ``size`` images, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def chunks(self) -> Iterator[UInt8[Tensor, "part channel height width"]]:
        """All images in order, 64 MiB at a time."""
        return self.split(max(1, _CHUNK // max(1, int(np.prod(self._file.shape[1:])))))

    def to(self, *target: Any, **options: Any) -> Tensor:
        """All images as a tensor in memory, or on a device."""
        return self[:].to(*target, **options)


class _ImageFile:
    """A file that one or more :class:`StoredImages` share."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, kind = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        if kind != np.uint8:
            raise ValueError(f"{path} holds {kind}, not uint8 images")
        self._bytes = int(np.prod(self.shape[1:]))
        self._open_in: tuple[int, int] | None = None  # process and descriptor
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # for worker processes that are spawned
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def read(self, rows: np.ndarray) -> Tensor:
        """The images at these rows; adjacent rows are read at once."""
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        if not images.numel():
            return images
        view = images.numpy().reshape(-1).data
        starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])
        for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            part = view[first * self._bytes : end * self._bytes]
            self._read_into(part, self._start + int(rows[first]) * self._bytes)
        return images

    def _read_into(self, part: memoryview, place: int) -> None:
        while len(part):
            count = os.preadv(self._descriptor(), [part], place)
            if not count:
                raise OSError(f"{self.path} ends too early: it was changed while it was in use")
            part, place = part[count:], place + count

    def _descriptor(self) -> int:
        with self._lock:
            if self._open_in is None:
                descriptor = os.open(self.path, os.O_RDONLY)
                self._open_in = os.getpid(), descriptor
                weakref.finalize(self, os.close, descriptor)
            return self._open_in[1]

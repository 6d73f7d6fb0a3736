"""Files with all activations of a layer, for similarities that need more than the top images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError

_GIB = 2**30


class ActivationStore:
    """A ``.npy`` file of float32 activations (image, neuron), rows by ascending image id.

    Batches are appended in any order to a temporary file; :meth:`finish` sorts the rows by id, block by block, and
    renames the file, so that a file with the final name is always complete. Rows that are already in order are not
    moved.

    Args:
        path: the final file; its folder is created.
        images: expected number of rows, if known: the disk space for all of them is then checked at once.

    Raises:
        UserError: too little space on the disk.
    """

    def __init__(self, path: str | Path, neurons: int, images: int | None = None) -> None:
        self.path = Path(path)
        self.neurons = neurons
        self.path.parent.mkdir(parents=True, exist_ok=True)
        check_space(self.path.parent, 4 * neurons * (images or 0))
        self._unfinished = self.path.with_name(self.path.name + ".unfinished")
        self._ids: list[Tensor] = []
        self._file = open(self._unfinished, "wb")  # noqa: SIM115
        self._header(0)

    def append(self, ids: Int64[Tensor, " image"], values: Float[Tensor, "image neuron"]) -> None:
        """Write the rows of some new images."""
        check_space(self.path.parent, 4 * values.numel())
        self._file.write(np.ascontiguousarray(values.to("cpu", torch.float32).numpy()).data)
        self._ids.append(ids.cpu())

    def finish(self) -> Path:
        """Sort the rows, close the file and give it its final name."""
        ids = torch.cat(self._ids) if self._ids else torch.empty(0, dtype=torch.int64)
        self._file.seek(0)
        self._header(len(ids))
        self._file.close()
        ordered, order = ids.sort(stable=True)
        if not torch.equal(ordered, ids):
            self._unfinished = _rows_in_order([self._unfinished], order, self.path)
        os.replace(self._unfinished, self.path)
        return self.path

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def _header(self, images: int) -> None:
        # numpy pads the header, so that it can be overwritten with a longer first axis
        header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (images, self.neurons)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def scratch_dir(root: Path, name: str, owner: bool = True) -> Iterator[Path]:
    """Context manager: a folder for the stores of one recording, removed at the end; results are linked elsewhere then.

    A lock marks the recording as alive: folders of killed processes are removed by the next recording.

    Args:
        owner: False for further processes of the same recording; only the owner creates and removes the folder.
    """
    folder = root / name
    if not owner:
        yield folder
        return
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("*.lock"):
        with suppress(Timeout), FileLock(left, timeout=0):
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)
    lock = root / f"{name}.lock"
    with FileLock(lock):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def join_stores(parts: Sequence[Path], order: Int64[Tensor, " image"], path: Path) -> Path:
    """Join several stores into one: row i of the result is row ``order[i]`` of the concatenated parts."""
    os.replace(_rows_in_order(parts, order, path), path)
    return path


def open_values(path: str | Path) -> Float[Tensor, "image neuron"]:
    """The file's activations, memory-mapped: read from disk on use, never written back."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless ``folder`` has ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The activations need {needed / _GIB:.2f} GiB in {folder}, where {free / _GIB:.2f} GiB are free. "
            "Free some space, give another folder (paths.cache_dir=<folder>), use fewer probe images (probe.limit=<n>) "
            "or layers, or use a similarity that only needs the top images (similarity=soft_wpmi)."
        )


def _rows_in_order(parts: Sequence[Path], order: Tensor, path: Path) -> Path:
    sources = [np.load(part, mmap_mode="r") for part in parts]
    starts = np.cumsum([0, *(len(source) for source in sources)])
    check_space(path.parent, 4 * len(order) * sources[0].shape[1])
    target_path = path.with_name(path.name + ".ordered")
    shape = (len(order), sources[0].shape[1])
    target = np.lib.format.open_memmap(target_path, mode="w+", dtype=np.float32, shape=shape)
    block = max(1, 2**26 // (4 * shape[1]))  # 64 MiB at a time
    for start in range(0, len(order), block):
        rows = order[start : start + block].numpy()
        of = np.searchsorted(starts, rows, side="right") - 1
        for part, source in enumerate(sources):
            here = of == part
            target[start : start + block][here] = source[rows[here] - starts[part]]
    target.flush()
    del target, sources
    for read in parts:
        read.unlink()
    return target_path

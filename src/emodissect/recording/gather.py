"""Joining the recordings of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch import distributed as dist

from emodissect.core.errors import UserError
from emodissect.recording.activations import LayerActivations
from emodissect.recording.moments import Moments
from emodissect.recording.store import join_stores, open_values
from emodissect.recording.top_images import TopImages

T = TypeVar("T")


class LayerPart(NamedTuple):
    """One layer on one process's images, on the CPU; rows of ``values`` and of the file by ascending id."""

    top: TopImages
    moments: Moments
    values: Float[Tensor, "image neuron"] | None
    file: Path | None


class Part(NamedTuple):
    """One process's share."""

    ids: Int64[Tensor, " image"]
    layers: dict[str, LayerPart]


def several() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank; without torch.distributed, only its own."""
    if not several():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def own_share(shares: Sequence[tuple[Tensor, Tensor]], rank: int) -> tuple[Int64[Tensor, " row"], bool]:
    """Which of this process's images are not counted by another process.

    A distributed sampler repeats a few images to give all processes the same number; they are in the last batch. So an
    id in a last batch counts if it is in no process's earlier batches and in no lower rank's last batch. A process
    whose earlier images are all in lower ranks' earlier batches does not count (every process saw all images).

    Args:
        shares: for each process, the ids of its earlier batches and of its last batch.

    Returns:
        The rows of the last batch that count, and whether the earlier batches do.

    Raises:
        UserError: some but not all earlier images are shared; the same on every process.
    """
    counts: list[bool] = []
    taken: set[int] = set()
    for earlier, _ in shares:
        ids = set(earlier.tolist())
        shared = len(ids & taken)
        if 0 < shared < len(ids):
            raise UserError(
                f"Process {len(counts)} and those before it recorded {shared} of the same images, so moments cannot "
                "be joined. Give each its own share: torch.utils.data.DistributedSampler, or Lightning's."
            )
        counts.append(not shared)
        taken |= ids
    for other, (_, latest) in enumerate(shares):
        ids_of_latest = latest.tolist()
        if other == rank:
            rows = [row for row, image in enumerate(ids_of_latest) if image not in taken]
            return torch.tensor(rows, dtype=torch.int64), counts[rank]
        taken.update(ids_of_latest)
    raise ValueError(f"rank {rank} of {len(shares)}")


def join(
    parts: Sequence[Part], layers: Sequence[str], top_k: int, store_dir: Path | None
) -> dict[str, LayerActivations]:
    """Join the parts of all processes; each process does so itself, in the order of ranks, so that all agree.

    Files are joined by rank 0 while the others wait.
    """
    parts = [part for part in parts if len(part.ids)]
    if not parts:
        return {}
    ids, order = torch.cat([part.ids for part in parts]).sort()
    return {
        layer: _joined(layer, [part.layers[layer] for part in parts], ids, order, top_k, store_dir) for layer in layers
    }


def _joined(
    layer: str, parts: Sequence[LayerPart], ids: Tensor, order: Tensor, top_k: int, store_dir: Path | None
) -> LayerActivations:
    top, moments = TopImages(top_k), parts[0].moments
    for part in parts:
        top.merge(part.top)
    for part in parts[1:]:
        moments = moments.merge(part.moments)
    values = [part.values for part in parts if part.values is not None]
    files = [part.file for part in parts if part.file is not None]
    file = None
    if files and store_dir is not None:
        file = store_dir / f"{layer}.npy"
        if several():
            if dist.get_rank() == 0:
                join_stores(files, order, file)
            dist.barrier()
    if file:
        whole: Tensor | None = open_values(file)
    elif len(values) > 1:
        whole = torch.cat(values)[order]
    else:  # a single part is in order
        whole = values[0] if values else None
    return LayerActivations.joined(layer, ids, top, moments, whole, file)

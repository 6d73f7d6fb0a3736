"""Sets and batches of images with ids, labels and annotations."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from emodissect.core.spelling import clean_name
from emodissect.data.stored_images import StoredImages

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
"""Where worker processes place their batches on Linux."""

UNKNOWN_LABEL = -1
"""The label of an image of unknown class."""


class Batch(NamedTuple):
    """A batch of images with labels and ids; results are ordered by id."""

    images: UInt8[Tensor, "image channel height width"]
    labels: Int64[Tensor, " image"]
    ids: Int64[Tensor, " image"]


@dataclass(frozen=True)
class Annotations:
    """Presence of concepts in each image, annotated by people or known by construction.

    Attributes:
        names: the concepts, one per column.
        values: presence in [0, 1].
    """

    names: tuple[str, ...]
    values: Float[Tensor, "image concept"]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"{len(self.names)} names for annotations of shape {tuple(self.values.shape)}")


def rows_of(held: Int64[Tensor, " image"], wanted: Int64[Tensor, " wanted"]) -> tuple[Tensor, Tensor]:
    """The row of each wanted id among those held, and whether it is there.

    >>> rows_of(torch.tensor([7, 3]), torch.tensor([3, 4, 7]))
    (tensor([1, 0, 0]), tensor([ True, False,  True]))
    """
    if not len(held):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    ordered, order = held.sort()
    place = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
    return order[place], ordered[place] == wanted


@dataclass(frozen=True)
class ImageSet:
    """Images of one split as uint8 (or floats, for a user's own network).

    Attributes:
        images: grey or RGB pixels, 0..255; or floats as network input, which CLIP and reports cannot use. A tensor, or
            a file that is read in batches (``StoredImages``).
        labels: class index in the data set's class order, or ``UNKNOWN_LABEL``.
        ids: unique over all splits of the data set; results are ordered by them.
        annotations: kind -> annotations, e.g. ``presence`` (drawn faces) or ``votes`` (FER+).
    """

    images: UInt8[Tensor, "image channel height width"] | Float[Tensor, "image channel height width"] | StoredImages
    labels: Int64[Tensor, " image"]
    ids: Int64[Tensor, " image"]
    annotations: Mapping[str, Annotations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {
            len(self.images),
            len(self.labels),
            len(self.ids),
            *(len(a.values) for a in self.annotations.values()),
        }
        if len(lengths) != 1:
            raise ValueError(f"images, labels, ids and annotations differ in length: {sorted(lengths)}")
        if self.images.dtype != torch.uint8 and not self.images.dtype.is_floating_point:
            raise ValueError(f"images must be uint8, or floating-point network inputs, not {self.images.dtype}")
        if len(torch.unique(self.ids)) != len(self.ids):
            raise ValueError("image ids are not unique")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether the class of every image is known."""
        return not bool((self.labels == UNKNOWN_LABEL).any())

    def subset(self, rows: Int64[Tensor, " kept"] | Sequence[int]) -> ImageSet:
        """The images at the given rows, in that order; stored images stay on disk."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        kept = {kind: Annotations(a.names, a.values[index]) for kind, a in self.annotations.items()}
        images = self.images.at(index) if isinstance(self.images, StoredImages) else self.images[index]
        return ImageSet(images, self.labels[index], self.ids[index], kept)

    def rows_of(self, ids: Int64[Tensor, " wanted"]) -> Int64[Tensor, " wanted"]:
        """The row of each id. Raises KeyError for an id that is not in the set."""
        rows, known = rows_of(self.ids, ids)
        if not known.all():
            raise KeyError("an image id is not in this set")
        return rows

    def fingerprint(self) -> str:
        """SHA-256 of the content: pixels, labels and ids (not the annotations)."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (*self._in_chunks(), self.labels, self.ids):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def pixel_hashes(self) -> list[bytes]:
        """As :func:`pixel_hashes`, of all images."""
        return [found for part in self._in_chunks() for found in pixel_hashes(part)]

    def _in_chunks(self) -> Iterable[Tensor]:
        return self.images.chunks() if isinstance(self.images, StoredImages) else [self.images]

    def annotations_fingerprint(self) -> str:
        """SHA-256 of all annotations: kinds, names and values."""
        digest = hashlib.sha256()
        for kind, given in sorted(self.annotations.items()):
            digest.update(str((kind, given.names)).encode())
            digest.update(given.values.contiguous().numpy().data)
        return digest.hexdigest()


def pixel_hashes(images: Tensor) -> list[bytes]:
    """One hash per image: equal for equal pixels."""
    return [hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest() for image in images]


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set and its class names, in the order of the labels."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        # class names come from folders and files: control sequences are removed here
        object.__setattr__(self, "class_names", tuple(clean_name(str(name)) for name in self.class_names))


class _Rows(Dataset[Batch]):
    """A Dataset that returns whole batches by index, without collating single images."""

    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        index = torch.as_tensor(rows, dtype=torch.int64)
        kept = self.image_set
        if isinstance(kept.images, StoredImages):
            images = kept.images[index]
        else:  # several times faster than indexing
            images = kept.images.index_select(0, index.to(kept.images.device))
        return Batch(images, kept.labels[index], kept.ids[index])


class EpochShuffle(Sampler[int]):
    """A random order that depends only on seed and epoch, so that a resumed training sees the same order.

    Lightning sets the epoch; otherwise it increases with each pass.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        self.epoch += 1
        return iter(torch.randperm(self.count, generator=generator).tolist())


def _as_is(batch: Any) -> Any:
    return batch


def workers_that_fit(image_set: ImageSet, batch_size: int, wanted: int, where: Path = SHARED_MEMORY) -> int:
    """The number of worker processes whose batches fit into shared memory; warns if it is less than requested.

    A worker whose batch does not fit crashes or hangs. Each has two prefetched batches and the one in progress.
    """
    if not wanted or not where.is_dir() or not len(image_set):
        return wanted
    batch = batch_size * sum(part.numel() * part.element_size() for part in _Rows(image_set)[0])
    free = shutil.disk_usage(where).free
    fitting = int(min(free // (3 * batch), wanted))
    if fitting < wanted:
        log.warning(
            "%s has %.1f MB free, and the batches of %d workers take up to %.1f MB: data.num_workers=%d is used. "
            "Containers get more with docker run --shm-size=2g or --ipc=host.",
            *(where, free / 1e6, wanted, 3 * batch * wanted / 1e6, fitting),
        )
    return fitting


def image_loader(
    image_set: ImageSet, batch_size: int, shuffle: bool = False, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A DataLoader of :class:`Batch`; shuffled by torch's seed and the epoch, and usable with Lightning's DDP."""
    return DataLoader(
        _Rows(image_set),
        batch_size=batch_size,
        sampler=EpochShuffle(len(image_set), torch.initial_seed()) if shuffle else None,
        num_workers=workers_that_fit(image_set, batch_size, num_workers),
        collate_fn=_as_is,
        pin_memory=pin_memory,
    )

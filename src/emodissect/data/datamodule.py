"""The Lightning data module that every image source subclasses: splits, loaders, probe sets, audit."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int64
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from emodissect.core.cache import Cache
from emodissect.core.errors import UserError, nearest
from emodissect.data.audit import AuditReport, audit_splits
from emodissect.data.images import Annotations, Batch, ImageSet, Splits, image_loader
from emodissect.data.interventions import Interventions
from emodissect.data.stored_images import StoredImages

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class FaceDataModule(LightningDataModule):
    """Faces in memory as uint8, in three splits. A source of images is a subclass with its own :meth:`read`.

    Every batch is a :class:`~emodissect.data.images.Batch` cut whole out of the tensors by index, so no worker
    processes are needed, and each image carries its id.

    Args:
        cache_dir: the root of the content-keyed cache.
        class_names: the classes in the order of the labels.
        batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and probe passes.
        num_workers: worker processes; 0 is fastest for images in memory.
        audit: log the faults of the images when they are first read (:meth:`audit_report` has the list).
        clean: leave faulty images out of the training split and of every probe set; validation and test are never
            cut, so that figures stay comparable with published ones.
        on_device: keep the tensors on the trainer's device, so that no pixel is copied from the host in a step.
        fit_on: the images that training sees: ``train``, or ``train+val`` for a last fit after all choices are made.

    Raises:
        UserError: a batch size below 1, or an unknown ``fit_on``.
    """

    def __init__(
        self,
        *,
        cache_dir: str | Path,
        class_names: Sequence[str],
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        audit: bool = False,
        clean: bool = False,
        on_device: bool = False,
        fit_on: str = "train",
    ) -> None:
        super().__init__()
        for name, given in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if given < 1:
                raise UserError(f"data.{name}={given}: a batch holds at least one image.")
        _split_names(fit_on, "data.fit_on")
        self.cache = Cache(cache_dir)
        self.class_names = tuple(class_names)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.audit = audit
        self.clean = clean
        self.on_device = on_device
        self.fit_on = fit_on

    @abstractmethod
    def read(self) -> Splits:
        """All images of the source, uncleaned. Called once."""

    @cached_property
    def splits_as_read(self) -> Splits:
        """The splits before any cleaning."""
        splits = self.read()
        self.class_names = splits.class_names
        return splits

    @cached_property
    def splits(self) -> Splits:
        """The three splits, read on first use; the training split is cleaned where ``clean`` is set."""
        splits = self.splits_as_read
        if self.audit or self.clean:
            log.info("%s", self.audit_report.summary())
        if not self.clean:
            return splits
        train = self._without_faults("train")
        log.info("data.clean: %d of %d training images left out.", len(splits.train) - len(train), len(splits.train))
        return Splits(train, splits.val, splits.test, splits.class_names)

    def origin(self, ids: Int64[Tensor, " image"]) -> list[str]:
        """How a person finds each image: a file name where there is one."""
        return [f"row {i}" for i in ids.tolist()]

    @cached_property
    def audit_report(self) -> AuditReport:
        """Blank, corrupted, duplicate and leaked images of all three splits, as read; searched for once."""
        report = audit_splits(self.splits_as_read)
        report.table["origin"] = self.origin(torch.as_tensor(report.table["id"].to_numpy(dtype="int64", copy=True)))
        return report

    def interventions(self, seed: int = 0) -> Interventions | None:
        """Faces with one property changed at a time; None where the source cannot draw them."""
        return None

    def probe(self, split: str = "train", limit: int | None = None, seed: int = 0) -> ImageSet:
        """The images that neurons are dissected on: a split, or a part of it that keeps the classes' shares.

        Each class's images are put in a random order and image j of the n of a class is given the place j / n; the
        ``limit`` first places are taken. So every class is present from ``limit`` = number of classes on, its count
        is within one image of its share, and a smaller probe set is part of a larger one with the same seed.

        Args:
            split: ``train``, ``val``, ``test``, or several joined by ``+``.
            limit: the maximum number of images; all of them where None.
            seed: of the random order; the same images come out for the same seed on every machine.

        Raises:
            UserError: an unknown split, or a limit below 1.
        """
        names = _split_names(split, "the probe split")
        images = self._learnt_from(names)
        if limit is not None and limit < 1:
            raise UserError(f"probe.limit={limit}: a probe set holds at least one image; null takes all of them.")
        if limit is None or limit >= len(images):
            return images
        return images.subset(stratified_rows(images.labels, limit, seed))

    def evaluation_images(self, split: str) -> ImageSet:
        """The images that a network is evaluated on: ``train``, ``val``, ``test``, or several joined by ``+``.

        Validation and test stay whole where ``clean`` is set, so that figures are those of ``train.py``.

        Raises:
            UserError: an unknown split.
        """
        return joined([getattr(self.splits, name) for name in _split_names(split, "images to evaluate on")])

    @property
    def fitted_splits(self) -> tuple[str, ...]:
        """Names of the splits that training sees."""
        return tuple(_split_names(self.fit_on, "data.fit_on"))

    def fitted(self) -> ImageSet:
        """The images that training sees: those of ``fit_on``, where ``clean`` is set without the faulty ones."""
        return self._learnt_from(self.fitted_splits)

    def setup(self, stage: str | None = None) -> None:
        """Read the images, so that a fault in the source shows before the first epoch."""
        _ = self.splits

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the images that training sees."""
        return self._loader(self.fitted(), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in order."""
        return self._loader(self.splits.val, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in order."""
        return self._loader(self.splits.test, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test split in order."""
        return self.test_dataloader()

    def _loader(self, images: ImageSet, batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        if self.on_device and device.type != "cpu":
            # Worker processes cannot share an accelerator's tensors, and there is nothing left to prepare or pin.
            # The sampler stays a standard one, so DDP shards it as it shards any other.
            held = ImageSet(images.images.to(device), images.labels.to(device), images.ids.to(device))
            return image_loader(held, batch_size, shuffle=shuffle)
        return image_loader(images, batch_size, shuffle, self.num_workers, pin_memory=device.type == "cuda")

    def _learnt_from(self, names: Sequence[str]) -> ImageSet:
        _ = self.splits
        return joined([self._without_faults(name) if self.clean else getattr(self.splits, name) for name in names])

    def _without_faults(self, split: str) -> ImageSet:
        images: ImageSet = getattr(self.splits_as_read, split)
        faulty = torch.isin(images.ids, self.audit_report.to_drop(split))
        return images.subset(torch.nonzero(~faulty).flatten())


class PairsDataModule(LightningDataModule):
    """The images of a :class:`FaceDataModule` as ``(x, y)`` batches, for a user's own LightningModule.

    Args:
        preprocess: uint8 images to the network's input.
    """

    def __init__(self, data: FaceDataModule, preprocess: nn.Module, augment: nn.Module) -> None:
        super().__init__()
        self.data, self.class_names = data, data.class_names
        # in a tuple: no parameter of theirs belongs to this module
        self._steps = (preprocess, augment)

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.data.train_dataloader()

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.data.val_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Input and class, made on the network's device."""
        preprocess, augment = (step.to(batch.images.device) for step in self._steps)
        training = self.trainer is not None and self.trainer.training
        with torch.no_grad():
            return preprocess(augment(batch.images) if training else batch.images), batch.labels


def joined(parts: Sequence[ImageSet]) -> ImageSet:
    """Several image sets as one, in the order given; kinds of annotations that not all of them have are left out."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    annotations = {
        kind: Annotations(given.names, torch.cat([part.annotations[kind].values for part in parts]))
        for kind, given in first.annotations.items()
        if all(kind in part.annotations and part.annotations[kind].names == given.names for part in parts)
    }
    return ImageSet(
        joined_images([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.ids for part in parts]),
        annotations,
    )


def joined_images(parts: Sequence[Tensor | StoredImages]) -> Tensor | StoredImages:
    """The images of several sets; those of one file stay in it."""
    stored = parts[0].joined(parts) if isinstance(parts[0], StoredImages) else None
    return torch.cat([part[:] for part in parts]) if stored is None else stored


def probe_of(data: FaceDataModule, split: str = "train", limit: int | None = None, seed: int = 0) -> ImageSet:
    """:meth:`FaceDataModule.probe` as a function, which a config can give to a callback."""
    return data.probe(split, limit, seed)


def stratified_rows(labels: Int64[Tensor, " image"], limit: int, seed: int) -> Int64[Tensor, " kept"]:
    """``limit`` rows, ascending, in which every class keeps its share within one image; see FaceDataModule.probe."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    ordered = labels[by_class]
    place = (torch.arange(len(labels)) - starts[ordered]).double() / counts[ordered].double()
    return by_class[torch.argsort(place, stable=True)[:limit]].sort().values


def _split_names(split: str, what: str) -> list[str]:
    names = [name.strip() for name in str(split).split("+")]
    for name in names:
        if name not in SPLITS:
            raise UserError(f"'{split}' was given as {what}. {nearest(name, SPLITS)} Several are joined by '+'.")
    if len(set(names)) != len(names):
        raise UserError(f"'{split}' was given as {what}: a split is named twice.")
    return names

"""The base LightningDataModule of all image sources: splits, loaders, probe sets, audit."""

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
    """Faces in memory as uint8, in three splits. Image sources are subclasses that implement :meth:`read`.

    Every batch is a :class:`~emodissect.data.images.Batch` indexed from the tensors at once, so no worker processes
    are needed; each image has an id.

    Args:
        cache_dir: root of the cache.
        class_names: the classes in the order of the labels.
        batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and probe passes.
        num_workers: worker processes; 0 is fastest for images in memory.
        audit: log the faults of the images when they are first read (:meth:`audit_report` has the list).
        clean: exclude faulty images from the training split and from probe sets; validation and test stay complete, so
            that results are comparable with published ones.
        on_device: keep the tensors on the trainer's device, so that no pixels are copied from the host in a step.
        fit_on: the training images: ``train``, or ``train+val`` for a final fit after all choices are made.

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
                raise UserError(f"data.{name}={given}: must be an integer >= 1.")
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
        """Read all images of the source, without cleaning; called once."""

    @cached_property
    def splits_as_read(self) -> Splits:
        """The splits before any cleaning."""
        splits = self.read()
        self.class_names = splits.class_names
        return splits

    @cached_property
    def splits(self) -> Splits:
        """The three splits, read on first use; with ``clean``, the training split is cleaned."""
        splits = self.splits_as_read
        if self.audit or self.clean:
            log.info("%s", self.audit_report.summary())
        if not self.clean:
            return splits
        train = self._without_faults("train")
        log.info(
            "data.clean: %d of %d training images are excluded.", len(splits.train) - len(train), len(splits.train)
        )
        return Splits(train, splits.val, splits.test, splits.class_names)

    def origin(self, ids: Int64[Tensor, " image"]) -> list[str]:
        """A human-readable origin of each image: a file name if there is one."""
        return [f"row {i}" for i in ids.tolist()]

    @cached_property
    def audit_report(self) -> AuditReport:
        """The audit of all three splits, before cleaning; computed once."""
        report = audit_splits(self.splits_as_read)
        report.table["origin"] = self.origin(torch.as_tensor(report.table["id"].to_numpy(dtype="int64", copy=True)))
        return report

    def interventions(self, seed: int = 0) -> Interventions | None:
        """Faces with one property changed at a time; None if the source cannot draw them."""
        return None

    def probe(self, split: str = "train", limit: int | None = None, seed: int = 0) -> ImageSet:
        """The images that neurons are dissected on: a split, or a stratified subset of it.

        Each class's images are shuffled, image j of a class of n gets the position j / n, and the first ``limit``
        positions are taken. So every class is present if ``limit`` is at least the number of classes, its count is
        within one image of its share, and smaller probe sets are subsets of larger ones with the same seed.

        Args:
            split: ``train``, ``val``, ``test``, or several joined by ``+``.
            limit: maximum number of images; None for all.
            seed: of the shuffling; gives the same images on every machine.

        Raises:
            UserError: an unknown split, or a limit below 1.
        """
        names = _split_names(split, "the probe split")
        images = self._learnt_from(names)
        if limit is not None and limit < 1:
            raise UserError(f"probe.limit={limit}: must be an integer >= 1, or null for all images.")
        if limit is None or limit >= len(images):
            return images
        return images.subset(stratified_rows(images.labels, limit, seed))

    def evaluation_images(self, split: str) -> ImageSet:
        """The images that a network is evaluated on: ``train``, ``val``, ``test``, or several joined by ``+``.

        Validation and test stay complete even with ``clean``, so that metrics equal those of ``train.py``.

        Raises:
            UserError: an unknown split.
        """
        return joined([getattr(self.splits, name) for name in _split_names(split, "images to evaluate on")])

    @property
    def fitted_splits(self) -> tuple[str, ...]:
        """Names of the training splits."""
        return tuple(_split_names(self.fit_on, "data.fit_on"))

    def fitted(self) -> ImageSet:
        """The training images: those of ``fit_on``, with ``clean`` without the faulty ones."""
        return self._learnt_from(self.fitted_splits)

    def setup(self, stage: str | None = None) -> None:
        """Read the images, so that a fault in the source is reported before the first epoch."""
        _ = self.splits

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training images."""
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
            # worker processes cannot share an accelerator's tensors, and there is nothing to prepare or pin;
            # the sampler is a standard one, so DDP shards it as usual
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
        # in a tuple, so that they are not registered as submodules
        self._steps = (preprocess, augment)

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.data.train_dataloader()

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.data.val_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Network inputs and class indices, computed on the network's device."""
        preprocess, augment = (step.to(batch.images.device) for step in self._steps)
        training = self.trainer is not None and self.trainer.training
        with torch.no_grad():
            return preprocess(augment(batch.images) if training else batch.images), batch.labels


def joined(parts: Sequence[ImageSet]) -> ImageSet:
    """Several image sets concatenated; kinds of annotations that not all of them have are dropped."""
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
    """The images of several sets concatenated; stored images of one file stay on disk."""
    stored = parts[0].joined(parts) if isinstance(parts[0], StoredImages) else None
    return torch.cat([part[:] for part in parts]) if stored is None else stored


def probe_of(data: FaceDataModule, split: str = "train", limit: int | None = None, seed: int = 0) -> ImageSet:
    """:meth:`FaceDataModule.probe` as a function, for use in configs of callbacks."""
    return data.probe(split, limit, seed)


def stratified_rows(labels: Int64[Tensor, " image"], limit: int, seed: int) -> Int64[Tensor, " kept"]:
    """``limit`` stratified rows, ascending; see :meth:`FaceDataModule.probe`."""
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

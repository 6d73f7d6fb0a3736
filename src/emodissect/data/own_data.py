"""A user's own LightningDataModule as the image source of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from emodissect.core.errors import UserError
from emodissect.data.datamodule import FaceDataModule
from emodissect.data.image_source import image_set
from emodissect.data.images import ImageSet, Splits

_LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}


class OwnData(FaceDataModule):
    """Reads the datasets of a LightningDataModule's three loaders once, raw and in order.

    Images must be raw (uint8, floats in [0, 1] or PIL images), since CLIP needs them and augmentation comes later:
    leave normalization to ``model.preprocess``, and random transforms to ``augment``.

    Args:
        datamodule: its ``prepare_data`` and ``setup`` are called.
        **loading: arguments of :class:`FaceDataModule`.

    Raises:
        UserError: not a LightningDataModule, a missing loader, images that are not raw, or items without labels.
    """

    def __init__(
        self,
        datamodule: LightningDataModule,
        *,
        cache_dir: str | Path,
        class_names: Sequence[str],
        size: int | None = None,
        channels: int = 3,
        **loading: Any,
    ) -> None:
        super().__init__(cache_dir=cache_dir, class_names=class_names, **loading)
        if not isinstance(datamodule, LightningDataModule):
            raise UserError(f"data.datamodule is a {type(datamodule).__name__}, not a LightningDataModule.")
        self.own = datamodule

    def read(self) -> Splits:
        self.own.prepare_data()
        for stage in ("fit", "test"):
            self.own.setup(stage)
        splits: list[ImageSet] = []
        for name, method in _LOADERS.items():
            given = self._read(name, method)
            first = sum(len(split) for split in splits)  # ids are unique over all splits
            splits.append(replace(given, ids=given.ids.argsort().argsort() + first))
        train, val, test = splits
        return Splits(train, val, test, tuple(self.class_names))

    def _read(self, name: str, method: str) -> ImageSet:
        owner = type(self.own).__name__
        try:
            loader = getattr(self.own, method)()
        except Exception as error:  # a user's module may raise anything
            raise UserError(f"{owner}.{method}() gives no {name} images: {error or type(error).__name__}.") from error
        loader = loader[0] if isinstance(loader, list | tuple) else loader
        images = image_set(getattr(loader, "dataset", loader))
        if not images.labelled:
            raise UserError(f"{owner}.{method}() gives {name} images without labels; (image, label) pairs are needed.")
        highest = int(images.labels.max())
        if highest >= len(self.class_names):
            raise UserError(
                f"Labels of {owner} go up to {highest}, and data.class_names has {len(self.class_names)} names: name "
                "one class per label, in the order of the labels."
            )
        return images

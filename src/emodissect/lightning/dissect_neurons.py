"""Callbacks for any LightningModule: record activations while it predicts, label neurons while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from emodissect.concepts import Scorer
from emodissect.core.errors import UserError
from emodissect.data.batches import class_labels, images_of, labels_of, placed_ids
from emodissect.data.image_source import class_names_of, image_set
from emodissect.data.images import UNKNOWN_LABEL, ImageSet
from emodissect.dissection.dissect import Concepts, Labeller, record_layers
from emodissect.dissection.labels import REFERENCE_LEVEL, Dissection, Labelling
from emodissect.lightning.tracking import dissection_metrics, finite, log_dissection
from emodissect.models.network_input import NetworkInput, Transform
from emodissect.recording import ActivationCollector, LayerActivations, resolve_layers
from emodissect.recording.pooling import ChannelsLast
from emodissect.similarity import Similarity


def part_of(module: LightningModule, root: str) -> nn.Module:
    """The module that layer paths are relative to: the LightningModule itself, or its submodule ``root``."""
    try:
        return module.get_submodule(root)
    except AttributeError as error:
        raise UserError(f"root={root!r}: {type(module).__name__} has no submodule of that path.") from error


class RecordActivations(Callback):
    """Records layers of any LightningModule during ``trainer.predict``.

    Rows are ordered by the batches' image ids; images without ids are numbered in the order of the loader.

    Args:
        layers: module paths, globs, or ``all``.
        root: the submodule that paths are relative to; empty for the module itself.
        pool: how positions of a layer's output are pooled, see :func:`emodissect.recording.pooling.pooled`.
        top_k: images kept per neuron.
        keep_values: also keep all activations, memory-mapped in ``store_dir`` if given.
        images: expected number of images, so that insufficient disk space is reported before the first batch.
        channels_last: whether 4-D outputs have the neurons on the last axis: auto, true or false.

    Attributes:
        activations: layer -> activations, after predicting; the same on every rank.
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        *,
        root: str = "",
        pool: str = "avg",
        top_k: int = 100,
        keep_values: bool = False,
        store_dir: Path | None = None,
        images: int | None = None,
        channels_last: ChannelsLast = "auto",
    ) -> None:
        self.layers, self.root = layers, root
        self.pool, self.channels_last = pool, channels_last
        self._kept = {"keep_values": keep_values, "store_dir": store_dir, "images": images}
        self.top_k = top_k
        self.activations: dict[str, LayerActivations] = {}
        self._collector: ActivationCollector | None = None
        self._seen = 0

    def collector(self) -> ActivationCollector:
        """A new collector for a predict pass."""
        return ActivationCollector(
            self.layers,
            self.pool,
            self.top_k,
            channels_last=self.channels_last,
            **self._kept,  # type: ignore[arg-type]
        )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collector, self._seen = self.collector(), 0
        self._collector.attach(part_of(pl_module, self.root))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._collector is not None
        ids = placed_ids(batch, len(images_of(batch)), self._seen, trainer.global_rank, trainer.world_size)
        self._seen += len(ids)
        self._collector.update(ids)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._collector is not None
        self._collector.detach()
        self.activations = self._collector.result()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._collector is not None:
            self._collector.detach()
            self._collector.discard()


class DissectNeurons(RecordActivations):
    """Labels the neurons of any LightningModule: every n epochs of a fit and at its end, or after ``trainer.predict``.

    Training stays bit-identical: the network runs in evaluation mode without gradients, all random generators are
    restored, and BatchNorm statistics do not change. Metrics per layer (``dissect/<layer>/<metric>``) go through
    ``pl_module.log``, so that EarlyStopping and ModelCheckpoint can monitor them; tables and images go to the loggers.

    Args:
        layers: a module path, a glob, a list of these, or ``all``, relative to the module.
        concepts: a list of names, ``{name: [classes]}``, a file, or a concept set.
        images: the probe set, in any form that :func:`emodissect.dissect` accepts, or a function that returns it, given
            the datamodule. None: the validation set in a fit, the predicted images in a predict.
        every_n_epochs: 0 dissects only at the end of the fit.
        root: the submodule that paths are relative to; empty for the module itself.
        transform, clip, scorer, similarity, labels, class_names, tau, level, null_draws, top_images, pool,
            channels_last, seed, batch_size, cache_dir, progress: as in :func:`emodissect.dissect`.
        keep_values, store_dir: as in :class:`RecordActivations`.

    Attributes:
        dissection: the latest labels.
        probe: the images used for labelling.

    Example:
        >>> callback = DissectNeurons("layer4", ["smile", "frown"], clip="tiny", every_n_epochs=5)
        >>> callback.dissection is None
        True
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        concepts: Concepts,
        images: Any = None,
        *,
        every_n_epochs: int = 1,
        root: str = "",
        transform: Transform | None = None,
        clip: Any = "ViT-B-16",
        scorer: Scorer | Tensor | Any | None = None,
        similarity: str | Similarity = "soft_wpmi",
        labels: Any = None,
        class_names: Sequence[str] | None = None,
        tau: float = 0.0,
        level: float = REFERENCE_LEVEL,
        null_draws: int = 1000,
        top_images: int = 10,
        pool: str = "avg",
        channels_last: ChannelsLast = "auto",
        seed: int = 0,
        batch_size: int = 256,
        cache_dir: str | Path | None = None,
        progress: bool = False,
        keep_values: bool = False,
        store_dir: Path | None = None,
    ) -> None:
        super().__init__(
            layers, root=root, pool=pool, channels_last=channels_last, keep_values=keep_values, store_dir=store_dir
        )
        self.labeller = Labeller(
            concepts,
            clip=clip,
            scorer=scorer,
            similarity=similarity,
            labelling=Labelling(null_draws, top_images, seed),
            tau=tau,
            level=level,
            cache_dir=cache_dir,
            progress=progress,
        )
        self.images, self.labels, self.class_names = images, labels, class_names
        self.transform, self.batch_size, self.every_n_epochs = transform, batch_size, every_n_epochs
        self.dissection: Dissection | None = None
        self.probe: ImageSet | None = None
        self._names: Sequence[str] = ()
        self._inputs: NetworkInput | None = None
        self._given: ImageSet | None = None
        self._last_epoch = -1
        self._predicted: list[tuple[Tensor, Tensor]] = []

    # -- while fitting -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before any training, so that a misspelt layer or concept fails fast
        resolve_layers(part_of(pl_module, self.root), self.layers)
        with torch.random.fork_rng():
            self._given, self._names = self._probe_of(trainer)
            self.probe = self.labeller.shown(self._given)
            self.labeller.check(self.probe, self._names)
            self._inputs = NetworkInput(pl_module, self.transform, self._given.images[:2])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._due(trainer):
            self._dissect(trainer, pl_module)
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due(trainer) and self._last_epoch != trainer.current_epoch:  # an epoch without validation
            self._dissect(trainer, pl_module)
            self._log(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_epoch < trainer.current_epoch - 1:
            self._dissect(trainer, pl_module, metrics=True)

    def _due(self, trainer: Trainer) -> bool:
        return bool(self.every_n_epochs) and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _dissect(self, trainer: Trainer, pl_module: LightningModule, metrics: bool = False) -> None:
        assert self._given is not None
        assert self.probe is not None
        root = part_of(pl_module, self.root)
        activations = record_layers(
            pl_module,
            self.labeller.collector(resolve_layers(root, self.layers), self.pool, self.channels_last),
            self._given.subset(range(trainer.global_rank, len(self._given), trainer.world_size)),
            self._inputs,
            self.batch_size,
            context=trainer.precision_plugin.forward_context(),
            root=root,
        )
        with torch.random.fork_rng():
            self.dissection = self.labeller.label(activations, self.probe, self._names)
        self._last_epoch = trainer.current_epoch
        if trainer.is_global_zero:
            log_dissection(
                trainer.loggers, self.dissection, self.probe, self._names, step=trainer.global_step, metrics=metrics
            )

    def _log(self, pl_module: LightningModule) -> None:
        assert self.dissection is not None
        # all ranks have the same labels, so there is nothing to synchronize
        pl_module.log_dict(finite(dissection_metrics(self.dissection)), rank_zero_only=False, batch_size=1)

    def _probe_of(self, trainer: Trainer) -> tuple[ImageSet, Sequence[str]]:
        """The probe images as given, and the class names."""
        data: LightningDataModule | None = getattr(trainer, "datamodule", None)
        source = self.images(data) if callable(self.images) else self.images
        if source is None:
            # Lightning has no public access to the original loaders, before a distributed sampler is inserted
            validation = trainer.fit_loop.epoch_loop.val_loop._data_source
            source = validation.dataloader() if validation.is_defined() else None
            source = next(iter(source), None) if isinstance(source, list | tuple) else source
        if source is None:
            raise UserError(
                "DissectNeurons(images=None) takes its probe images from the validation set, and there is none. "
                "Give images=<a tensor, Dataset or DataLoader of raw images>."
            )
        named = self.class_names or getattr(data, "class_names", None) or class_names_of(source)
        return image_set(source, self.labels, as_given=True), tuple(named)

    # -- while predicting ----------------------------------------------------------------------------------------------

    def collector(self) -> ActivationCollector:
        kept = {name: value for name, value in self._kept.items() if value}
        return self.labeller.collector(self.layers, self.pool, self.channels_last, **kept)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predicted = []
        if self.images is not None:
            self._given, self._names = self._probe_of(trainer)
            self.probe = self.labeller.shown(self._given)
            self.labeller.check(self.probe, self._names)
            self._kept["images"] = len(self._given)
        elif trainer.world_size > 1:
            raise UserError("DissectNeurons(images=None) predicts in one process only; give images= for several.")
        super().on_predict_start(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self.images is None:
            images, labels = images_of(batch), labels_of(batch)
            known = torch.full((len(images),), UNKNOWN_LABEL) if labels is None else class_labels(labels, len(images))
            self._predicted.append((images.cpu(), known))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        if self.images is None:
            pixels, labels = (torch.cat(parts) for parts in zip(*self._predicted, strict=True))
            ids = next(iter(self.activations.values())).ids
            self._predicted = []
            given = ImageSet(pixels, labels if self.labels is None else class_labels(self.labels, len(pixels)), ids)
            self.probe, self._names = self.labeller.shown(given), self.class_names or self._classes(trainer)
        assert self.probe is not None
        self.dissection = self.labeller.label(self.activations, self.probe, self._names)

    def _classes(self, trainer: Trainer) -> Sequence[str]:
        data = getattr(trainer, "datamodule", None)
        return getattr(data, "class_names", None) or class_names_of(trainer.predict_dataloaders)

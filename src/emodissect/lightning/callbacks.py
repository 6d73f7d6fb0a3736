"""Lightning callbacks: activations while predicting, neuron labels while training, the edit's accuracy deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from emodissect.concepts import Scorer
from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.datamodule import FaceDataModule
from emodissect.data.images import Batch, image_loader
from emodissect.dissection.labels import Dissection, Labelling, label_neurons
from emodissect.editing.edit import Edit, edited
from emodissect.lightning.tracking import edit_metrics, log_dissection, log_metrics
from emodissect.models.predictions import Predictions
from emodissect.recording import ActivationCollector, LayerActivations, resolve_layers
from emodissect.recording.pooling import ChannelsLast
from emodissect.similarity import Similarity
from emodissect.studies.comparison import Comparison, compare


def network_of(module: LightningModule) -> nn.Module:
    """The network whose layers are named. Raises UserError for a module that holds none."""
    network = getattr(module, "network", None)
    if not isinstance(network, nn.Module):
        raise UserError(f"{type(module).__name__} has no `network`: give the nn.Module to dissect under that name.")
    return network


def single_view(module: LightningModule) -> Callable[[Tensor], Tensor]:
    """The forward pass with one view an image, so that each image has one row of activations."""
    return getattr(module, "single_view", module)


class LogLearningRate(Callback):
    """Logs the first parameter group's learning rate as ``train/lr`` at each epoch's start."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.loggers:
            pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"])


class SeedEpochs(Callback):
    """Seeds torch anew in each epoch by the run's seed and the epoch, so that a resumed training draws the same.

    Args:
        seed: the run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed(hash((self.seed, trainer.current_epoch, trainer.global_rank)))


class RecordActivations(Callback):
    """Records layers of the network during ``trainer.predict``; rows are placed by the batches' image ids.

    Args:
        layers: module paths in the network.
        pool: how positions of a layer's output are pooled, see ``emodissect.recording``.
        top_k: images kept for each neuron.
        keep_values: also keep every activation, memory-mapped under ``store_dir``.
        images: how many there will be, so that a full disk is told before the first.
        channels_last: whether 4-D outputs hold the neurons on the last axis: auto, true or false.

    Attributes:
        activations: by layer, once predicting ended; the same on every rank.
    """

    def __init__(
        self,
        layers: Sequence[str],
        pool: str = "avg",
        top_k: int = 100,
        keep_values: bool = False,
        store_dir: Path | None = None,
        images: int | None = None,
        channels_last: ChannelsLast = "auto",
    ) -> None:
        self.collector = ActivationCollector(
            list(layers),
            pool=pool,
            top_k=top_k,
            keep_values=keep_values,
            store_dir=store_dir,
            images=images,
            channels_last=channels_last,
        )
        self.activations: dict[str, LayerActivations] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.collector.attach(network_of(pl_module))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.collector.update(batch.ids)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.collector.detach()
        self.activations = self.collector.result()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.collector.detach()
        self.collector.discard()


class DissectNeurons(Callback):
    """Labels neurons every n epochs and at the end of a fit, and logs labels, counts and accuracy by layer.

    The training is left bit-identical: the network runs in evaluation mode without gradients, every random generator
    is put back where it was, and no BatchNorm statistic moves.

    Args:
        layers: a module path, a glob, a list of these, or ``all``.
        concepts: the words.
        scorer: how strongly each is present in each probe image.
        similarity: neuron against concept.
        probe: ``split``, ``limit``, ``top_images``, ``null_draws`` and ``batch_size`` as in conf/base.yaml.
        pool, channels_last: how positions of a layer's output are pooled.
        tau, level: when a label counts, see :class:`emodissect.dissection.labels.Dissection`.
        seed: of the null's draws and of a limited probe set.
        cache_dir: where concept scores are kept.
        every_n_epochs: 0 dissects only at the end of the fit.

    Attributes:
        dissection: the latest labels.
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        concepts: ConceptSet,
        scorer: Scorer,
        similarity: Similarity,
        probe: Mapping[str, Any],
        cache_dir: str,
        *,
        pool: str = "avg",
        channels_last: ChannelsLast = "auto",
        tau: float = 0.0,
        level: float = 0.05,
        seed: int = 0,
        every_n_epochs: int = 1,
    ) -> None:
        self.layers, self.pool, self.channels_last = layers, pool, channels_last
        self.concepts, self.scorer, self.similarity = concepts, scorer, similarity
        self.probe = dict(probe)
        self.labelling = Labelling(self.probe["null_draws"], self.probe["top_images"], seed)
        self.tau, self.level = tau, level
        self.cache = Cache(cache_dir)
        self.every_n_epochs = every_n_epochs
        self.dissection: Dissection | None = None
        self._last_epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # before any training: a misspelt layer or concept must not cost an epoch
        resolve_layers(network_of(pl_module), self.layers)
        self.concepts.class_mask(self._data(trainer).class_names)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._dissect(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_epoch != trainer.current_epoch - 1:
            self._dissect(trainer, pl_module)

    def _data(self, trainer: Trainer) -> FaceDataModule:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, FaceDataModule):
            raise UserError(
                "DissectNeurons takes its probe images from the trainer's FaceDataModule: pass datamodule=."
            )
        return data

    def _dissect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = self._data(trainer)
        images = data.probe(self.probe["split"], self.probe["limit"], self.labelling.seed)
        network = network_of(pl_module)
        collector = ActivationCollector(
            resolve_layers(network, self.layers),
            pool=self.pool,
            channels_last=self.channels_last,
            top_k=max(getattr(self.similarity, "top_k", None) or 0, self.labelling.top_images),
            keep_values=self.similarity.needs_values,
        )
        was_training = {name: module.training for name, module in pl_module.named_modules()}
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        shard = images.subset(range(trainer.global_rank, len(images), trainer.world_size))
        with torch.random.fork_rng(devices), torch.inference_mode(), trainer.precision_plugin.forward_context():
            pl_module.eval()
            try:
                with collector.on(network):
                    for batch in image_loader(shard, self.probe["batch_size"]):
                        single_view(pl_module)(batch.images.to(pl_module.device))
                        collector.update(batch.ids)
            finally:
                for name, module in pl_module.named_modules():
                    module.training = was_training[name]
            scores = self.scorer.score(images, self.concepts, data.class_names, self.cache)
            self.dissection = label_neurons(
                collector.result(),
                scores,
                self.similarity,
                images,
                self.concepts,
                data.class_names,
                self.labelling,
            ).at(self.tau, self.level)
        self._last_epoch = trainer.current_epoch
        if trainer.is_global_zero:
            log_dissection(trainer.loggers, self.dissection, images, data.class_names, step=trainer.global_step)


class LogEdit(Callback):
    """Evaluates an edit beside the unedited network in a validation or test loop, and logs the accuracy delta.

    Every batch is seen twice, as it is and inside ``edited``; the weights are put back to the
    last bit after each. Logged as ``edit/<stage>/<figure>``: accuracy before and after, delta with its interval, flips
    both ways and the exact McNemar p-value.

    Args:
        edits: applied one after the other.

    Attributes:
        comparison: of the last loop that ended.
    """

    def __init__(self, *edits: Edit) -> None:
        self.edits = edits
        self.comparison: Comparison | None = None
        self._seen: list[tuple[Tensor, ...]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._see(pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._see(pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._compare(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare(trainer, "test")

    def _see(self, module: LightningModule, batch: Batch) -> None:
        before = module(batch.images)
        with edited(network_of(module), *self.edits):
            after = module(batch.images)
        self._seen.append(tuple(part.detach().cpu() for part in (batch.ids, batch.labels, before, after)))

    def _compare(self, trainer: Trainer, stage: str) -> None:
        ids, labels, before, after = (torch.cat(parts) for parts in zip(*gathered(self._seen), strict=True))
        self.comparison = compare(
            Predictions.placed(ids, labels, before),
            Predictions.placed(ids, labels, after),
        )
        if trainer.is_global_zero:
            log_metrics(trainer.loggers, edit_metrics(self.comparison, stage), step=trainer.global_step)


def gathered(rows: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The rows of all ranks of a distributed run, in rank order; the rows themselves in a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]

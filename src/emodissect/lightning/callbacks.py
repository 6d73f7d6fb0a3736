"""Small callbacks for training: logging the learning rate, seeding each epoch, the progress bar."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from emodissect.models.network_output import logits_of


class LogLearningRate(Callback):
    """Logs the first parameter group's learning rate as ``train/lr`` at the start of each epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.loggers:
            pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"])


class SeedEpochs(Callback):
    """Seeds torch in each epoch from the run's seed and the epoch, so that a resumed training is reproducible."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed(hash((self.seed, trainer.current_epoch, trainer.global_rank)))


class LogAccuracy(Callback):
    """Logs ``val/acc`` of a user-defined LightningModule, so that ModelCheckpoint can monitor it."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, labels = batch
        with trainer.precision_plugin.forward_context():
            right = logits_of(pl_module, images).argmax(1) == labels
        pl_module.log("val/acc", right.float().mean(), batch_size=len(labels), sync_dist=True)


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the logger's version, which for W&B is a random id."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics shown after the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

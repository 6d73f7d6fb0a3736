"""The metrics that a training logs are kept by epoch and stored in its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from emodissect.lightning.epoch_history import EpochHistory


class Count(LightningModule):
    """Logs the epoch number as both metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        self.log("train/loss", float(self.current_epoch), on_step=False, on_epoch=True)
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/acc", float(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class TellLoggers(Callback):
    """Sends a value to the loggers as DissectNeurons does: without an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"dissect/lin2/proportion": trainer.current_epoch / 10}, step=trainer.global_step)


def fitted(folder: Path, epochs: int, ckpt_path: str | None = None) -> pd.DataFrame:
    """The history of a fit that validates every second epoch and saves its last state in ``folder``."""
    history = EpochHistory()
    keeper = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=[history.logger],
        callbacks=[TellLoggers(), history, keeper],
        check_val_every_n_epoch=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    trainer.fit(Count(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return history.frame()


def test_each_figure_stands_in_its_epoch_and_no_epoch_borrows_anothers(tmp_path: Path) -> None:
    expected = pd.DataFrame(
        {
            "epoch": [0, 1, 2, 3],
            "dissect/lin2/proportion": [0.0, 0.1, 0.2, 0.3],
            "train/loss": [0.0, 1.0, 2.0, 3.0],
            "val/acc": [None, 1.0, None, 3.0],
        }
    )
    found = fitted(tmp_path, 4)
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_dtype=False)


def test_a_resumed_training_has_the_epochs_before_it(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", 4)
    fitted(tmp_path / "half", 2)
    resumed = fitted(tmp_path / "half", 4, str(tmp_path / "half" / "last.ckpt"))
    pd.testing.assert_frame_equal(resumed, whole, check_like=True)


def test_without_an_epoch_there_is_an_empty_frame_that_can_be_read_back(tmp_path: Path) -> None:
    EpochHistory().frame().to_csv(tmp_path / "history.csv", index=False)
    assert list(pd.read_csv(tmp_path / "history.csv")) == ["epoch"]

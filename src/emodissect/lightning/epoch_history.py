"""The logged metrics of a training by epoch, saved in its checkpoints so that a resumed one keeps earlier epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class EpochHistory(Callback):
    """Records every metric that is logged while a classifier trains, by epoch.

    Attributes:
        logger: pass it to the trainer with the other loggers; it receives what callbacks send to loggers.
        epochs: epoch -> metrics; of several values in an epoch, the last.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}
        self.logger = _Listener(self._note)
        self._now = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._now = trainer.current_epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning sends an epoch's metrics to loggers only after writing checkpoints
        self._note_section(trainer, "val/")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_section(trainer, "train/")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": {epoch: dict(figures) for epoch, figures in self.epochs.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = {}
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # a checkpoint from elsewhere
            self.epochs = {
                int(epoch): {str(name): float(value) for name, value in figures.items()}
                for epoch, figures in state_dict["epochs"].items()
            }

    def frame(self) -> pd.DataFrame:
        """One row per epoch: column ``epoch`` and all metrics, NaN where an epoch lacks one."""
        rows = [{"epoch": epoch, **self.epochs[epoch]} for epoch in sorted(self.epochs)]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["epoch"])

    def _note_section(self, trainer: Trainer, section: str) -> None:
        if not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            self._note({name: float(value) for name, value in found if name.startswith(section)})

    def _note(self, figures: Mapping[str, float]) -> None:
        known = {
            name: float(value) for name, value in figures.items() if name != "epoch" and math.isfinite(float(value))
        }
        if known:
            self.epochs.setdefault(self._now, {}).update(known)


class _Listener(Logger):
    """A logger that passes metrics to a function."""

    def __init__(self, receive: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__()
        self.receive = receive

    @property
    def name(self) -> str:
        return "epoch history"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.receive(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore hyperparameters: they are in the manifest."""

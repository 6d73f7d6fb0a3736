"""Learning-rate schedules, with missing arguments filled in from the trainer."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from emodissect.core.errors import UserError


def schedule(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, trainer: Trainer, monitor: str
) -> dict[str, Any]:
    """Lightning's scheduler config.

    Missing or null arguments are filled in: `total_steps` (all optimizer steps; the schedule is then stepped per step),
    `T_max` (all epochs), `max_lr` (the optimizer's), `cycle_momentum` (False without momentum).
    ReduceLROnPlateau monitors `monitor`, and is stepped at an epoch's last step, after validation: Lightning steps it
    per epoch only after the checkpoint is written, so that a resumed training would miss a step.

    Raises:
        UserError: a schedule over the whole training for a training of unlimited length.
    """
    known = inspect.signature(scheduler).parameters
    given = scheduler.keywords if isinstance(scheduler, functools.partial) else {}
    filled: dict[str, Any] = {}

    def is_open(name: str) -> bool:
        return name in known and given.get(name) is None

    if is_open("max_lr"):
        filled["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if is_open("cycle_momentum") and not {"momentum", "betas"} & set(optimizer.defaults):
        filled["cycle_momentum"] = False  # e.g. Adagrad has no momentum
    if is_open("total_steps") and not (given.get("epochs") and given.get("steps_per_epoch")):
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps) or steps < 1:
            raise UserError(
                "scheduler=one_cycle needs the length of the training: set trainer.max_epochs or trainer.max_steps."
            )
        # OneCycleLR divides by the lengths of its phases: a run of a few steps (debug=fdr) uses part of a longer cycle
        rising = given.get("pct_start", 0.3)
        filled["total_steps"] = max(int(steps), math.ceil(2 / min(rising, 1 - rising)))
    if is_open("T_max"):
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise UserError(
                "scheduler=cosine needs the length of the training: set trainer.max_epochs or scheduler.T_max."
            )
        filled["T_max"] = trainer.max_epochs
    made = scheduler(optimizer, **filled)
    entry: dict[str, Any] = {"scheduler": made, "interval": "step" if isinstance(made, OneCycleLR) else "epoch"}
    if isinstance(made, ReduceLROnPlateau):
        trainer.fit_loop.setup_data()  # else the number of steps per epoch is not known yet
        entry |= {"monitor": monitor, "interval": "step", "frequency": max(int(trainer.num_training_batches), 1)}
    return entry

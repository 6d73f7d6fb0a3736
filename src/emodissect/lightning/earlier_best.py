"""The best checkpoint of a training that is continued in another folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from emodissect.core.distributed import first_rank, wait_for_others
from emodissect.models.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


class KeepEarlierBest(Callback):
    """Takes over the best checkpoint of the run that is resumed, so that a worse one does not become the best.

    Lightning's ModelCheckpoint forgets scores when its folder changes: the first epoch after resuming is then the
    best, however bad.

    Args:
        resumed: the checkpoint that the training resumes from.
    """

    def __init__(self, resumed: Path) -> None:
        self.resumed = resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        states = read_checkpoint(self.resumed).get("callbacks") or {}
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint) and keeper.monitor and not keeper.best_k_models:
                state = states.get(keeper.state_key) or {}
                if state.get("best_model_path") and state.get("best_model_score") is not None:
                    self._take_over(keeper, Path(state["best_model_path"]), torch.as_tensor(state["best_model_score"]))

    def _take_over(self, keeper: ModelCheckpoint, best: Path, score: torch.Tensor) -> None:
        here = [path for path in (best, self.resumed.parent / best.name) if path.is_file()]
        if not here:
            log.warning(
                "The best checkpoint so far (%s = %.4f) is neither at %s nor beside %s: the best of the epochs from "
                "here on is kept.",
                *(keeper.monitor, float(score), best, self.resumed),
            )
            return
        kept = Path(str(keeper.dirpath)) / here[0].name
        if first_rank() and kept.resolve() != here[0].resolve():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here[0], kept)
        wait_for_others()
        keeper.best_k_models = {str(kept): score}
        keeper.best_model_path = keeper.kth_best_model_path = str(kept)
        keeper.best_model_score = keeper.kth_value = score

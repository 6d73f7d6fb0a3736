"""What a resumed training takes from its checkpoint beside weights: states of callbacks, and the best epoch so far."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from emodissect.core.distributed import first_rank, wait_for_others
from emodissect.core.errors import UserError
from emodissect.models.checkpoints import read_checkpoint

log = logging.getLogger(__name__)

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def require_own_paths(content: Any, path: str | Path) -> None:
    """Raises UserError for a checkpoint whose ModelCheckpoint states name files outside their own folder.

    Lightning removes the checkpoint that a better one replaces, folders with all that is in them, and takes its path
    from this state. It looks whether the path begins with the folder's, and does not resolve ``..``.

    Args:
        content: of the checkpoint. Untrusted.

    Example:
        >>> state = {"dirpath": "/runs/1", "best_model_path": "/runs/1/../../home/me"}
        >>> require_own_paths({"callbacks": {"ModelCheckpoint": state}}, "last.ckpt")
        Traceback (most recent call last):
        emodissect.core.errors.UserError: last.ckpt is refused: the state of its callback ModelCheckpoint names \
/runs/1/../../home/me, which does not lie in its folder /runs/1. Lightning would remove such files. Where did this \
file come from? resume=false takes its weights alone.
    """
    states = content.get("callbacks") if isinstance(content, Mapping) else None
    for name, state in states.items() if isinstance(states, Mapping) else ():
        folder = state.get("dirpath") if isinstance(state, Mapping) else None
        for named in _named_paths(state) if isinstance(state, Mapping) else ():
            if not isinstance(folder, str) or not isinstance(named, str) or not _inside(named, folder):
                raise UserError(
                    f"{path} is refused: the state of its callback {str(name)[:60]} names {str(named)[:200]}, which "
                    f"does not lie in its folder {folder}. Lightning would remove such files. Where did this file come "
                    "from? resume=false takes its weights alone."
                )


def _named_paths(state: Mapping[str, Any]) -> Iterator[Any]:
    yield from (state[name] for name in _PATHS if state.get(name))
    best = state.get("best_k_models")
    if best and not isinstance(best, Mapping):
        yield best
    elif best:
        yield from best


def _inside(path: str, folder: str) -> bool:
    if "://" in path or "\0" in path:
        return False
    whole, root = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return root in whole.parents


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

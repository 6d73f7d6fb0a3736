"""State that a resumed training takes from its checkpoint besides weights: callbacks, and the best epoch so far."""

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
    """Raise UserError for a checkpoint whose ModelCheckpoint states name files outside their own folder.

    Lightning deletes the checkpoint that a better one replaces, including whole folders, and takes its path from this
    state. It only checks that the path starts with the folder's, without resolving ``..``.

    Args:
        content: the loaded checkpoint; untrusted.

    Example:
        >>> state = {"dirpath": "/runs/1", "best_model_path": "/runs/1/../../home/me"}
        >>> require_own_paths({"callbacks": {"ModelCheckpoint": state}}, "last.ckpt")
        Traceback (most recent call last):
        emodissect.core.errors.UserError: last.ckpt is refused: the state of its callback ModelCheckpoint names \
/runs/1/../../home/me, which is not in its folder /runs/1. Lightning would delete such files. Check where this file \
comes from; resume=false uses only its weights.
    """
    states = content.get("callbacks") if isinstance(content, Mapping) else None
    for name, state in states.items() if isinstance(states, Mapping) else ():
        folder = state.get("dirpath") if isinstance(state, Mapping) else None
        for named in _named_paths(state) if isinstance(state, Mapping) else ():
            if not isinstance(folder, str) or not isinstance(named, str) or not _inside(named, folder):
                raise UserError(
                    f"{path} is refused: the state of its callback {str(name)[:60]} names {str(named)[:200]}, which "
                    f"is not in its folder {folder}. Lightning would delete such files. Check where this file comes "
                    "from; resume=false uses only its weights."
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
    """Carries over the best checkpoint of the resumed run, so that a worse one does not become the best.

    Lightning's ModelCheckpoint forgets its scores when its folder changes: the first epoch after resuming then counts
    as the best, however bad it is.

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
                "The best checkpoint so far (%s = %.4f) is neither at %s nor next to %s: only epochs from now on count "
                "for the best.",
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

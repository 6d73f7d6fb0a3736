"""What a resumed training takes from its checkpoint beside weights: states of callbacks, which hold paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emodissect.core.errors import UserError

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

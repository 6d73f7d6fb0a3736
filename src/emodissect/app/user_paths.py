"""Normalization of paths in a composed config: ``~``, numeric names, and relative paths with ``chdir``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from emodissect.app.arguments import PATHS


def expand_user(path: object) -> str:
    """A path with ``~`` expanded; the resolver ``expand_user`` of conf/."""
    return str(Path(str(path)).expanduser())


def settle_paths(cfg: DictConfig) -> None:
    """Expand ``~`` in all values and normalize the values of path keys, in place.

    Numbers become text. With ``hydra.job.chdir=true`` an existing relative path is resolved against the directory of
    the command. Values from the command line and from files are treated alike.
    """
    for node, key in list(_values(cfg)):
        value = node[key]
        if isinstance(value, str) and (value == "~" or value.startswith("~/")):
            node[key] = expand_user(value)
        elif key in PATHS and isinstance(value, int | float) and not isinstance(value, bool):
            node[key] = str(value)
        elif isinstance(value, str) and key in (*PATHS, "target") and (found := _where_typed(value)):
            node[key] = found


def _where_typed(value: str) -> str | None:
    """The absolute path of a relative one, if Hydra has changed the working directory and the file exists."""
    if not HydraConfig.initialized() or not HydraConfig.get().job.chdir:
        return None
    path, separator, name = value.partition(".py:")  # model.target=nets/mine.py:Net
    place = Path(HydraConfig.get().runtime.cwd) / f"{path}{'.py' if separator else ''}"
    if Path(path).is_absolute() or not value or not place.exists():
        return None
    return f"{place}{':' if separator else ''}{name}"


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every plain value under a node, as (parent, key); interpolations and missing values are skipped."""
    keys = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            yield from _values(value)
        elif value is not None:
            yield node, key

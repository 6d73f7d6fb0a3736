"""Paths in a composed config, as people write them: ``~``, numbers as names, relative ones under ``chdir``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from emodissect.app.arguments import PATHS


def expand_user(path: object) -> str:
    """A path with ``~`` as the home folder; the resolver ``expand_user`` of conf/."""
    return str(Path(str(path)).expanduser())


def settle_paths(cfg: DictConfig) -> None:
    """Expands ``~`` in every value that starts with it, and makes the values of path keys paths.

    A value of a path key that YAML reads as a number is text again. With ``hydra.job.chdir=true`` a relative path is
    looked for where the command was typed. Values from the command line and from files are treated alike.
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
    """The absolute path of a relative one, where Hydra has changed the working directory and the file exists."""
    if not HydraConfig.initialized() or not HydraConfig.get().job.chdir:
        return None
    path, separator, name = value.partition(".py:")  # model.target=nets/mine.py:Net
    place = Path(HydraConfig.get().runtime.cwd) / f"{path}{'.py' if separator else ''}"
    if Path(path).is_absolute() or not value or not place.exists():
        return None
    return f"{place}{':' if separator else ''}{name}"


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every plain value under a node, as its parent and its key; interpolations and open values are passed over."""
    keys = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            yield from _values(value)
        elif value is not None:
            yield node, key

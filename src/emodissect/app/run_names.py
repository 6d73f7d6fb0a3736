"""Run names for lists of runs: the task and its main choices; in a sweep, the settings that differ between jobs."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

IDENTITY = ("layer", "model", "data")
"""Config groups whose choices form a run's name."""


def in_multirun() -> bool:
    """Whether this is a job of a multirun."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def sweep_name(*_: object) -> str | None:
    """The name of the multirun's folder, None in a single run: W&B groups the jobs of a sweep by it."""
    return Path(HydraConfig.get().sweep.dir).name if in_multirun() else None


def report_length(*_: object) -> str:
    """``full`` for a single run, ``summary`` for a job of a multirun, of which there may be hundreds."""
    return "summary" if in_multirun() else "full"


def run_name(task: str, *_: object) -> str | None:
    """``edit lin2 vgg sketches`` for a single run, ``layer=lin2 tau=0.5`` for a job of a sweep."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        swept = swept_keys(Path(hydra.sweep.dir))
        words = [word for word in hydra.overrides.task if swept is None or _key(word) in swept]
        return " ".join(word.lstrip("+") for word in words) or f"{task} {hydra.job.num}"
    choices = {**hydra.runtime.choices, "layer": _layer(hydra.runtime.choices.get("layer"), hydra.overrides.task)}
    chosen = [str(choices[name]) for name in IDENTITY if choices.get(name)]
    return " ".join([task, *(chosen if task != "train" else chosen[1:])])


FIRST_JOB = "EMODISSECT_FIRST_JOB"
"""Environment variable: the number of the multirun's first job, above those already in its folder."""


def job_folder(number: int) -> str:
    """The name of a job's folder, numbered after the jobs of earlier multiruns in the same folder.

    >>> os.environ.pop(FIRST_JOB, None) and None
    >>> job_folder(2)
    '2'
    """
    return str(int(os.environ.get(FIRST_JOB, 0)) + int(number))


def swept_keys(folder: Path) -> set[str] | None:
    """The keys that a multirun sweeps, from ``multirun.yaml`` in its folder; None if there is none."""
    try:
        return _swept_keys(folder / "multirun.yaml", (folder / "multirun.yaml").stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=4)  # each job of the sweep resolves its name several times
def _swept_keys(left_by_hydra: Path, _changed: int) -> set[str] | None:
    try:
        left = OmegaConf.load(left_by_hydra).hydra
        overrides = OverridesParser.create().parse_overrides(list(left.overrides.task))
        keys = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        return keys | {str(name) for name in left.sweeper.get("params") or {}} or None
    except (OSError, HydraException, OmegaConfBaseException, AttributeError):
        return None


def _layer(choice: str | None, overrides: list[str]) -> str | None:
    """The layer as it was typed: ``layer=layer4.1`` became ``layer=named layer.names=layer4.1``."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("layer.names=")]
    return named[-1] if choice == "named" and named else choice


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]

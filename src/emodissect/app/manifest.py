"""The manifest: everything that a result was computed from, so that it can be reproduced."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from emodissect.core.atomic_files import atomic_write
from emodissect.core.places import checkout

PACKAGES = (
    *("emodissect", "torch", "torchvision", "timm", "lightning", "open_clip_torch", "torchmetrics", "hydra-core"),
    *("numpy", "scipy", "statsmodels", "pandas", "kornia", "opencv-python-headless", "pillow"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def program(verb: str) -> list[str]:
    """The command that starts a verb: ``python edit.py`` in a checkout, else ``emodissect edit``."""
    return ["python", f"{verb}.py"] if checkout() else ["emodissect", verb]


def typed_command() -> str:
    """The command line as it was typed, ready to be pasted."""
    words = sys.orig_argv[1:]
    if words and Path(words[0]).name == "emodissect":  # the installed command is a script that Python runs
        return shlex.join(["emodissect", *words[1:]])
    return shlex.join([Path(sys.executable).name, *words])


def command() -> str:
    """The command that repeats this run: as it was typed; for a job of a multirun, the one that runs it alone.

    A job may run in a launcher's worker, whose own command line is of no use.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        hydra = HydraConfig.get()
        return shlex.join([*program(hydra.job.name), *hydra.overrides.task])
    return typed_command()


def git_commit(root: Path) -> str | None:
    """The checkout's commit, with ``+changes`` if tracked files differ from it; None outside a checkout."""
    try:
        run = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def manifest(root: Path, **inputs: Any) -> dict[str, Any]:
    """Command, time, machine, versions and commit, plus the given inputs."""
    import torch

    return {
        "command": command(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(root),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": versions(),
        **inputs,
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=str) + "\n")

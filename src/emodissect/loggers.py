"""Lightning loggers that never stop a run to ask a question."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger

from emodissect.errors import UserError, nearest
from emodissect.ranks import first_rank

log = logging.getLogger(__name__)

_MODES = ("auto", "online", "offline", "disabled")


def logged_in_to_wandb() -> bool:
    """Whether W&B finds credentials: ``WANDB_API_KEY``, or the netrc entry that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(mode: str) -> str:
    """The mode W&B runs in: ``auto`` follows ``WANDB_MODE``, else is online where logged in and offline elsewhere.

    Raises:
        UserError: an unknown mode, or ``online`` without being logged in.
    """
    if mode not in _MODES:
        raise UserError(f"logger.wandb.mode={mode} is unknown. {nearest(mode, _MODES)}")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "online" if logged_in_to_wandb() else "offline")
        # W&B's own synonyms
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    elif mode == "online" and not logged_in_to_wandb():
        raise UserError(
            "logger.wandb.mode=online, but W&B is not logged in. Run `wandb login` once, or set WANDB_API_KEY, "
            "or use logger.wandb.mode=offline and `wandb sync` later."
        )
    return mode


def wandb_logger(
    *,
    project: str,
    save_dir: str,
    mode: str = "auto",
    entity: str | None = None,
    job_type: str | None = None,
    group: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    id: str | None = None,
) -> WandbLogger:
    """A W&B logger in a mode that fits the machine.

    Args:
        project, entity, job_type, group, name, tags: as in ``wandb.init``.
        save_dir: where the run's files go; it is made where missing.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``, see :func:`wandb_mode`.
        id: an earlier run's id; the run goes on where it was.
    """
    chosen = wandb_mode(mode)
    # W&B says more than a summary needs; its own words stay in the run's debug log.
    os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    if not first_rank():
        return WandbLogger(project=project, save_dir=save_dir, offline=True)  # a dummy: rank 0 logs
    run = wandb.init(
        project=project,
        entity=entity,
        job_type=job_type,
        group=group,
        name=name,
        tags=list(tags),
        dir=save_dir,
        id=id,
        resume="allow" if id else None,
        mode=cast(Any, chosen),
    )
    return WandbLogger(project=project, save_dir=save_dir, offline=chosen == "offline", experiment=cast(Any, run))


def where_wandb_went(logger: WandbLogger) -> str:
    """One line for the summary: the run's address, or how to sync an offline run."""
    run = logger.experiment
    if getattr(run, "disabled", False):
        return "W&B is disabled."
    if run.offline:
        return f"W&B run kept offline; upload it with: wandb sync {Path(run.dir).parent}"
    return f"W&B run: {run.url}"

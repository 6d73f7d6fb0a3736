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

from emodissect.core.distributed import first_rank
from emodissect.core.errors import UserError, nearest

log = logging.getLogger(__name__)

_MODES = ("auto", "online", "offline", "disabled")

_SYNONYMS = {"dryrun": "offline", "run": "online"}
"""W&B's own older words."""


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
        UserError: an unknown mode, or ``online`` without being logged in (W&B would ask for the key).
    """
    said = f"logger.wandb.mode={mode}"
    if mode == "auto":
        told = os.environ.get("WANDB_MODE")
        if not told:
            return "online" if logged_in_to_wandb() else "offline"
        said, mode = f"WANDB_MODE={told}", _SYNONYMS.get(told, told)
    if mode not in _MODES:
        raise UserError(f"{said} is unknown. {nearest(mode, _MODES)}")
    if mode == "online" and not logged_in_to_wandb():
        raise UserError(
            f"{said}, but W&B is not logged in. Run `wandb login` once, or set WANDB_API_KEY, "
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

    Raises:
        UserError: see :func:`wandb_mode`; also where W&B refuses the key or cannot be reached.
    """
    chosen = wandb_mode(mode)
    # W&B says more than a summary needs; its own words stay in the run's debug log.
    os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    if not first_rank():
        return WandbLogger(project=project, save_dir=save_dir, offline=True)  # a dummy: rank 0 logs
    try:
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
    except wandb.Error as error:
        raise UserError(
            f"W&B did not begin the run ({error}). Use logger.wandb.mode=offline and `wandb sync` later, or logger=csv."
        ) from error
    define_steps(run)
    return WandbLogger(project=project, save_dir=save_dir, offline=chosen == "offline", experiment=cast(Any, run))


def define_steps(run: Any) -> None:
    """Training's and validation's figures are drawn over epochs; the others, logged once, over W&B's own step."""
    run.define_metric("epoch", hidden=True)
    for section in ("train", "val"):
        run.define_metric(f"{section}/*", step_metric="epoch")


def where_wandb_went(logger: WandbLogger) -> str:
    """One line for the summary: the run's address, or how to sync an offline run."""
    run = logger.experiment
    if getattr(run, "disabled", False):
        return "disabled"
    if run.offline:
        return f"kept offline; upload it with: wandb sync {Path(run.dir).parent}"
    return str(run.url)

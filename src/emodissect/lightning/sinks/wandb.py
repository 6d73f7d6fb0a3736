"""Weights & Biases: a logger that never prompts, and its sink."""

from __future__ import annotations

import functools
import getpass
import logging
import netrc
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import pandas as pd
from lightning.pytorch.loggers import WandbLogger

from emodissect.core.distributed import first_rank
from emodissect.core.errors import UserError, nearest
from emodissect.lightning.sinks.sink import Artifact, Picture, Sink, register_sink

# `import wandb` takes a second: it is left to the functions that a W&B logger calls

log = logging.getLogger(__name__)

_MODES = ("auto", "online", "offline", "disabled")

_SYNONYMS = {"dryrun": "offline", "run": "online"}
"""W&B's older names of modes."""

_OWN_FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}
"""Variable -> subfolder: folders that W&B keeps in the home directory unless the variable names another."""


LAUNCH = "wandb.sdk.launch.inputs.internal"


def logged_in_to_wandb() -> bool:
    """Whether W&B finds credentials: ``WANDB_API_KEY``, or the netrc entry that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home directory
        return False


def wandb_mode(mode: str) -> str:
    """The W&B mode to use: ``auto`` follows ``WANDB_MODE`` if set, else is online if logged in and offline if not.

    Raises:
        UserError: an unknown mode, or ``online`` without being logged in (W&B would prompt for the key).
    """
    given = f"logger.wandb.mode={mode}"
    if mode == "auto":
        variable = os.environ.get("WANDB_MODE")
        if not variable:
            return "online" if logged_in_to_wandb() else "offline"
        given, mode = f"WANDB_MODE={variable}", _SYNONYMS.get(variable, variable)
    if mode not in _MODES:
        raise UserError(f"{given} is unknown. {nearest(mode, _MODES)}")
    if mode == "online" and not logged_in_to_wandb():
        raise UserError(
            f"{given}, but W&B is not logged in. Run `wandb login` once, or set WANDB_API_KEY, "
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
    """A W&B logger, by default online only if the user is logged in.

    Args:
        project, entity, job_type, group, name: as in ``wandb.init``.
        save_dir: folder of the run's files; created if missing.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``, see :func:`wandb_mode`.
        tags: the tags in ``WANDB_TAGS`` are added.
        id: id of an earlier run to continue.

    Raises:
        UserError: see :func:`wandb_mode`; also if W&B rejects the key or cannot be reached.
    """
    chosen = wandb_mode(mode)
    # silence W&B's terminal output; its messages stay in the run's debug log
    os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    if not first_rank():
        return WandbLogger(project=project, save_dir=save_dir, offline=True)  # a dummy: rank 0 logs
    if id and chosen == "offline":
        log.warning(
            "The W&B run %s is continued offline: `wandb sync` does not merge two offline runs with one id. "
            "Use logger.wandb.mode=online to continue it, or logger.wandb.id=null for a new run.",
            id,
        )
    prepare_user_folders()
    import wandb

    if LAUNCH not in sys.modules and hasattr(wandb.Run, "_detect_and_apply_job_inputs"):
        # it applies inputs staged with this module; without any, skip importing it (1.5 s)
        wandb.Run._detect_and_apply_job_inputs = lambda self: None  # type: ignore[method-assign]
    # W&B lists the installed packages for each run; the jobs of a sweep share one list
    if not hasattr(wandb.util.working_set, "cache_info"):
        listed = wandb.util.working_set
        wandb.util.working_set = functools.cache(lambda: tuple(listed()))
    own_tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            job_type=job_type,
            group=group,
            name=name,
            tags=list(dict.fromkeys([*tags, *own_tags])),
            dir=save_dir,
            id=id,
            resume="allow" if id else None,
            mode=cast(Any, chosen),
        )
    except wandb.Error as error:
        raise UserError(
            f"W&B could not start the run ({error}). Use logger.wandb.mode=offline and `wandb sync` later, "
            "or logger=csv."
        ) from error
    define_steps(run)
    return WandbLogger(project=project, save_dir=save_dir, offline=chosen == "offline", experiment=cast(Any, run))


def prepare_user_folders() -> None:
    """Set W&B's folder and user variables on machines without a writable home or login name (containers, clusters).

    W&B stages artifacts in the home directory; with a read-only one the run would fail at its end.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
        log.warning(
            "The current user has no login name, and W&B needs one: %s is used. Set LOGNAME to choose another.",
            os.environ["LOGNAME"],
        )
    home = Path(os.path.expanduser("~"))
    missing = [name for name in _OWN_FOLDERS if not os.environ.get(name)]
    if not missing or _writable(home):
        return
    folder = Path(tempfile.gettempdir()) / f"wandb-{getpass.getuser()}"
    for name in missing:
        os.environ[name] = str(folder / _OWN_FOLDERS[name])
    log.warning(
        "The home directory %s cannot be written: W&B keeps its own files under %s. "
        "Set HOME, or WANDB_DATA_DIR, WANDB_CACHE_DIR and WANDB_CONFIG_DIR, to choose other folders.",
        *(home, folder),
    )


def _writable(home: Path) -> bool:
    """Whether W&B can create its folders in the home directory."""
    return all(
        os.access(next(path for path in (home / part, *(home / part).parents) if path.exists()), os.W_OK)
        for part in (".local/share/wandb", ".cache/wandb", ".config/wandb")
    )


def define_steps(run: Any) -> None:
    """Set the x-axis of each curve: epochs for training and validation, the trainer's step for other callbacks.

    Test metrics are hidden from the automatic charts, where each would be a single point.
    """
    for step in ("epoch", "trainer/global_step"):
        run.define_metric(step, hidden=True)
    for section in ("train", "val"):
        run.define_metric(f"{section}/*", step_metric="epoch")
    for section in ("dissect", "edit"):
        run.define_metric(f"{section}/*", step_metric="trainer/global_step")
    run.define_metric("test/*", hidden=True)


@register_sink("lightning.pytorch.loggers.wandb.WandbLogger")
class WandbSink(Sink):
    """Curves go to the history, results of the whole run to the summary, files to artifacts with their lineage."""

    @property
    def run(self) -> Any:
        """The W&B run."""
        return self.logger.experiment

    def config(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._log(values, None if "epoch" in values else step)

    def summary(self, values: Mapping[str, float | str]) -> None:
        self.run.summary.update(dict(values))

    def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
        import wandb

        shown = frame.map(
            lambda cell: wandb.Image(cell.pixels, caption=cell.caption) if type(cell) is Picture else cell
        )
        # not dataframe=, which looks up every cell by column name and takes three times as long
        rows: list[Any] = list(zip(*(shown[column].values for column in shown), strict=True))
        self._log({name: wandb.Table(columns=[str(column) for column in shown], data=rows)}, step)

    def image(self, name: str, path: Path, step: int | None = None) -> None:
        import wandb

        self._log({name: wandb.Image(str(path))}, step)

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        import wandb

        self._log({name: wandb.Histogram(list(values))}, step)

    def artifact(self, artifact: Artifact, made_from: Sequence[Artifact] = ()) -> None:
        """Log files, and record what they were made from: in the metadata, and online also as inputs of this run.

        Equal content is the same version in every run, so the lineage connects runs that share a cache.
        """
        if getattr(self.run, "disabled", False):
            return
        if not self.run.offline:
            for used in made_from:
                self.run.use_artifact(_wandb_artifact(used))
        self.run.log_artifact(_wandb_artifact(artifact, made_from=[used.name for used in made_from]))

    def finish(self, failed: bool) -> str | None:
        place = self._place()
        super().finish(failed)
        self.run.finish(exit_code=1 if failed else 0)
        return place

    def _place(self) -> str:
        """The run's URL, or the command that uploads an offline run."""
        if getattr(self.run, "disabled", False):
            return "disabled"
        if self.run.offline:
            return f"kept offline; upload it with: wandb sync {Path(self.run.dir).parent}"
        return str(self.run.url)

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        self.run.log({**values, **({} if step is None else {"trainer/global_step": step})})


def _wandb_artifact(artifact: Artifact, **further: Any) -> Any:
    import wandb

    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata={**artifact.metadata, **further})
    for path in artifact.paths:
        if path.is_dir():
            made.add_dir(str(path))
        else:
            made.add_file(str(path))
    return made

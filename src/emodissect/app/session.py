"""The context of a run: its folder, loggers, data and cache, and the files that every run writes."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from rich.console import Console
from rich.markup import escape

from emodissect.app.cli import SUMMARY_FILE
from emodissect.app.config_keys import check_keys
from emodissect.app.config_values import check_values
from emodissect.app.manifest import manifest, write_json
from emodissect.app.run_names import in_multirun
from emodissect.app.streams import LoggedConsole
from emodissect.core.cache import Cache, disk_is_full
from emodissect.core.distributed import first_rank, leave_group, rank, run_alone, wait_for_others
from emodissect.core.errors import UserError
from emodissect.core.table_files import write_csv
from emodissect.data.datamodule import FaceDataModule
from emodissect.lightning.callbacks import ProgressBar
from emodissect.lightning.sinks import sinks_of
from emodissect.report.terminal import config_tree

log = logging.getLogger(__name__)

Value = TypeVar("Value")

NEEDED_GIB = 0.5

DISTRIBUTED = "distributed"
"""Subfolder in which the ranks of a distributed run compute entries before rank 0 moves them to the cache."""


class Session:
    """One run of a verb.

    Attributes:
        folder: the run's, from Hydra.
        inputs: hashes of everything that the result was computed from, collected by the stages for the manifest.
        written: description -> path of the outputs, printed at the end.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.folder = Path(cfg.paths.run_dir)
        self.cache = Cache(cfg.paths.cache_dir)
        self.console: Console = LoggedConsole(quiet=not first_rank())
        self.inputs: dict[str, Any] = {}
        self.written: dict[str, Path | str] = {}
        self.started = time.monotonic()
        self._loggers: dict[str, Logger] = {}

    @cached_property
    def data(self) -> FaceDataModule:
        """The data module, instantiated from the ``data`` group; with ``data.audit`` also writes audit.csv."""
        data = instantiate(self.cfg.data)
        if not isinstance(data, FaceDataModule):
            raise UserError(
                f"data._target_={self.cfg.data._target_} is not a FaceDataModule; see emodissect.data.datamodule."
            )
        if data.audit and first_rank():
            write_csv(data.audit_report.table, self.folder / "audit.csv")
            self.add_output("audit", self.folder / "audit.csv")
        return data

    @cached_property
    def loggers(self) -> list[Logger]:
        """The loggers of the ``logger`` group, with the resolved config logged to each."""
        for name, entry in logger_entries(self.cfg).items():
            self._loggers[name] = instantiate(entry)
        for sink in sinks_of(self._loggers.values()):
            sink.config(resolved(self.cfg))
        return list(self._loggers.values())

    @cached_property
    def device(self) -> torch.device:
        """The device on which the trainer would run the network."""
        return self.trainer([], enable_progress_bar=False, enable_checkpointing=False).strategy.root_device

    @property
    def distributed(self) -> bool:
        """Whether the trainer starts several processes."""
        return several_processes(self.cfg.trainer)

    def trainer(self, callbacks: Sequence[Callback], **changes: Any) -> Trainer:
        """A Trainer from the ``trainer`` group with this run's loggers."""
        changes = {"logger": self.loggers or False, **changes}
        try:
            return instantiate(self.cfg.trainer, callbacks=list(callbacks), **changes)
        except InstantiationException as error:
            if not isinstance(error.__cause__, MisconfigurationException):
                raise
            requested = ", ".join(f"trainer.{name}={self.cfg.trainer.get(name)}" for name in ("accelerator", "devices"))
            raise UserError(f"{error.__cause__} Requested: {requested}. trainer=cpu runs everywhere.") from error

    def evaluating_trainer(self, callbacks: Sequence[Callback] = (), **changes: Any) -> Trainer:
        """A Trainer for forward passes only: with a progress bar, without checkpoints."""
        return self.trainer([*callbacks, ProgressBar(leave=False)], enable_checkpointing=False, **changes)

    def made(
        self,
        kind: str,
        key: Mapping[str, Any],
        write: Callable[[Path], None],
        read: Callable[[Path], Value],
        jointly: bool = False,
    ) -> Value:
        """The cache entry for ``key`` as returned by ``read``; computed if missing, or with ``reuse=false``.

        Of several processes on a machine one computes the entry and the others wait. The ranks of a distributed run
        cannot wait for one another in this way: rank 0 stores the result.

        Args:
            kind, key, write, read: as in :meth:`emodissect.core.cache.Cache.value`.
            jointly: ``write`` is run by all ranks of a distributed run together and all read rank 0's files (a
                training); else each rank writes its own files.
        """
        recompute = not self.cfg.reuse
        if not self.distributed:
            return self.cache.value(kind, key, write, read, recompute)
        if not recompute and (held := self.cache.held(kind, key, read)) is not None:
            return held
        folder = self.folder / DISTRIBUTED / (kind if jointly else f"{kind}-{rank()}")
        if not jointly:
            shutil.rmtree(folder, ignore_errors=True)  # may hold another entry of this kind
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        if jointly:
            wait_for_others()
        if not first_rank():
            return read(folder)

        def keep(entry: Path) -> None:
            shutil.copytree(folder, entry, dirs_exist_ok=True)

        return self.cache.value(kind, key, keep, read, recompute)

    def tidy(self) -> None:
        """Remove this rank's temporary files of a distributed run; rank 0 also removes the shared ones."""
        for folder in (self.folder / DISTRIBUTED).glob("*"):
            suffix = re.search(r"-(\d+)$", folder.name)
            if (int(suffix.group(1)) if suffix else 0) == rank():
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it does not exist, or another rank still has files in it
            (self.folder / DISTRIBUTED).rmdir()

    def end_loggers(self, failed: bool) -> None:
        """Finish every logger and add the location of its results to the outputs."""
        for name, sink in zip(self._loggers, sinks_of(self._loggers.values()), strict=False):
            if place := sink.finish(failed):
                self.add_output(name, place)

    def add_output(self, what: str, path: Path | str) -> None:
        """Register an output, to be printed at the end."""
        self.written[what] = path

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Write summary.json and manifest.json."""
        if not first_rank():
            return
        seconds = round(time.monotonic() - self.started, 2)
        write_json(self.folder / SUMMARY_FILE, {"task": self.cfg.task_name, **figures, "seconds": seconds})
        self.write_manifest()
        self.add_output("summary", self.folder / SUMMARY_FILE)

    def write_manifest(self) -> None:
        """Write manifest.json: at the start, so that a failed run has one, and at the end with all inputs."""
        if first_rank():
            write_json(self.folder / "manifest.json", self.manifest())

    def manifest(self) -> dict[str, Any]:
        """The manifest of this run."""
        return manifest(
            Path(self.cfg.paths.root_dir),
            seed=self.cfg.seed,
            overrides=list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
            inputs=self.inputs,
        )


@contextmanager
def session(cfg: DictConfig) -> Iterator[Session]:
    """Prepare a run, and always finish its loggers: a failed W&B run is marked as failed.

    The config, run folder, free disk space and loggers are checked before any work.

    Raises:
        UserError: a value that its key does not accept, an unwritable folder, too little disk space, several
            processes in a multirun.
    """
    check_values(cfg)
    check_keys(cfg)
    check_surroundings(cfg)
    if not several_processes(cfg.trainer):
        run_alone()
    quiet()
    run = Session(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    # in a multirun only the first job prints it; the differences are in the sweep's table
    if cfg.print_config and not (in_multirun() and HydraConfig.get().job.num):
        run.console.print(config_tree(cfg))
    failed = True
    try:
        run.write_manifest()
        run.loggers  # noqa: B018  created now, so that a logger fails before the work
        yield run
        failed = False
    except Exception as error:
        if not isinstance(error, UserError) and disk_is_full(run.folder):
            raise UserError(
                f"The disk of the run folder {run.folder} is full. Free some space and run the same command: it "
                "resumes from the cache."
            ) from error
        raise
    finally:
        run.end_loggers(failed)
    leave_group()
    run.tidy()
    if first_rank():
        seconds = time.monotonic() - run.started
        for what, path in run.written.items():
            run.console.print(f"[dim]{what}:[/] {escape(str(path))}", soft_wrap=True, highlight=False)
        run.console.print(f"[dim]Done in {seconds:.1f} s.[/]")


def several_processes(trainer: DictConfig) -> bool:
    """Whether the trainer of this config uses several processes, by its strategy, nodes or devices."""
    strategy = str(trainer.get("strategy", "auto"))
    if any(name in strategy for name in ("ddp", "fsdp", "deepspeed")) or int(trainer.get("num_nodes") or 1) > 1:
        return True
    devices = trainer.get("devices", "auto")
    if isinstance(devices, ListConfig):
        return len(devices) > 1
    if str(devices) in ("auto", "-1"):
        return trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.device_count() > 1
    return "," in str(devices).strip(",") or (str(devices).isdigit() and int(devices) > 1)


def logger_entries(cfg: DictConfig) -> dict[str, DictConfig]:
    """The entries of the ``logger`` group by name.

    A fixed ``id`` of a W&B run would merge the jobs of a multirun into one run, so it gets the job's number.
    """
    entries = {str(name): entry.copy() for name, entry in (cfg.get("logger") or {}).items()}
    if in_multirun():
        for entry in entries.values():
            if entry.get("id"):
                with open_dict(entry):
                    entry.id = f"{entry.id}-{HydraConfig.get().job.num}"
    return entries


def resolved(node: DictConfig) -> dict[str, Any]:
    """A config node as a plain dictionary, with interpolations resolved."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def check_surroundings(cfg: DictConfig) -> None:
    """Check what would otherwise fail after the work: folders, disk space, the launcher. Raises UserError."""
    if in_multirun() and several_processes(cfg.trainer):
        requested = ", ".join(f"trainer.{name}={cfg.trainer.get(name)}" for name in ("strategy", "devices"))
        raise UserError(
            f"{requested} inside a multirun would start the whole sweep again in each process. "
            "Sweep on one device per job (trainer=gpu, hydra/launcher=slurm), or run the jobs one by one."
        )
    for name, folder in (("paths.run_dir", cfg.paths.run_dir), ("paths.cache_dir", cfg.paths.cache_dir)):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a unique name: many processes may start at once
                pass
        except OSError as error:
            raise UserError(f"{name}={folder} cannot be written: {error.strerror}. Give another folder.") from error
        free = shutil.disk_usage(folder).free / 2**30
        if free < NEEDED_GIB:
            raise UserError(
                f"Only {free:.2f} GiB are free at {name}={folder}; at least {NEEDED_GIB} GiB are needed. "
                "Free some, or give another folder."
            )


def quiet() -> None:
    """Silence the libraries' notices about hardware and defaults."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # the best checkpoint is carried over
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    torch.set_float32_matmul_precision("high")

"""Hydra callback for the end of a multirun: collects all jobs in one table, also after failures."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from emodissect.app.cli import ERROR_FILE, SUMMARY_FILE, SWEEP_TABLE, user_error_message
from emodissect.app.ending import leave_gone_directory
from emodissect.app.manifest import write_json
from emodissect.app.run_names import FIRST_JOB

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"


class SweepTable(Callback):
    """A Hydra callback: after the last job of a multirun it writes ``sweep.csv`` and ``sweep.html``.

    A failed job is a row with its error; the multirun then ends with exit code 1, after the table is written.
    An interrupted multirun gets the same table of the jobs that began.
    """

    unfinished: ClassVar[Callable[[], object] | None] = None
    """Writes the table of the multirun that is running in this process."""

    def __init__(self) -> None:
        self.stood: dict[Path, int] = {}
        self.began = self.job_began = time.monotonic()

    @classmethod
    def end_unfinished(cls) -> bool:
        """Write the table of an interrupted multirun; returns whether any of its jobs began."""
        end, cls.unfinished = cls.unfinished, None
        return end is not None and end() is not None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the jobs of earlier multiruns in the same folder, to exclude them from the table."""
        self.stood = job_folders(Path(config.hydra.sweep.dir))
        self.began = time.monotonic()
        numbers = [int(job.name) for job in self.stood if job.name.isdigit()]
        os.environ[FIRST_JOB] = str(max(numbers, default=-1) + 1)
        if OmegaConf.select(config, "hydra.sweeper.storage"):
            self.stood = {}  # earlier jobs of the same Optuna study are included
        SweepTable.unfinished = lambda: self._collect(config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Start timing the job."""
        self.job_began = time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the job's wall time to its summary, and leave a removed working directory before the next job."""
        path = Path(config.hydra.runtime.output_dir) / SUMMARY_FILE
        with suppress(OSError, ValueError):  # a job that failed has none
            summary = json.loads(path.read_text(encoding="utf-8"))
            write_json(path, {**summary, "seconds": round(time.monotonic() - self.job_began, 2)})
        leave_gone_directory()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the table; exits with code 1 if a job failed."""
        failed = self._collect(config)
        SweepTable.unfinished = None
        if failed:
            sys.exit(1)

    def _collect(self, config: DictConfig) -> int | None:
        """Write and print the table; returns the number of failed jobs, None if no job began."""
        folder = Path(config.hydra.sweep.dir)
        started = [job for job, when in job_folders(folder).items() if self.stood.get(job) != when]
        if not started:
            return None
        from emodissect.app.sweep_results import show_study, summarize_sweep

        console = Console(stderr=True)
        jobs = sweep_table(folder, started)
        try:
            summarize_sweep(jobs, swept_words(started), folder, config)
            show_study(OmegaConf.select(config, "hydra.sweeper"), folder, Console())
        except Exception as error:  # e.g. W&B cannot be reached; Hydra would hide it in a warning
            console.print(
                f"The sweep's summary is incomplete: {user_error_message(error) or repr(error)}",
                style="red",
                markup=False,
            )
        seconds = time.monotonic() - self.began
        console.print(f"{len(jobs)} jobs in {seconds:.1f} s: {seconds / len(jobs):.1f} s per job.", style="dim")
        failed = int(jobs["error"].notna().sum()) if "error" in jobs else 0
        if failed:
            console.print(
                f"{failed} of {len(jobs)} jobs failed; {folder / SWEEP_TABLE} has the errors.",
                style="red",
                markup=False,
            )
        return failed


def job_folders(folder: Path) -> dict[Path, int]:
    """The jobs' folders in order -> the time (ns) at which the job began.

    Without ``.hydra`` folders (``hydra.output_subdir=null``), jobs are recognised by their own files.
    """
    begun = {path.parent.parent: path.stat().st_mtime_ns for path in folder.glob("**/.hydra/overrides.yaml")}
    for name in (MANIFEST_FILE, ERROR_FILE):
        for path in folder.glob(f"**/{name}"):
            begun.setdefault(path.parent, path.stat().st_mtime_ns)
    return {job: begun[job] for job in sorted(begun, key=_number)}


def sweep_table(folder: Path, jobs: Sequence[Path]) -> pd.DataFrame:
    """One row per job: its overrides and the scalars of its summary.json, or its error.

    For a job with neither (killed, or still running) ``error`` says so.
    """
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.relative_to(folder).as_posix(), **overrides_of(job)}
        try:
            summary = json.loads((job / SUMMARY_FILE).read_text())
            row |= {k: v for k, v in summary.items() if isinstance(v, str | int | float | bool) or v is None}
        except (OSError, ValueError, AttributeError):
            try:
                row["error"] = str(json.loads((job / ERROR_FILE).read_text())["error"])
            except (OSError, ValueError, LookupError, TypeError):
                row["error"] = "no summary: killed, or still running"
        row["folder"] = str(job)
        rows.append(row)
    return pd.DataFrame(rows)


def overrides_of(job: Path) -> dict[str, Any]:
    """A job's overrides: ``{"layer": "lin2", "tau": 0.5}``."""
    found: dict[str, Any] = {}
    for override in _words_of(job):
        name, _, value = override.lstrip("+").partition("=")
        found[name] = _plain(value)
    if found.get("layer") == "named" and "layer.names" in found:  # layer=layer4.1.conv2, see arguments.with_layer_words
        found["layer"] = found.pop("layer.names")
    return found


def _words_of(job: Path) -> list[str]:
    if (left := job / ".hydra" / "overrides.yaml").exists():
        return [str(word) for word in OmegaConf.load(left)]
    for name in (MANIFEST_FILE, ERROR_FILE):
        try:
            return [str(word) for word in json.loads((job / name).read_text())["overrides"]]
        except (OSError, ValueError, KeyError):
            continue
    return []


def swept_words(jobs: Sequence[Path]) -> list[str]:
    """The keys of the overrides that differ between jobs, in the order they were typed."""
    overrides = [overrides_of(job) for job in jobs]
    names = dict.fromkeys(name for given in overrides for name in given)
    return [name for name in names if len({str(given.get(name)) for given in overrides}) > 1]


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (10**9, str(job))


def _plain(text: str) -> Any:
    """A typed value: parsed as JSON where possible, else the text without Hydra's quotes."""
    try:
        return json.loads(text)
    except ValueError:
        quoted = re.fullmatch(r"'(.*)'", text)
        return quoted.group(1).replace("\\'", "'") if quoted else text

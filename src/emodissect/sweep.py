"""The end of a multirun: one table of all its jobs, the best by validation, and a run that holds them together."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from emodissect.command_line import ERROR_FILE

log = logging.getLogger(__name__)

TABLE = "sweep.csv"


class SweepTable(Callback):
    """A Hydra callback: after the last job of a multirun it writes ``sweep.csv`` and ``sweep.html``.

    A failed job is a row with its error; the multirun then ends with exit code 1, after the table is written.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collects the jobs' summaries."""
        folder = Path(config.hydra.sweep.dir)
        jobs = sweep_table(folder)
        if jobs.empty:
            return
        from emodissect.tasks.sweeping import conclude

        conclude(jobs, swept_words(folder), folder, config)
        failed = jobs["error"].notna().sum() if "error" in jobs else 0
        if failed:
            Console(stderr=True).print(f"{failed} of {len(jobs)} jobs failed; {folder / TABLE} tells why.", style="red")
            sys.exit(1)


def sweep_table(folder: Path) -> pd.DataFrame:
    """One row a job: its overrides, the plain figures of its summary.json, or its error.

    A job that left neither (killed, or still at work) says so in ``error``.
    """
    rows = []
    for job in _jobs(folder):
        row: dict[str, Any] = {"job": job.name, **_overrides(job)}
        try:
            summary = json.loads((job / "summary.json").read_text())
            row |= {k: v for k, v in summary.items() if isinstance(v, str | int | float | bool) or v is None}
        except (OSError, ValueError):
            try:
                row["error"] = json.loads((job / ERROR_FILE).read_text())["error"]
            except (OSError, ValueError):
                row["error"] = "no summary: killed, or still at work"
        row["folder"] = str(job)
        rows.append(row)
    return pd.DataFrame(rows)


def swept_words(folder: Path) -> list[str]:
    """The overrides that are not the same in every job."""
    given = [_overrides(job) for job in _jobs(folder)]
    names = dict.fromkeys(name for job in given for name in job)
    return [name for name in names if len({str(job.get(name)) for job in given}) > 1]


def _jobs(folder: Path) -> list[Path]:
    return sorted((path.parent.parent for path in folder.glob("*/.hydra/overrides.yaml")), key=_number)


def _overrides(job: Path) -> dict[str, Any]:
    words = (str(word).lstrip("+").partition("=") for word in OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    return {name: _plain(value) for name, _, value in words}


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (10**9, job.name)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

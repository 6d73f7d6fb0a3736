"""What a multirun leaves: its table in the terminal, as CSV, as a page, and as one W&B run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from emodissect.provenance import command, manifest
from emodissect.replication import over_seeds
from emodissect.report import SweepPage
from emodissect.report.sweep import readable
from emodissect.sweep import TABLE
from emodissect.terminal import figures_table, frame_table
from emodissect.tracking import log_metrics

SEEDS = "seeds.csv"
"""Means and intervals over the seeds of a sweep, in its folder."""

RANKED_BY = ("delta_val", "val/acc")
"""What a sweep's jobs are ranked by, always on validation: the first that its jobs have."""

SHOWN = ("job", "layer", "tau", "factor", "seed", "delta_val", "delta", "p_value", "val/acc", "test/acc", "error")


def conclude(jobs: pd.DataFrame, swept: Sequence[str], folder: Path, config: DictConfig) -> None:
    """Writes ``sweep.csv`` and ``sweep.html``, prints the table and the best job, and logs them as one W&B run.

    Where seeds were swept, ``seeds.csv`` holds each figure's mean and interval over them.
    """
    _write(jobs, folder / TABLE)
    replicates = over_seeds(jobs, swept)
    console = Console()
    shown = [name for name in SHOWN if name in jobs and jobs[name].notna().any()]
    named = (*SHOWN, "folder", "task", "verdict")
    varied = [str(name) for name in jobs if name not in named and len(set(jobs[name].astype(str))) > 1]
    console.print(frame_table(jobs, "The sweep", [*shown, *varied[:3]], rows=60))
    value = next((name for name in RANKED_BY if name in jobs and jobs[name].notna().any()), None)
    if value is not None:
        best = best_job(jobs, value)
        figures = {name: best[name] for name in shown if name != "error"}
        console.print(figures_table(figures, "Best by validation, with its figure on test"))
        if isinstance(best.get("verdict"), str):
            console.print(best["verdict"])
        source = manifest(Path(config.paths.root_dir), folder=str(folder))
        page = SweepPage(jobs, value, command(), source, swept=swept, replicates=replicates)
        page.write(folder / "sweep.html")
        console.print(f"[dim]report:[/] {folder / 'sweep.html'}", soft_wrap=True)
    console.print(f"[dim]table:[/] {folder / TABLE}", soft_wrap=True)
    if len(replicates):
        _write(replicates, folder / SEEDS)
        console.print(frame_table(readable(replicates), "Over seeds, in per cent or points"))
        console.print(f"[dim]seeds:[/] {folder / SEEDS}", soft_wrap=True)
    _log(jobs, replicates, folder, config, value)


def _write(frame: pd.DataFrame, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    frame.to_csv(unfinished, index=False)
    unfinished.replace(path)


def best_job(jobs: pd.DataFrame, value: str) -> dict[str, Any]:
    """The row of the highest value; of equals the first."""
    place = int(jobs[value].astype(float).fillna(float("-inf")).to_numpy().argmax())
    return {str(name): column for name, column in jobs.iloc[place].to_dict().items()}


def _log(jobs: pd.DataFrame, replicates: pd.DataFrame, folder: Path, config: DictConfig, value: str | None) -> None:
    """One W&B run of the sweep's group, where the jobs logged to W&B."""
    entry = (config.get("logger") or {}).get("wandb")
    if entry is None:
        return
    entry = OmegaConf.create(OmegaConf.to_container(entry))
    with open_dict(entry):
        entry.update(save_dir=str(folder), group=folder.name, job_type="sweep", name=f"sweep-{folder.name}", id=None)
        entry.tags = list(config.get("tags") or [])
    logger: Any = instantiate(entry)
    assert isinstance(logger, WandbLogger)
    run = logger.experiment
    failed = int(jobs["error"].notna().sum()) if "error" in jobs else 0
    try:
        run.log({"sweep/jobs": wandb.Table(dataframe=jobs.astype(str))})
        if len(replicates):
            run.log({"sweep/seeds": wandb.Table(dataframe=replicates)})
        figures: dict[str, float] = {"sweep/count": len(jobs), "sweep/failed": failed}
        if value is not None:
            best = best_job(jobs, value)
            numbers = [c for c in SHOWN if c in jobs and isinstance(best[c], int | float)]
            figures |= {f"sweep/best/{name}": float(best[name]) for name in numbers}
        log_metrics([logger], figures)
        run.summary.update(figures)
    finally:
        wandb.finish()

"""Results of a multirun: its table and heat maps in the terminal, as CSV, as a page, and as one W&B run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emodissect.app.cli import SWEEP_TABLE
from emodissect.app.manifest import manifest, typed_command
from emodissect.app.session import resolved
from emodissect.core.number_format import plain, points, unbroken
from emodissect.core.table_files import write_csv
from emodissect.lightning.sinks import sink_for
from emodissect.report import SweepPage, columns, figures
from emodissect.report.sweep import readable
from emodissect.report.terminal import frame_table, matrix_table
from emodissect.studies.seeds import TRAINING_COLUMNS, over_seeds, over_trainings, verdicts_over_trainings

TRAININGS = "trainings.csv"
"""The edit and cheap alternatives over the seeds of a sweep, in its folder."""

STUDY = "study.csv"
"""The trials of an Optuna study that has a storage, in the sweep's folder."""

SEEDS = "seeds.csv"
"""Means and intervals over the seeds of a sweep, in its folder."""

RANKED_BY = ("delta_val", "val/acc", "neuron_accuracy")
"""Metrics that a sweep's jobs are ranked by: the first one that the jobs have."""


def summarize_sweep(jobs: pd.DataFrame, swept: Sequence[str], folder: Path, config: DictConfig) -> None:
    """Write ``sweep.csv`` and ``sweep.html``, print the table and the best job, and log them as one W&B run.

    If seeds were swept, ``seeds.csv`` has each metric's mean and interval over them.

    Args:
        jobs: one row per job, see :func:`emodissect.app.sweep.sweep_table`.
    """
    write_csv(jobs, folder / SWEEP_TABLE)
    replicates = over_seeds(jobs, swept)
    trainings = over_trainings(jobs, swept)
    value = next((name for name in RANKED_BY if name in jobs and jobs[name].notna().any()), RANKED_BY[0])
    origin = manifest(Path(config.paths.root_dir), folder=str(folder))
    page = SweepPage(jobs, value, typed_command(), origin, swept=swept, replicates=replicates)
    page.write(folder / "sweep.html")
    console = Console()
    show(page, console)
    written = {"report": "sweep.html", "table": SWEEP_TABLE}
    if len(replicates):
        write_csv(replicates, folder / SEEDS)
        written["seeds"] = SEEDS
    if len(trainings):
        write_csv(trainings, folder / TRAININGS)
        show_trainings(trainings, console)
        written["trainings"] = TRAININGS
    for what, name in written.items():
        _print_path(what, folder / name, console)
    _log(page, folder, config, trainings)


def show_study(sweeper: DictConfig | None, folder: Path, console: Console) -> None:
    """Print the best trial of the whole Optuna study, where a storage keeps trials of earlier multiruns too.

    Writes ``study.csv`` with one row per trial: number, state, value and parameters.
    """
    if sweeper is None or not isinstance(storage := sweeper.get("storage"), str):
        return
    import optuna  # installed, because the sweeper needs it

    study = optuna.load_study(study_name=sweeper.study_name, storage=storage)
    trials = study.trials_dataframe(attrs=("number", "state", "value", "params", "datetime_start"))
    write_csv(trials, folder / STUDY)
    if not (trials["state"] == "COMPLETE").any():
        return
    best = study.best_trial
    words = " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in best.params.items()
    )
    console.print(
        f"Best of the whole study {study.study_name}, trial {best.number} of {len(trials)}: {words} "
        f"(objective {best.value:.4g})",
        style="bold",
        highlight=False,
        markup=False,
    )
    _print_path("study", folder / STUDY, console)


def _print_path(what: str, path: Path, console: Console) -> None:
    console.print(f"[dim]{what}:[/] {escape(str(path))}", soft_wrap=True, highlight=False)


def show(page: SweepPage, console: Console) -> None:
    """Print the table of jobs, the heat maps, the errors, and the best job by validation."""
    jobs = page.jobs
    known = {column.name for column in columns.JOBS}
    varied = columns.plain(jobs, [name for name in page.swept if name in jobs and name not in known])
    shown = columns.after(columns.JOBS, "factor", varied)
    shown_jobs = jobs[[name for name in jobs if jobs[name].notna().any()]]
    console.print(frame_table(shown_jobs, "The sweep", shown, rows=60, console=console))
    if maps := [heat_map(grid, name) for name, grid in page.grids().items()]:
        down, across = page.axes[0], page.axes[-1]
        console.print(f"[bold]Change on validation in points, by {down} (down) and {across} (across)[/]")
        console.print(Columns(maps, padding=(0, 3)))
    if len(page.replicates):
        console.print(frame_table(readable(page.replicates), "Over seeds, in per cent or points", console=console))
    for row in page.failed.to_dict("records"):
        console.print(f"[red]job {row['job']} failed:[/] {escape(row['error'])}", highlight=False)
    if page.best is not None:
        console.print(f"\n{page.summary()}", highlight=False, markup=False)
        if isinstance(page.best.get("verdict"), str):
            console.print(unbroken(page.best["verdict"]), style="bold", highlight=False, markup=False)


def heat_map(grid: pd.DataFrame, title: str) -> Table:
    """A layer's cells by two settings: green above zero, red below, the cell with the best job in reverse video.

    Args:
        grid: columns: the two axes, delta (a fraction), chosen.
    """
    down, across = grid.columns[0], grid.columns[1]
    cells: dict[tuple[str, str], str] = {}
    for cell in grid.to_dict("records"):
        colour = "green" if cell["delta"] > 0 else "red" if cell["delta"] < 0 else ""
        style = " ".join(filter(None, (colour, "reverse" if cell["chosen"] else "")))
        text = points(cell["delta"])
        cells[plain(cell[down]), plain(cell[across])] = f"[{style}]{text}[/]" if style else text
    rows, columns = ([plain(v) for v in sorted(grid[name].unique())] for name in (down, across))
    return matrix_table(title, f"{down} \\ {across}", rows, columns, cells)


def show_trainings(trainings: pd.DataFrame, console: Console) -> None:
    """Print the results of the edit and of cheap alternatives over trainings, and the verdict."""
    shown = [*(columns.Column(str(name)) for name in trainings if name not in TRAINING_COLUMNS), *columns.TRAININGS]
    console.print(frame_table(trainings, "Over trainings, compared with cheap alternatives", shown, console=console))
    for sentence in verdicts_over_trainings(trainings):
        console.print(unbroken(sentence), style="bold", highlight=False, markup=False)


def _log(page: SweepPage, folder: Path, config: DictConfig, trainings: pd.DataFrame) -> None:
    """Log the sweep as one W&B run, if its jobs were logged to W&B."""
    if (config.get("logger") or {}).get("wandb") is None:
        return
    config = resolvable(config, folder)
    entry = OmegaConf.create(OmegaConf.to_container(config.logger.wandb, resolve=True))
    with open_dict(entry):
        entry.update(group=folder.name, job_type="sweep", name=f"sweep-{folder.name}", id=None)
    sink = sink_for(instantiate(entry))
    sink.config({**resolved(config), "swept": list(page.swept)})
    sink.table("sweep/jobs", page.jobs.astype(str))
    if len(page.replicates):
        sink.table("sweep/seeds", page.replicates)
    if len(trainings):
        sink.table("sweep/trainings", trainings)
        sink.summary({"sweep/verdict": " ".join(verdicts_over_trainings(trainings))})
    limit = page.full_colour()
    for name, grid in page.grids().items():
        drawing = figures.grid_heatmap(grid, f"{name}: change on validation", limit=limit)
        name = f"grid_{name.replace(' · ', '_')}"
        sink.image(f"sweep/{name}", figures.save_png(drawing, folder / "figures" / f"{name}.png"))
    results: dict[str, float | str] = {"sweep/count": len(page.jobs), "sweep/failed": len(page.failed)}
    if (best := page.best) is not None:
        known = [column.name for column in columns.JOBS if column.rank is not None]
        wanted = [name for name in (*known, "seed") if isinstance(best.get(name), int | float)]
        results |= {f"sweep/best/{name}": float(best[name]) for name in wanted if math.isfinite(best[name])}
        results["sweep/best/job"] = f"{best['job']}: {page.name(best)}"
    sink.summary(results)
    sink.finish(failed=False)


def resolvable(config: DictConfig, folder: Path) -> DictConfig:
    """The multirun's config with the sweep's folder as its run folder, so that every ``${hydra:...}`` in it resolves.

    Hydra sets ``HydraConfig`` only for the jobs, not for the end of a multirun.
    """
    config = config.copy()
    with open_dict(config):
        config.hydra.runtime.output_dir = str(folder)
        config.hydra.job.num, config.hydra.job.id = -1, "sweep"
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config

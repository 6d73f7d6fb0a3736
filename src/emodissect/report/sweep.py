"""The page of a multirun: all jobs in one table, heat maps by layer, and the test result of the best by validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from markupsafe import Markup

from emodissect.core import number_format as words
from emodissect.core.number_format import DASH
from emodissect.report import claims, columns, figures, page
from emodissect.report.columns import Column
from emodissect.report.page import Content, Extra, Fact, Folded, Page, Section

#: The columns that distinguish jobs.
SETTINGS = ("layer", "selection", "rule", "tau", "factor", "seed")
_BOUNDS = [
    f"{name}_{bound}" for name in ("delta_val", "accuracy_before", "accuracy_after") for bound in ("low", "high")
]
HIDDEN = {"folder", "task", "chosen", "verdict", *_BOUNDS}
FIGURE_NAMES = {
    "delta_val": "change on validation (points)",
    "delta": "change on test (points)",
    "accuracy_before": "accuracy before, test (%)",
    "accuracy_after": "accuracy after, test (%)",
    "val/acc": "accuracy, validation (%)",
    "test/acc": "accuracy, test (%)",
}


@dataclass
class SweepPage(Page):
    """The page of a multirun.

    Attributes:
        jobs: one row per job: its overrides (``layer``, ``tau``, ``factor``, ...), ``delta_val`` and ``delta`` (change
            of accuracy on validation and on test, fractions), where known ``delta_low``, ``delta_high``, ``p_value``,
            ``accuracy_before``, ``accuracy_after``; ``error`` where it failed. Of the other columns, those that
            differ between jobs are shown.
        value: the column that the jobs were ranked by; higher is better.
        command, manifest: command line and manifest of the multirun.
        swept: the columns that distinguish jobs.
        replicates: metrics averaged over seeds (:func:`emodissect.studies.seeds.over_seeds`), where seeds were swept.
        title: page title.
        extras: further sections.
    """

    kind: ClassVar[str] = "sweep"

    jobs: pd.DataFrame
    value: str = "delta_val"
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    swept: Sequence[str] = ("layer", "tau", "factor")
    replicates: pd.DataFrame = field(default_factory=pd.DataFrame)
    title: str = "Every job of the sweep"
    extras: Sequence[Extra] = ()

    def sections(self, content: Content) -> list[Section]:
        sections = []
        if self.grids():
            sections.append(Section("maps", "By layer, τ and factor", self._maps(content)))
        if "delta" in self.done and self.done["delta"].notna().any():
            sections.append(Section("test", "On test", self._test(content)))
        if len(self.replicates):
            sections.append(Section("seeds", "Over seeds", self._over_seeds(content)))
        sections.append(Section("jobs", "Jobs", self._table()))
        return sections

    @property
    def failed(self) -> pd.DataFrame:
        """The jobs with an error."""
        return self.jobs[self.jobs["error"].notna()] if "error" in self.jobs else self.jobs[:0]

    @property
    def done(self) -> pd.DataFrame:
        """The jobs without an error."""
        return self.jobs.drop(index=self.failed.index)

    @property
    def best(self) -> pd.Series | None:
        """The best job by the ranking column."""
        if self.value not in self.done or not self.done[self.value].notna().any():
            return None
        return self.done.iloc[int(np.nanargmax(self.done[self.value].to_numpy(dtype=float)))]

    def summary(self) -> str:
        text = f"{words.count(len(self.jobs), 'job')}"
        text += f", {words.count(len(self.failed), 'failed', 'failed')}. " if len(self.failed) else ", all finished. "
        best = self.best
        if best is None:
            return text + f"No job has the metric {self.value}."
        tied = claims.equals(self.done, self.value)
        text += f"Best by {self._ranking}: {claims.named(tied, self.name)} ({self._figure(best[self.value])})"
        if len(tied) > 1:
            return f"{text}: {len(tied)} jobs tie. {self._all_lose_text()}".strip()
        if self.value != "delta" and "delta" in best and not words.missing(best["delta"]):
            text += f"; on test it gives {words.points(best['delta'])} points"
            if "p_value" in best and not words.missing(best["p_value"]):
                text += f" ({words.p_sentence(best['p_value'])})"
        elif self.value == "val/acc" and "test/acc" in best and not words.missing(best["test/acc"]):
            text += f"; on test it reaches {words.percent(best['test/acc'])}"
        tries = words.count(len(self.done), "try", "tries")
        text += f". {self._all_lose_text()}The best of {tries} looks better than it is: "
        if "delta" in best or "test/acc" in best:
            return text + (
                "trust the test figure of the job that validation chose, not the largest test figure in the table."
            )
        return text + "compare it with its chance level, which differs from job to job."

    def _all_lose_text(self) -> str:
        """Sentence for a sweep in which every edit loses accuracy on validation; empty otherwise."""
        if self.value != "delta_val" or not (self.done["delta_val"].dropna() < 0).all():
            return ""
        return "On validation every edit loses accuracy: leaving the network alone is better than any of them. "

    def facts(self) -> list[Fact]:
        facts = [
            Fact(f"{len(self.done):,}", "jobs finished"),
            Fact(f"{len(self.failed):,}", "jobs failed", "", "bad" if len(self.failed) else ""),
        ]
        best = self.best
        if best is not None:
            facts.append(Fact(self._figure(best[self.value]), f"best by {self._ranking}", self.name(best)))
            if "delta" in best and not words.missing(best["delta"]):
                note = words.p_sentence(best["p_value"]) if "p_value" in best else ""
                facts.append(Fact(f"{words.points(best['delta'])} points", "the same job on test", note))
        if "seconds" in self.done and len(self.done):
            facts.append(Fact(f"{self.done['seconds'].median():.1f} s", "median time of a job"))
        return facts

    @property
    def _ranking(self) -> str:
        return "validation" if self.value in {"delta_val", "val/acc"} else self.value.replace("_", " ")

    def _figure(self, value: float) -> str:
        if "delta" in self.value:
            return f"{words.points(value)} points"
        return words.percent(value) if self.value.endswith(("acc", "accuracy")) else words.number(float(value), 4)

    def name(self, row: pd.Series) -> str:
        """A job's settings that distinguish it, else its number."""
        parts = [
            f"{'τ =' if name == 'tau' else name} {words.plain(row[name])}" if _is_number(row[name]) else str(row[name])
            for name in self.swept
            if name in row and not words.missing(row[name])
        ]
        job = row.get("job", row.name)
        return ", ".join(parts) or f"job {words.plain(job) if _is_number(job) else job}"

    @property
    def axes(self) -> list[str]:
        """The two axes of the heat maps: swept numeric settings, else tau and factor where jobs have them."""
        numbers = [name for name in self.swept if name != "seed" and name in self.done]
        numbers = [name for name in numbers if pd.to_numeric(self.done[name], errors="coerce").notna().all()]
        further = [name for name in ("tau", "factor") if name in self.done and name not in numbers]
        chosen = [*numbers, *further][:2]
        return sorted(chosen, key=["tau", "factor"].index) if set(chosen) == {"tau", "factor"} else chosen

    def grids(self) -> dict[str, pd.DataFrame]:
        """The heat maps with more than one cell: one per layer and combination of swept text settings.

        Columns: the two :attr:`axes`, delta (on validation), chosen, jobs, and p_value where each cell is one job.
        Jobs that share a cell, e.g. with different seeds, are averaged.
        """
        axes = self.axes
        needed = [*axes, self.value]
        if not axes or not set(needed) <= set(self.done) or "delta" not in self.value:
            return {}
        cells = self.done.copy()
        for name in axes:
            cells[name] = pd.to_numeric(cells[name], errors="coerce")
        cells = cells.dropna(subset=needed)
        cells["chosen"] = [self.best is not None and index == self.best.name for index in cells.index]
        others = [name for name in self.swept if name not in {*SETTINGS, *axes, "edit"}]
        named_by = [name for name in ("layer", "selection", "rule", *others) if name in cells]
        by = [name for name in named_by if name == "layer" or len(set(cells[name].astype(str))) > 1]
        found = {}
        for name, group in cells.groupby(_joined(cells, by), sort=False):
            columns = {"delta": (self.value, "mean"), "chosen": ("chosen", "any"), "jobs": ("chosen", "size")}
            if "p_val" in group and not group.duplicated(axes).any():
                columns["p_value"] = ("p_val", "first")
            grid = group.groupby(axes, as_index=False).agg(**columns)
            if len(grid) > 1:
                found[str(name)] = grid
        return found

    def full_colour(self) -> float:
        """The change that gets the full colour, the same in all heat maps."""
        return float(self.done[self.value].astype(float).abs().max())

    def _maps(self, content: Content) -> Markup:
        drawings = []
        for names, grid in self.grids().items():
            top = claims.equals(grid, "delta")
            several = ", the mean over jobs in a cell" if (grid["jobs"] > 1).any() else ""
            caption = (
                f"{names}: change on validation in points{several}; best {words.points(top['delta'].iloc[0])} at "
                f"{claims.named(top, self._place)}."
            )
            caption += " The framed cell contains the best job of the sweep." if grid["chosen"].any() else ""
            drawings.append(content.figure(figures.grid_heatmap(grid, names, limit=self.full_colour()), caption))
        return page.block(figures=drawings)

    def _place(self, cell: pd.Series) -> str:
        return ", ".join(f"{'τ =' if name == 'tau' else name} {words.plain(cell[name])}" for name in self.axes)

    def _test(self, content: Content) -> Markup:
        rows = self.done.dropna(subset=["delta"])
        shown = rows.loc[rows["delta"].sort_values(ascending=False, kind="stable").index[:40]]
        caption = (
            f"Change on test of {'the 40 highest of ' if len(rows) > 40 else ''}{words.count(len(rows), 'job')}, from "
            f"{words.points(rows['delta'].min())} to {words.points(rows['delta'].max())} points."
        )
        if "p_value" in rows:
            sure = int((rows["p_value"] < 0.05).sum())
            caption += f" p < .05 in {sure} of them; expected by chance: {words.expected(len(rows))}."
        return content.figure(figures.deltas(shown, [self.name(row) for _, row in shown.iterrows()]), caption)

    def _over_seeds(self, content: Content) -> Markup:
        names = [str(name) for name in self.replicates]
        settings = names[: names.index("figure")]
        parts = []
        changes = self.replicates[self.replicates["figure"] == "delta"]
        if len(changes):
            rows = changes.rename(columns={"mean": "delta", "low": "delta_low", "high": "delta_high"})
            names = [", ".join(f"{name} {row[name]}" for name in settings) or "all seeds" for _, row in rows.iterrows()]
            sure = int((changes["p_value"] < 0.05).sum())
            caption = (
                f"Mean change on test over seeds with its 95 % interval (Student's t). It excludes 0 for {sure} of "
                f"{words.count(len(changes), 'setting')}; expected by chance: {words.expected(len(changes))}."
            )
            parts.append(content.figure(figures.deltas(rows, names), caption))
        shown = [*(Column(name, name) for name in settings), *columns.SEEDS]
        caption = (
            "Each seed is a separate training. The interval covers the variation between trainings on the same test "
            "images; each job's own interval covers the variation between test images."
        )
        parts.append(page.table(readable(self.replicates), shown, caption=caption))
        return page.block(parts=parts)

    def _table(self) -> Markup:
        done, failed = self.done.rename(columns=str), self.failed.rename(columns=str)
        parts = []
        if len(done):
            best = self.best
            marked = [best is not None and index == best.name for index in done.index]
            caption = "The marked job is the one that validation chose." if best is not None else ""
            if any(links := self._links(done)):
                caption += " A job's number links to its report."
            parts.append(page.table(done, self._columns(done), marked, caption.strip(), limit=2000, links=links))
        folded = None
        if len(failed):
            settings = [c for c in self._columns(self.jobs.rename(columns=str)) if c.name in {"job", *self.swept}]
            shown = [*settings, *(column for column in columns.JOBS if column.name == "error")]
            table = page.table(failed, shown, limit=2000)
            folded = Folded(f"{words.count(len(failed), 'job')} failed", parts=[table], is_open=not len(done))
        return page.block(parts=parts, folded=folded)

    def _columns(self, jobs: pd.DataFrame) -> list[Column]:
        """The columns of the job table: the settings that distinguish jobs, and the results."""
        known = [
            column
            for column in columns.present(columns.JOBS, jobs)
            if column.name != "error" and (column.name not in SETTINGS or len(set(jobs[column.name].astype(str))) > 1)
        ]
        names = {column.name for column in columns.JOBS} | HIDDEN
        swept = [str(name) for name in self.swept if name in jobs and name not in names]
        place = "factor" if any(column.name == "factor" for column in known) else known[0].name if known else ""
        shown = columns.after(known, place, columns.plain(jobs, swept)) if known else columns.plain(jobs, swept)
        return [
            replace(column, form="text")
            if column.is_number and not pd.api.types.is_numeric_dtype(jobs[column.name])
            else column
            for column in shown
        ]

    def _links(self, jobs: pd.DataFrame) -> list[str]:
        """Relative path of each job's report; empty where there is none."""
        if not {"folder", "job"} <= set(jobs):
            return [""] * len(jobs)
        return [
            f"{row['job']}/report.html" if (Path(str(row["folder"])) / "report.html").exists() else ""
            for row in jobs.to_dict("records")
        ]


def readable(replicates: pd.DataFrame) -> pd.DataFrame:
    """Metrics over seeds for display: fractions in per cent or points, with display names."""
    percent = {name: 100 * replicates[name] for name in ("mean", "sd", "low", "high")}
    return replicates.assign(**percent, figure=replicates["figure"].map(FIGURE_NAMES))


def _joined(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The values of several columns joined into one string per row, to group by."""
    texts = [rows[name].map(lambda value: DASH if words.missing(value) else str(value)) for name in columns]
    return pd.Series([" · ".join(row) for row in zip(*texts, strict=True)] if texts else "", index=rows.index)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not words.missing(float(value))

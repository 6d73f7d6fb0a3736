"""The page of an edit study: the verdict, the grid, the controls, what changed, and the dissection behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from markupsafe import Markup

from emodissect.core import number_format as words
from emodissect.data.images import ImageSet
from emodissect.models.predictions import Predictions
from emodissect.report import claims, columns, figures, page
from emodissect.report.dissection import DissectionPage
from emodissect.report.neurons import predicted_classes
from emodissect.report.page import Content, Extra, Fact, Folded, Page, Section
from emodissect.studies import ConceptAblation
from emodissect.studies.cells import axes_of, map_axes, settings_in

MEASURES = {
    "accuracy": "accuracy (%)",
    "top2": "top-2 accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "nll": "negative log-likelihood",
    "ece": "calibration error (%)",
}
ABLATION_TITLE = "Which classes need a concept's neurons?"
#: Flipped images shown each way.
MOST_FLIPS = 48


@dataclass
class EditPage(Page):
    """The page of ``edit.py``.

    Attributes:
        grid: one row per cell of the study, on validation; the chosen one has ``chosen`` True.
        comparison: of the chosen edit on test, from :meth:`emodissect.studies.comparison.Comparison.row`.
        verdict: the result in one sentence.
        class_names: in the order of the labels.
        controls: columns control, draw, delta_test.
        before, after: predictions on test, for the confusion and the flipped images.
        images: the test images.
        dissection: the labels that the edit used; its sections follow.
        command, manifest: command line and manifest of the run.
        optimistic: the edit was chosen on the images it is compared on; shown as a red warning.
        selection_split, test_split: where it was chosen and compared, e.g. ``val+test``.
        notes: further red warnings.
        checks: how the edit was compared, and how certain that is: name -> result.
        alpha: significance level.
        title: page title.
        grid_images: number of images behind the grid, for the width of the noise band.
        ablations: layer -> effect on each class of silencing each concept's neurons.
        extras: further sections.
    """

    kind: ClassVar[str] = "edit"

    grid: pd.DataFrame
    comparison: Mapping[str, Any]
    verdict: str
    class_names: Sequence[str]
    controls: pd.DataFrame | None = None
    before: Predictions | None = None
    after: Predictions | None = None
    images: ImageSet | None = None
    dissection: DissectionPage | None = None
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    optimistic: bool = False
    selection_split: str = "val"
    test_split: str = "test"
    notes: Sequence[str] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    alpha: float = 0.05
    title: str = "Did the edit help?"
    grid_images: int | None = None
    ablations: Mapping[str, ConceptAblation] = field(default_factory=dict)
    extras: Sequence[Extra] = ()

    def sections(self, content: Content) -> list[Section]:
        sections = [Section("grid", "The grid", self._grid(content), "Grid")]
        if self.controls is not None and len(self.controls):
            sections.append(Section("controls", "Controls", self._controls(content)))
        sections.append(Section("change", "What changed", self._change(content), "Change"))
        if self.images is not None and self._moved:
            sections.append(Section("flips", "Images that flipped", self._flips(content), "Flips"))
        if self.checks:
            sections.append(Section("judging", "How it was compared", self._checks(), "Comparison"))
        if self.ablations:
            ablated = Section("ablation", "Without the neurons of one concept", self._ablation(content), "Ablation")
            sections.insert(0, ablated)
        return sections

    def last_sections(self, content: Content) -> list[Section]:
        """The sections of the dissection whose labels the edit used."""
        return self.dissection.sections(content) if self.dissection is not None else []

    @property
    def heading(self) -> str:
        return ABLATION_TITLE if self.ablations else self.title

    def summary(self) -> str:
        """The result in plain words: the ablation's most affected class first, then the edit."""
        ablated = [claims.ablation_headline(found.frame, layer, self.alpha) for layer, found in self.ablations.items()]
        return " ".join([*ablated, "The edit: " * bool(ablated) + self.verdict])

    def warnings(self) -> list[str]:
        found = [claims.optimistic_text(self.grid, self.comparison["delta"], self._tested)] if self.optimistic else []
        if self.before is not None:
            found.append(claims.majority_text(self.before.confusion().numpy(), self.class_names))
        return [*found, *self.notes]

    @property
    def _tested(self) -> str:
        """The images that the edit is compared on."""
        return claims.split_name(self.test_split)

    @property
    def _selected(self) -> str:
        """The images that the edit was chosen on."""
        return self._tested if self.optimistic else claims.split_name(self.selection_split)

    @property
    def chosen(self) -> pd.Series | None:
        """The chosen cell of the grid."""
        if "chosen" not in self.grid or not self.grid["chosen"].any():
            return None
        return self.grid[self.grid["chosen"].astype(bool)].iloc[0]

    def facts(self) -> list[Fact]:
        row = self.comparison
        delta, p = row["delta"], row.get("p_value")
        clear = p is not None and p < self.alpha
        interval = f"95 %: {words.points(row.get('low'))} to {words.points(row.get('high'))}"
        facts = [
            Fact(
                words.percent(row["accuracy_after"], 2),
                f"accuracy on {self._tested}, edited",
                f"{words.percent(row['accuracy_before'], 2)} before"
                + (f", {words.count(int(row['images']), 'image')}" if row.get("images") else ""),
            ),
            Fact(
                f"{words.points(delta)} points",
                "change",
                interval,
                ("good" if delta > 0 else "bad") if clear else "",
            ),
            Fact(words.p_value(p), "p-value", "exact McNemar: would chance flips do as much?"),
            Fact(
                f"+{int(row['gained'])} / {words.MINUS}{int(row['lost'])}",
                "newly correct / newly wrong",
                f"net {int(row['gained']) - int(row['lost']):+d}".replace("-", words.MINUS),
            ),
        ]
        cell = self.chosen
        if cell is not None:
            facts.append(
                Fact(
                    str(cell["layer"]),
                    f"chosen on {self._selected}",
                    f"{claims.setting(cell)}; {words.count(int(cell['selected']), 'neuron')} selected",
                )
            )
        return facts

    def _grid(self, content: Content) -> Markup:
        cells_count = len(self.grid)
        where = f"the {self._selected} images"
        if cells_count == 1:
            images = self.grid_images or _images_of(self.grid)
            band = figures.noise_band(self.grid, images) if images else None
            text = claims.one_cell_text(self.grid.iloc[0], where, band)
        else:
            text = claims.grid_text(self.grid, where, self.alpha)
        named_by = [name for name in ("layer", "selection", "rule") if name in self.grid]
        by = [name for name in named_by if name == "layer" or len(set(self.grid[name])) > 1] or named_by
        by = [*by, *axes_of(self.grid)[1:-1]]  # a heat map has two axes
        drawings = []
        images = self.grid_images or _images_of(self.grid)
        limit = figures.full_colour(self.grid, images) if images else None
        worst_nll = None
        if {"nll_before", "nll_after"} <= set(self.grid):
            worst_nll = float((self.grid["nll_after"] - self.grid["nll_before"]).abs().max())
        for key, cells in self.grid.groupby(by, sort=False, dropna=False):
            if len(cells) == 1 or cells.duplicated([name for name in map_axes(cells) if name]).any():
                continue  # the table below shows it
            names = [str(part) for part in (key if isinstance(key, tuple) else (key,))]
            name = " · ".join(names)
            heat_map = figures.grid_heatmap(cells, f"{name}: accuracy", self.alpha, limit)
            drawings.append(content.figure(heat_map, self._cell_caption(cells)))
            if {"nll_before", "nll_after"} <= set(cells):
                worse = int((cells["nll_after"] > cells["nll_before"] + 1e-6).sum())
                caption = (
                    f"The probabilities get worse (orange: NLL rises) in {worse} of {len(cells)} cells. A gain in "
                    "accuracy with worse probabilities is not a better classifier."
                )
                heat_map = figures.nll_heatmap(cells, f"{name}: negative log-likelihood", worst_nll)
                drawings.append(content.figure(heat_map, caption))
        settings = settings_in(self.grid)
        shared = claims.shared_words(self.grid, ["selection", "rule", *settings])
        shown = columns.after(columns.GRID, "rule", columns.settings(self.grid, settings))
        marked = list(self.grid["chosen"]) if "chosen" in self.grid else None
        differing = self.grid.dropna(axis=1, how="all").drop(columns=list(shared))
        table = page.table(differing, shown, marked, claims.shared_words_text(shared, cells_count), limit=1000)
        title = f"The grid as a table, {words.count(cells_count, 'row')}"
        return page.block(text, drawings, folded=Folded(title, parts=[table], is_open=cells_count <= 12))

    def _cell_caption(self, cells: pd.DataFrame) -> str:
        images = self.grid_images or _images_of(cells)
        return claims.cells_text(cells, figures.noise_band(cells, images) if images else None)

    def _controls(self, content: Content) -> Markup:
        assert self.controls is not None
        delta, controls = float(self.comparison["delta"]), claims.shown_controls(self.controls)
        text = "Other edits, on the same images."
        if len(controls) < len(self.controls):
            text += (
                " With one cell in the grid, shuffling the labels gives the same draws as random neurons; they are "
                "shown once."
            )
        table = claims.controls_table(controls, delta, figures.editing.CONTROL_NAMES)
        drawing = figures.control_distribution(controls, delta)
        drawn = content.figure(drawing, claims.controls_text(table, delta, self._tested))
        return page.block(text, [drawn], [page.table(table, columns.CONTROLS)])

    @property
    def _moved(self) -> int:
        """Images whose predicted class the edit changes, where both predictions are known."""
        if self.before is None or self.after is None:
            return 0
        return int((self.before.logits.argmax(1) != self.after.logits.argmax(1)).sum())

    def _change(self, content: Content) -> Markup:
        row = self.comparison
        shown = [page.table(_measures(row), columns.MEASURES)]
        if row.get("recall_before") is not None and row.get("recall_after") is not None:
            first = np.array([np.nan if v is None else v for v in row["recall_before"]], dtype=float)
            last = np.array([np.nan if v is None else v for v in row["recall_after"]], dtype=float)
            change = last - first
            caption = "Recall by class before and after. "
            if np.isfinite(change).any() and np.nanmax(np.abs(change)) > 0:
                up, down = int(np.nanargmax(change)), int(np.nanargmin(change))
                extremes = []
                if change[up] > 0:
                    extremes.append(f"largest rise: {self.class_names[up]}, {words.points(change[up], 1)} points")
                if change[down] < 0:
                    extremes.append(f"largest fall: {self.class_names[down]}, {words.points(change[down], 1)} points")
                caption += words.sentence("; ".join(extremes))
            else:
                caption += "No class changed."
            counts = None if self.before is None else np.bincount(self.before.labels.numpy(), minlength=len(first))
            bars = figures.recall_bars({"before": first, "after": last}, self.class_names, counts)
            shown.append(content.figure(bars, caption))
        further = []
        if self.before is not None and self.after is not None:
            if not self._moved:
                return page.block(figures=shown, parts=[page.block("No image changes its predicted class.")])
            first, last = (predictions.confusion().numpy() for predictions in (self.before, self.after))
            caption = f"{words.count(self._moved, 'image')} of {len(self.before.labels):,} change predicted class. "
            caption += _largest_move(last - first, self.class_names)
            further.append(content.figure(figures.confusion_change(first, last, self.class_names), caption))
        return page.block(figures=shown, parts=further)

    def _flips(self, content: Content) -> Markup:
        assert self.before is not None
        assert self.after is not None
        assert self.images is not None
        first, last = predicted_classes(self.before), predicted_classes(self.after)
        truth = dict(zip(self.before.ids.tolist(), self.before.labels.tolist(), strict=True))
        groups = []
        for title, right in (("Newly correct", last), ("Newly wrong", first)):
            wrong = first if right is last else last
            ids = [i for i, label in truth.items() if right[i] == label and wrong[i] != label]
            shown = ids[:MOST_FLIPS]
            content.pool.add(self.images, shown)
            tiles = [
                content.image(
                    i, self.class_names[truth[i]], f"{self.class_names[first[i]]} → {self.class_names[last[i]]}"
                )
                for i in shown
            ]
            note = (
                f"{words.count(len(ids), 'image')}{f', the first {MOST_FLIPS} shown' if len(ids) > MOST_FLIPS else ''}"
            )
            groups.append({"title": title, "note": f"{note}. True class; predicted before → after.", "tiles": tiles})
        return page.render("flips.html.j2", groups=groups)

    def _checks(self) -> Markup:
        frame = pd.DataFrame({"check": list(self.checks), "found": list(self.checks.values())})
        return page.table(frame, columns.CHECKS)

    def _ablation(self, content: Content) -> Markup:
        parts = []
        for layer, silenced in self.ablations.items():
            known = silenced.frame.dropna(subset="drop")
            if known.empty:
                parts.append(page.block(f"No concept of {layer} has neurons to silence."))
                continue
            beyond = silenced.beyond(self.alpha)
            caption = (
                "Change of each class's recall in points when the neurons of one concept are set to zero. "
                + claims.ablation_text(silenced.frame, str(layer), self.alpha)
            )
            neurons = silenced.matrix("neurons").iloc[:, 0].astype(int).tolist()
            drawing = figures.concept_ablation(silenced.matrix(), beyond, neurons, str(layer))
            parts.append(content.figure(drawing, caption))
            ordered = known.sort_values(["p_value", "drop"], ascending=[True, False])
            table = page.table(ordered, columns.ABLATION, list(ordered["p_value"] < self.alpha), limit=400)
            title = f"Every concept and class, {words.count(len(known), 'row')}"
            parts.append(page.block(folded=Folded(title, parts=[table])))
        return page.block(parts=parts)


def _measures(row: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for name, label in MEASURES.items():
        before, after = row.get(f"{name}_before"), row.get(f"{name}_after")
        if before is None or after is None:
            continue
        scale = 100 if "(%)" in label else 1
        rows.append(
            {
                "measure": label,
                "before": scale * before,
                "after": scale * after,
                "change": scale * (after - before),
            }
        )
    return pd.DataFrame(rows, columns=["measure", "before", "after", "change"])


def _largest_move(difference: np.ndarray, class_names: Sequence[str]) -> str:
    if not np.abs(difference).max(initial=0):
        return "The confusion matrix is unchanged."
    row, column = words.place(np.abs(difference))
    amount = int(difference[row, column])
    more = "more" if amount > 0 else "fewer"
    if row == column:
        return f"Largest move: {abs(amount)} {more} {class_names[row]} images are recognised."
    return f"Largest move: {abs(amount)} {more} {class_names[row]} images are taken for {class_names[column]}."


def _images_of(cells: pd.DataFrame) -> int | None:
    """Number of images, recovered as (gained - lost) / delta from the cells where it is defined."""
    net = (cells["gained"] - cells["lost"]).to_numpy(dtype=float)
    delta = cells["delta"].to_numpy(dtype=float)
    flipped = (net != 0) & (delta != 0)
    return round(float(np.median(net[flipped] / delta[flipped]))) if flipped.any() else None

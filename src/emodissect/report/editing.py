"""The page of an edit study: the verdict, the grid, the controls, what changed, and the dissection behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from emodissect.core import number_format as words
from emodissect.data.images import ImageSet
from emodissect.models.scores import confusion_matrix
from emodissect.report import columns, figures, page
from emodissect.report.dissection import DissectionPage
from emodissect.report.neurons import Predicted, predicted_classes
from emodissect.report.page import Content, Extra, Fact, Folded, Section
from emodissect.studies import ConceptAblation
from emodissect.studies.cells import axes_of, map_axes, settings_in

MEASURES = {
    "accuracy": "accuracy (%)",
    "top2": "top-2 accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "nll": "negative log-likelihood",
    "ece": "calibration error (%)",
}
#: Flipped images shown each way.
MOST_FLIPS = 48


@dataclass
class EditPage:
    """What ``edit.py`` shows.

    Attributes:
        grid: one row a cell of the study, on validation; the chosen one has ``chosen`` True.
        comparison: of the chosen edit on test, as :meth:`emodissect.studies.comparison.Comparison.row` gives it.
        verdict: one sentence in plain words.
        class_names: in the order of the labels.
        controls: columns control, draw, delta_test.
        before, after: predictions on test, for the confusion and the flipped images.
        images: the test images.
        dissection: the labels that the edit used; its sections follow.
        command, manifest: where it comes from.
        optimistic: the edit was chosen on the test images; said in red.
        notes: further warnings, in red as well.
        checks: how the edit was judged, and how sure that is: name -> what was found.
        alpha: level at which a p-value counts.
        title: of the page.
        grid_images: number of images behind the grid, for the width of the noise band.
        ablations: by layer, what silencing each concept's neurons does to each class.
        extras: further sections.
    """

    grid: pd.DataFrame
    comparison: Mapping[str, Any]
    verdict: str
    class_names: Sequence[str]
    controls: pd.DataFrame | None = None
    before: Predicted | None = None
    after: Predicted | None = None
    images: ImageSet | None = None
    dissection: DissectionPage | None = None
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    optimistic: bool = False
    notes: Sequence[str] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    alpha: float = 0.05
    title: str = "Did the edit help?"
    grid_images: int | None = None
    ablations: Mapping[str, ConceptAblation] = field(default_factory=dict)
    extras: Sequence[Extra] = ()

    def write(self, path: str | Path) -> Path:
        """Write the page; it appears whole or not at all."""
        return page.write(path, self.html())

    def html(self) -> str:
        """The page as a string."""
        content = Content()
        sections = [Section("grid", "The grid", self._grid(content), "Grid")]
        if self.controls is not None and len(self.controls):
            sections.append(Section("controls", "Controls", self._controls(content)))
        sections.append(Section("change", "What changed", self._change(content), "Change"))
        if self.images is not None and self._moved:
            sections.append(Section("flips", "Images that flipped", self._flips(content), "Flips"))
        if self.checks:
            sections.append(Section("judging", "How it was judged", self._judging(), "Judging"))
        if self.ablations:
            sections.append(Section("ablation", "Silencing concepts", self._ablation(content), "Silencing"))
        sections += page.extra_sections(content, self.extras)
        if self.dissection is not None:
            sections += self.dissection.sections(content)
        warning = (
            "Optimistic figure: this edit was chosen on the same test images that it is judged on. "
            "Its gain is the best of many tries and will shrink on new images."
        )
        return page.compose(
            content,
            kind="edit",
            title=self.title,
            lede=self.verdict,
            facts=self.facts(),
            sections=sections,
            command=self.command,
            manifest=self.manifest,
            warning=" ".join([*([warning] if self.optimistic else []), *self.notes]),
        )

    @property
    def chosen(self) -> pd.Series | None:
        """The chosen cell of the grid."""
        if "chosen" not in self.grid or not self.grid["chosen"].any():
            return None
        return self.grid[self.grid["chosen"].astype(bool)].iloc[0]

    def facts(self) -> list[Fact]:
        """The figures at the top."""
        row = self.comparison
        delta, p = row["delta"], row.get("p_value")
        clear = p is not None and p < self.alpha
        interval = f"95 %: {words.points(row.get('low'))} to {words.points(row.get('high'))}"
        facts = [
            Fact(
                words.percent(row["accuracy_after"], 2),
                "accuracy on test, edited",
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
                "images gained / lost",
                f"net {int(row['gained']) - int(row['lost']):+d}".replace("-", words.MINUS),
            ),
        ]
        cell = self.chosen
        if cell is not None:
            facts.append(
                Fact(
                    str(cell["layer"]),
                    "chosen on test" if self.optimistic else "chosen on validation",
                    f"{setting(cell)}; {words.count(int(cell['selected']), 'neuron')} selected",
                )
            )
        return facts

    def _grid(self, content: Content) -> Markup:
        tried = len(self.grid)
        outside = int((self.grid["p_value"] < self.alpha).sum())
        kept = int((self.grid["p_holm"] < self.alpha).sum()) if "p_holm" in self.grid else 0
        where = "the test images" if self.optimistic else "the validation images"
        if tried == 1:
            text = f"One edit was tried on {where}: {self._only_cell()}"
        else:
            text = (
                f"{words.count(tried, 'edit')} were tried on {where}. {outside} lie outside the band that chance "
                f"flips give (p < {words.level(self.alpha)}; {words.expected(tried, self.alpha)} would if no edit did "
                f"anything), "
                f"{kept} after Holm's correction for {tried} tries."
            )
        told = [name for name in ("layer", "selection", "rule") if name in self.grid]
        by = [name for name in told if name == "layer" or len(set(self.grid[name])) > 1] or told
        by = [*by, *axes_of(self.grid)[1:-1]]  # a heat map has two axes
        drawings = []
        images = self.grid_images or _images_of(self.grid)
        limit = figures.full_colour(self.grid, images) if images else None
        worst_nll = None
        if {"nll_before", "nll_after"} <= set(self.grid):
            worst_nll = float((self.grid["nll_after"] - self.grid["nll_before"]).abs().max())
        for key, cells in self.grid.groupby(by, sort=False, dropna=False):
            if len(cells) == 1 or cells.duplicated([name for name in map_axes(cells) if name]).any():
                continue  # the table below says it
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
        shown = columns.after(columns.GRID, "rule", columns.settings(self.grid, settings_in(self.grid)))
        marked = list(self.grid["chosen"]) if "chosen" in self.grid else None
        table = page.table(self.grid.dropna(axis=1, how="all"), shown, marked, limit=1000)
        title = f"The grid as a table, {words.count(tried, 'row')}"
        return page.block(text, drawings, folded=Folded(title, parts=[table], is_open=tried <= 12))

    def _only_cell(self) -> str:
        """What the only cell of a grid gave, in words."""
        cell = self.grid.iloc[0]
        text = (
            f"{words.count(int(cell['selected']), 'neuron')} of {cell['layer']} at {setting(cell)} change accuracy by "
            f"{words.points(cell['delta'])} points ({words.p_sentence(cell['p_value'])}"
        )
        images = self.grid_images or _images_of(self.grid)
        band = f"; chance flips alone give about ±{100 * figures.noise_band(self.grid, images):.2f}" if images else ""
        return f"{text}{band}). A list of values, such as 'tau=[0,0.5,1]', makes a grid."

    def _cell_caption(self, cells: pd.DataFrame) -> str:
        best = cells.iloc[int(cells["delta"].to_numpy().argmax())]
        caption = f"Change of accuracy in points. Best: {words.points(best['delta'])} at {setting(best)} ("
        caption += words.p_sentence(best["p_value"])
        caption += f", {words.p_sentence(best['p_holm'])} after Holm)." if "p_holm" in best else ")."
        images = self.grid_images or _images_of(cells)
        if images:
            band = figures.noise_band(cells, images)
            inside = int((cells["delta"].abs() <= band).sum())
            caption += (
                f" Chance flips alone give a band of about ±{100 * band:.2f} points; "
                f"{inside} of {len(cells)} cells lie in it."
            )
        chosen = cells[cells["chosen"].astype(bool)] if "chosen" in cells else cells[:0]
        if len(chosen):
            caption += " The framed cell was taken."
        return caption

    def _controls(self, content: Content) -> Markup:
        assert self.controls is not None
        delta = float(self.comparison["delta"])
        rows, sentences = [], []
        for kind, group in self.controls.groupby("control", sort=False):
            values = group["delta_test"].dropna().to_numpy(dtype=float)
            if not values.size:
                continue
            name = figures.editing.CONTROL_NAMES.get(str(kind), str(kind).replace("_", " "))
            low, high = np.quantile(values, [0.025, 0.975])
            reached = int((values >= delta - 1e-12).sum())
            rows.append(
                {
                    "control": name,
                    "draws": values.size,
                    "median": float(np.median(values)),
                    "low": low if values.size > 1 else np.nan,
                    "high": high if values.size > 1 else np.nan,
                    "reached": reached,
                }
            )
            if values.size > 1:
                sentences.append(f"{reached} of {values.size} draws of {name} do as well or better")
            else:
                sentences.append(f"{name}: {words.points(values[0])}")
        caption = (
            f"On test, the chosen edit changes accuracy by {words.points(delta)} points; {'; '.join(sentences)}. "
            "If the labels matter, the line stands to the right of the clouds."
        )
        drawing = content.figure(figures.control_distribution(self.controls, delta), caption)
        table = page.table(pd.DataFrame(rows), columns.CONTROLS)
        return page.block("The same edit, its size kept, without using the labels.", [drawing, table])

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
                told = []
                if change[up] > 0:
                    told.append(f"largest rise: {self.class_names[up]}, {words.points(change[up], 1)} points")
                if change[down] < 0:
                    told.append(f"largest fall: {self.class_names[down]}, {words.points(change[down], 1)} points")
                caption += words.sentence("; ".join(told))
            else:
                caption += "No class changed."
            counts = None if self.before is None else np.bincount(self.before.labels.numpy(), minlength=len(first))
            bars = figures.recall_bars({"before": first, "after": last}, self.class_names, counts)
            shown.append(content.figure(bars, caption))
        further = []
        if self.before is not None and self.after is not None:
            if not self._moved:
                return page.block(figures=shown, parts=[page.block("No image gets another predicted class.")])
            first, last = (self._confusion(predictions) for predictions in (self.before, self.after))
            caption = (
                f"{words.count(self._moved, 'image')} of {len(self.before.labels):,} get another predicted class. "
            )
            caption += _largest_move(last - first, self.class_names)
            further.append(content.figure(figures.confusion_change(first, last, self.class_names), caption))
        return page.block(figures=shown, parts=further)

    def _confusion(self, predictions: Predicted) -> np.ndarray:
        counts = confusion_matrix(predictions.logits.argmax(1), predictions.labels, len(self.class_names))
        return counts.numpy()

    def _flips(self, content: Content) -> Markup:
        assert self.before is not None
        assert self.after is not None
        assert self.images is not None
        first, last = predicted_classes(self.before), predicted_classes(self.after)
        truth = dict(zip(self.before.ids.tolist(), self.before.labels.tolist(), strict=True))
        groups = []
        for title, right in (("Became right", last), ("Became wrong", first)):
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

    def _judging(self) -> Markup:
        frame = pd.DataFrame({"check": list(self.checks), "found": list(self.checks.values())})
        return page.table(frame, columns.CHECKS)

    def _ablation(self, content: Content) -> Markup:
        parts = []
        for layer, silenced in self.ablations.items():
            known = silenced.frame.dropna(subset="drop")
            if known.empty:
                parts.append(page.block(f"No concept of {layer} has neurons to silence."))
                continue
            worst = known.iloc[int(known["drop"].to_numpy().argmax())].to_dict()
            beyond = silenced.beyond(self.alpha)
            caption = (
                f"{layer}: change of each class's recall in points when the neurons of one concept are set to zero. "
                f"The largest fall: without “{worst['concept']}” ({words.count(int(worst['neurons']), 'neuron')}), "
                f"{worst['class']} loses {100 * worst['drop']:.1f} points; as many random neurons cost it "
                f"{100 * worst['random_mean']:.1f} on average. {int(beyond.to_numpy(dtype=bool).sum())} of "
                f"{len(known)} falls go beyond random neurons of the same number "
                f"(p < {words.level(self.alpha)}, corrected for the size of the matrix)."
            )
            neurons = silenced.matrix("neurons").iloc[:, 0].astype(int).tolist()
            drawing = figures.concept_ablation(silenced.matrix(), beyond, neurons, str(layer))
            parts.append(content.figure(drawing, caption))
        return page.block(parts=parts)


def setting(cell: pd.Series) -> str:
    """``τ = −0.5, factor 1.5``: the numbers among the cell's settings."""
    parts = [
        f"{word}{words.plain(cell[name])}"
        for name, word in ((name, "τ = " if name == "tau" else f"{name} ") for name in settings_in(cell.to_frame().T))
        if _known(cell, name) and not isinstance(cell[name], str | bool)
    ]
    return ", ".join(parts) or "its only setting"


def _measures(row: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for name, words_for_it in MEASURES.items():
        before, after = row.get(f"{name}_before"), row.get(f"{name}_after")
        if before is None or after is None:
            continue
        scale = 100 if "(%)" in words_for_it else 1
        rows.append(
            {
                "measure": words_for_it,
                "before": scale * before,
                "after": scale * after,
                "change": scale * (after - before),
            }
        )
    return pd.DataFrame(rows, columns=["measure", "before", "after", "change"])


def _largest_move(difference: np.ndarray, class_names: Sequence[str]) -> str:
    if not np.abs(difference).max(initial=0):
        return "The confusion is the same."
    row, column = words.place(np.abs(difference))
    amount = int(difference[row, column])
    more = "more" if amount > 0 else "fewer"
    if row == column:
        return f"Largest move: {abs(amount)} {more} {class_names[row]} images are recognised."
    return f"Largest move: {abs(amount)} {more} {class_names[row]} images are taken for {class_names[column]}."


def _images_of(cells: pd.DataFrame) -> int | None:
    """The number of images behind the deltas, from a cell where gains and losses differ."""
    net = (cells["gained"] - cells["lost"]).to_numpy(dtype=float)
    delta = cells["delta"].to_numpy(dtype=float)
    told = (net != 0) & (delta != 0)
    return round(float(np.median(net[told] / delta[told]))) if told.any() else None


def _known(row: pd.Series, name: str) -> bool:
    return name in row and not pd.isna(row[name])

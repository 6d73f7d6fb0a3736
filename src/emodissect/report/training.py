"""The page of a training run: curves, confusion, recall, and the most confident mistakes."""

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
from emodissect.report import claims, figures, page
from emodissect.report.neurons import saliency_tiles
from emodissect.report.page import Content, Extra, Fact, Page, Section

NAMES = {
    "acc": "accuracy",
    "accuracy": "accuracy",
    "acc_top2": "top-2 accuracy",
    "top2": "top-2 accuracy",
    "f1": "macro F1",
    "macro_f1": "macro F1",
    "nll": "negative log-likelihood",
    "loss": "loss",
    "ece": "calibration error",
}
MISTAKES = 48  # how many of the most confident ones are shown
FRACTIONS = {"accuracy", "top-2 accuracy", "macro F1", "calibration error"}


@dataclass
class TrainPage(Page):
    """The page of ``train.py``.

    Attributes:
        metrics: name -> value, e.g. ``test/acc``; those of val and test are shown at the top.
        class_names: in the order of the labels.
        history: column epoch and the logged metrics, from :meth:`EpochHistory.frame`.
        predictions: on the test images.
        images: the test images.
        command, manifest: command line and manifest of the run.
        title: page title.
        saliency: gradient saliency in [0, 1] by image id, shape (height, width).
        extras: further sections, e.g. the audit of the images.
    """

    kind: ClassVar[str] = "train"

    metrics: Mapping[str, float]
    class_names: Sequence[str]
    history: pd.DataFrame | None = None
    predictions: Predictions | None = None
    images: ImageSet | None = None
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    title: str = "How well the classifier reads faces"
    saliency: Mapping[int, Any] = field(default_factory=dict)
    extras: Sequence[Extra] = ()

    def sections(self, content: Content) -> list[Section]:
        sections = []
        if self.predictions is not None:
            sections.append(Section("classes", "Classes", self._classes(content)))
        if self.history is not None and len(self.history):
            sections.append(Section("curves", "Training", self._curves(content)))
        if self.predictions is not None and self.images is not None:
            sections.append(Section("mistakes", "Most confident mistakes", self._mistakes(content)))
            shown = self.predictions.ids[self.predictions.confident_mistakes(MISTAKES)].tolist()
            if others := {i: heat for i, heat in self.saliency.items() if i not in shown}:
                content.pool.add(self.images, list(others))
                tiles = saliency_tiles(content, others, self.class_names, self.predictions)
                sections.append(Section("saliency", "Where the classifier looked", tiles, "Saliency"))
        return sections

    def summary(self) -> str:
        if self.predictions is None:
            return "The training run's metrics."
        counts = self.predictions.confusion().numpy()
        texts = (claims.recognised_text(counts, self.class_names), claims.majority_text(counts, self.class_names))
        return " ".join(filter(None, texts))

    def facts(self) -> list[Fact]:
        tested = any(name.startswith("test/") for name in self.metrics)
        wanted = [("test", name) for name in NAMES] + [("val", name) for name in (["acc"] if tested else NAMES)]
        facts = []
        for split, metric in wanted:
            value = self.metrics.get(f"{split}/{metric}")
            if value is None or words.missing(float(value)):
                continue
            text = words.percent(value) if NAMES[metric] in FRACTIONS else words.number(float(value), 3)
            low, high = (self.metrics.get(f"{split}/{metric}_{end}") for end in ("low", "high"))
            note = "" if low is None or high is None else f"95 %: {100 * low:.1f} to {words.percent(high)}"
            facts.append(Fact(text, f"{NAMES[metric]}, {'validation' if split == 'val' else split}", note))
        return facts

    def _classes(self, content: Content) -> Markup:
        assert self.predictions is not None
        counts = self.predictions.confusion().numpy()
        confused = claims.confused_text(counts, self.class_names)
        recall = self.predictions.recall().numpy()
        spread = (
            f"Recall ranges from {words.percent(np.nanmin(recall), 0)} to {words.percent(np.nanmax(recall), 0)}; the "
            f"mean over classes is {words.percent(np.nanmean(recall))}."
        )
        return page.block(
            figures=[
                content.figure(figures.confusion(counts, self.class_names), confused),
                content.figure(figures.recall_bars({"test": recall}, self.class_names, counts.sum(axis=1)), spread),
            ]
        )

    def _curves(self, content: Content) -> Markup:
        assert self.history is not None
        caption = ""
        if "val/acc" in self.history:
            by_epoch = self.history.groupby("epoch")["val/acc"].mean().dropna()
            if len(by_epoch):
                at = int(by_epoch.to_numpy().argmax())
                best, last = int(by_epoch.index[at]), int(by_epoch.index[-1])
                caption = f"Validation accuracy is highest in epoch {best}: {words.percent(by_epoch.iloc[at])}"
                caption += f"; the last is epoch {last}." if len(by_epoch) > 1 else "."
                if best == last and len(by_epoch) > 1:
                    caption += " It was still rising: a longer run may do better."
        drawings = [content.figure(figures.training_curves(self.history), caption)]
        layers = [
            c.split("/")[1] for c in map(str, self.history) if c.startswith("dissect/") and c.endswith("/proportion")
        ]
        if layers:
            drawing = figures.concepts_over_epochs(self.history, layers)
            drawings.append(content.figure(drawing, "Interpretable neurons while the network is trained."))
        return page.block(figures=drawings)

    def _mistakes(self, content: Content) -> Markup:
        assert self.predictions is not None
        assert self.images is not None
        sure, guess = self.predictions.logits.softmax(dim=1).max(dim=1)
        rows = {int(self.predictions.ids[row]): row for row in self.predictions.confident_mistakes(MISTAKES).tolist()}
        content.pool.add(self.images, list(rows))
        tiles = [
            content.image(
                image_id,
                self.class_names[int(self.predictions.labels[row])],
                f"→ {self.class_names[int(guess[row])]} {100 * float(sure[row]):.0f}\u00a0%",
                self.saliency.get(image_id),
            )
            for image_id, row in rows.items()
        ]
        text = "The wrong answers with the highest probability: true class → answer and its probability."
        if shaded := sum(image_id in self.saliency for image_id in rows):
            of = "" if shaded == len(rows) else f", in {words.count(shaded, 'image')}"
            text += f" The orange shade shows the pixels that the answer depends on most{of}."
        return page.render("tiles.html.j2", text=text, tiles=tiles)

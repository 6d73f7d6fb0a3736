"""The ladder: cheap alternatives, fitted on the images that the edit was chosen on, compared on the same test."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from emodissect.core.statistics import mcnemar
from emodissect.core.tensor_files import save_tensors
from emodissect.data.datamodule import stratified_rows
from emodissect.data.images import ImageSet
from emodissect.editing.edit import Edit
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import learn_scale
from emodissect.models.predictions import Predictions
from emodissect.studies.baselines.baseline import Baseline, NotAvailable
from emodissect.studies.baselines.with_edit import WITH_EDIT, recalibrated_rows, refitted_head_rows
from emodissect.studies.comparison import compare
from emodissect.studies.metrics import MetricChange

_CEILING_STRENGTH = 1e-8
_CEILING_ITERATIONS = 150
_TRAIN_IMAGES = 10_000  # that baselines are fitted on

log = logging.getLogger(__name__)

COMPARED = (
    *("accuracy_before", "accuracy_after", "delta", "low", "high", "gained", "lost", "p_value"),
    *("nll_before", "nll_after", "macro_f1_before", "macro_f1_after"),
)
"""Columns of the ladder taken from the comparison with the unedited network on test."""

OF_METRIC = tuple(f"metric_{field.name}" for field in fields(MetricChange) if field.name != "metric")
"""Additional columns where the study's metric is not accuracy: its change from the unedited network, on test."""

COLUMNS = ("name", "words", "fitted_on", "settled", *COMPARED, "p_against_edit", *OF_METRIC, "seconds", "note")


@dataclass(frozen=True)
class Alternative:
    """A cheap alternative's predictions on test. They depend on network, layer and images, not on any edit.

    Attributes:
        logits: None where the alternative does not apply to the network.
        settled: the hyperparameters that the fit chose, for its row.
        note: why there are no logits.
        seconds: time taken by the fit and the prediction.
    """

    logits: Float[Tensor, "image class"] | None
    settled: str = ""
    note: str = ""
    seconds: float = 0.0

    @classmethod
    def made(cls, predict: Callable[[], tuple[Tensor, str]]) -> Alternative:
        """Times ``predict``, which returns logits and chosen hyperparameters; a NotAvailable becomes the note."""
        began = time.perf_counter()
        logits, settled, note = None, "", ""
        try:
            logits, settled = predict()
        except NotAvailable as reason:
            note = str(reason)
        return cls(logits, settled, note, time.perf_counter() - began)

    def save(self, folder: Path) -> None:
        """Writes `alternative.json`, and `logits.safetensors` where there are logits."""
        words = {"settled": self.settled, "note": self.note, "seconds": self.seconds}
        (folder / "alternative.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
        if self.logits is not None:
            save_tensors({"logits": self.logits.contiguous()}, folder / "logits.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Alternative:
        """The inverse of :meth:`save`."""
        words = json.loads((folder / "alternative.json").read_text(encoding="utf-8"))
        return cls(None if words["note"] else load_file(folder / "logits.safetensors")["logits"], **words)


Recall = Callable[[str, Baseline | None, str, Callable[[], Alternative]], Alternative]
"""Called with layer, baseline (None: the ceiling), name of the images fitted on and a function that computes the
alternative; returns the alternative, cached or computed."""


def made_now(layer: str, baseline: Baseline | None, fitted_on: str, make: Callable[[], Alternative]) -> Alternative:
    """Computes the alternative without a cache."""
    return make()


@dataclass(frozen=True)
class Alternatives:
    """What an edit is compared with on the test images.

    Attributes:
        baselines: cheap alternatives, fitted on the images that the edit is chosen on.
        train: training images on which they are fitted as well; at most 10,000 are used, stratified by class.
        refit_head: also refit the head behind the edit, and compare with refitting the head alone.
        recalibrate: also recompute the BatchNorm statistics behind the layer on training images, with the edit and
            alone.
        recall: returns the cached predictions of an alternative from a study of another edit of the layer, or
            computes them.
    """

    baselines: Sequence[Baseline] = ()
    train: ImageSet | None = None
    refit_head: bool = False
    recalibrate: bool = False
    recall: Recall = made_now

    def ladder(
        self,
        edit: Edit,
        chosen_on: Mapping[str, EditedLogits],
        test: EditedLogits,
        before: Predictions,
        edited: Predictions,
        change: Callable[[Predictions], MetricChange | None],
        seed: int,
    ) -> pd.DataFrame:
        """One row per alternative, see :func:`climb`; then the rows that include the edit, and the ceiling.

        Args:
            chosen_on: the images that the edit was chosen on, under the name of their split.
            test, before, edited, change: as in :func:`climb`.
            seed: of the choice of training images.
        """
        ((split, chosen),) = chosen_on.items()
        fitted_on: dict[str, Callable[[], EditedLogits]] = {split: lambda: chosen}
        if (train := self.train) is not None:
            if len(train) > _TRAIN_IMAGES:
                train = train.subset(stratified_rows(train.labels, _TRAIN_IMAGES, seed))
            fitted_on["train"] = cache(partial(replace, chosen, images=train))

        def row(logits: Tensor) -> dict[str, Any]:
            return compared(logits, before, edited, change)

        rows = []
        if self.refit_head:
            rows += refitted_head_rows(edit, chosen, split, test, row)
        if self.recalibrate and self.train is not None:
            rows += recalibrated_rows(edit, self.train, test, row)
        ladder = climb(self.baselines, fitted_on, test, before, edited, change, self.recall)
        if len(ladder):
            rows.append(ceiling(test, before, edited, change, self.recall))
        if not rows:
            return ladder
        return pd.concat([ladder, pd.DataFrame(rows)], ignore_index=True) if len(ladder) else pd.DataFrame(rows)


def climb(
    baselines: Sequence[Baseline],
    fitted_on: Mapping[str, Callable[[], EditedLogits]],
    test: EditedLogits,
    before: Predictions,
    edited: Predictions,
    change: Callable[[Predictions], MetricChange | None] = lambda _: None,
    recall: Recall = made_now,
) -> pd.DataFrame:
    """The ladder: one row for each baseline and each set of images it is fitted on.

    Args:
        fitted_on: by name (`val`, `train`), a function that returns the network on the images to fit on.
        change: the change in the study's metric from the unedited network to given predictions; None where the metric
            is accuracy.
        recall: returns the alternative cached from another edit of the layer, or computes it.

    Returns:
        A table with COLUMNS, accuracies as fractions; `p_against_edit` is the exact McNemar p-value of the alternative
        against the edit, `seconds` the time taken when it was computed, and `note` why a row has no figures.
    """
    rows = []
    for baseline in baselines:
        for name, images in list(fitted_on.items())[: None if baseline.is_fitted else 1]:
            on = name if baseline.is_fitted else ""
            predict = partial(_predicted, baseline, images, test)
            found = recall(test.layer, baseline, on, partial(Alternative.made, predict))
            row: dict[str, Any] = {"name": baseline.name, "words": baseline.words, "fitted_on": on}
            row |= {"settled": found.settled, "note": found.note, "seconds": found.seconds}
            if found.logits is not None:
                row |= compared(found.logits, before, edited, change)
            rows.append(row)
            log.debug("%s fitted on %s: %.1f s", baseline.name, name, found.seconds)
    ladder = pd.DataFrame(rows, columns=list(COLUMNS))
    return ladder.drop(columns=list(OF_METRIC)) if ladder["metric_delta"].isna().all() else ladder


def ceiling(
    test: EditedLogits,
    before: Predictions,
    edited: Predictions,
    change: Callable[[Predictions], MetricChange | None] = lambda _: None,
    recall: Recall = made_now,
) -> dict[str, Any]:
    """The ladder's row for the ceiling: a scale and shift per neuron, learned *on the test images*.

    It is fitted by maximum likelihood with next to no regularisation. It is an estimated upper bound for scalings of
    the layer, not a result, and is never reported as an alternative.
    """

    def predict() -> tuple[Tensor, str]:
        operation, _ = learn_scale(test, strengths=[_CEILING_STRENGTH], iterations=_CEILING_ITERATIONS)
        return test.logits([operation])[0], ""

    found = recall(test.layer, None, "test", partial(Alternative.made, predict))
    assert found.logits is not None
    row: dict[str, Any] = {"name": "ceiling", "words": "the ceiling: a scale and shift per neuron", "fitted_on": "test"}
    note = "not a result: fitted on the images that it is compared on"
    row |= {"settled": "", "note": note, "seconds": found.seconds}
    return row | compared(found.logits, before, edited, change)


def _predicted(baseline: Baseline, images: Callable[[], EditedLogits], test: EditedLogits) -> tuple[Tensor, str]:
    predictor, settled = baseline.fit(images())
    return predictor(test), settled


def compared(
    logits: Tensor, before: Predictions, edited: Predictions, change: Callable[[Predictions], MetricChange | None]
) -> dict[str, Any]:
    """The figures of one row of the ladder, from logits on test."""
    after = Predictions(before.ids, before.labels, logits)
    found = compare(before, after)
    right, edit_right = after.predicted == after.labels, edited.predicted == edited.labels
    gained, lost = int((right & ~edit_right).sum()), int((edit_right & ~right).sum())
    row = {name: getattr(found, name) for name in COMPARED} | {"p_against_edit": mcnemar(gained, lost)}
    if (of_metric := change(after)) is not None:
        row |= {f"metric_{name}": value for name, value in of_metric.row().items() if name != "metric"}
    return row


def best_alternative(ladder: pd.DataFrame, of: str = "delta") -> dict[str, Any] | None:
    """The row with the largest change in accuracy (or `metric_delta`) on test, not fitted on test; None without one.

    Taking the best of several on test favours the alternatives, not the edit.
    """
    if not len(ladder):
        return None
    alternative = (ladder["fitted_on"] != "test") & ~ladder["name"].str.startswith(WITH_EDIT)
    known = ladder[ladder[of].notna() & alternative]
    rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]
    return max(rows, key=lambda row: row[of], default=None)

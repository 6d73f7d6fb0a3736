"""Logging of dissections and edits: curves, results, tables, images and artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import Logger

from emodissect.data.images import ImageSet
from emodissect.dissection.labels import Dissection
from emodissect.lightning.sinks import Artifact, Picture, sinks_of
from emodissect.report import columns
from emodissect.report.baselines import ladder_summary
from emodissect.studies import EditStudy
from emodissect.studies.comparison import Comparison


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are finite numbers; back ends cannot plot others."""
    return {name: float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)}


def log_metrics(loggers: Iterable[Logger], metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log finite numbers to every logger: as points of curves if a step is given, else as results of the whole run."""
    numbers = finite(metrics)
    for sink in sinks_of(loggers):
        if step is None:
            sink.summary(numbers)
        else:
            sink.metrics(numbers, step)


def log_history(loggers: Iterable[Logger], history: pd.DataFrame) -> None:
    """Log the curves of an earlier training.

    Args:
        history: one row per epoch: column ``epoch``, and the metrics, NaN where an epoch lacks one.
    """
    for sink in sinks_of(loggers):
        for row in history.to_dict("records"):
            sink.metrics({str(name): value for name, value in row.items() if pd.notna(value)}, int(row["epoch"]))


def log_tables(loggers: Iterable[Logger], frames: Mapping[str, pd.DataFrame], step: int | None = None) -> None:
    """Log data frames by name; empty ones are skipped."""
    for sink in sinks_of(loggers):
        for name, frame in frames.items():
            if len(frame):
                sink.table(name, frame, step)


def log_images(loggers: Iterable[Logger], figures: Mapping[str, Path], step: int | None = None) -> None:
    """Log PNG files by name."""
    for sink in sinks_of(loggers):
        for name, path in figures.items():
            sink.image(name, path, step)


def log_artifact(loggers: Iterable[Logger], made: Artifact, made_from: Sequence[Artifact] = ()) -> None:
    """Log an artifact with its input artifacts."""
    for sink in sinks_of(loggers):
        sink.artifact(made, made_from)


def log_dissection(
    loggers: Sequence[Logger],
    dissection: Dissection,
    probe: ImageSet,
    class_names: Sequence[str],
    *,
    step: int | None = None,
    cards: int = 100,
    figures: Mapping[str, Path] | None = None,
    metrics: bool = True,
    tables: bool = True,
    warning: str = "",
) -> None:
    """Log ``dissect/<layer>/<metric>``, the tables of neurons, layers and concept shares, and histograms.

    Args:
        probe: the probe images, for the top images.
        step: the trainer's step during training, or None for the result of a run.
        cards: number of neurons per layer, by descending z, that get a row with their top images.
        figures: name -> PNG file, logged as images under ``dissect/``.
        metrics: False if the module logs them itself.
        tables: False logs only numbers; the rest is in the labels' artifact.
        warning: about the labels; goes to the run's summary.
    """
    if metrics:
        log_metrics(loggers, dissection_metrics(dissection), step)
    for sink in sinks_of(loggers) if warning else ():
        sink.summary({"dissect/warning": warning})
    if not tables:
        return
    frames = {
        "dissect/neurons": columns.flat(dissection.neurons, columns.NEURONS),
        "dissect/neuron_cards": card_table(dissection.neurons, probe, class_names, cards),
        "dissect/layers": dissection.layers,
        "dissect/concept_shares": dissection.shares,
    }
    log_tables(loggers, frames, step)
    log_images(loggers, {f"dissect/{name}": path for name, path in (figures or {}).items()}, step)
    for sink in sinks_of(loggers):
        for layer, group in dissection.neurons.groupby("layer"):
            similarity = group["similarity"].dropna().to_numpy()
            if len(similarity):
                sink.histogram(f"dissect/{layer}/similarity", similarity.tolist(), step)


def dissection_metrics(dissection: Dissection) -> dict[str, float]:
    """The numbers of the layer table as ``dissect/<layer>/<column>``; NaN where missing."""
    return {
        f"dissect/{row['layer']}/{column.name}": float(row[column.name])
        for row in dissection.layers.to_dict("records")
        for column in columns.present(columns.LAYERS, dissection.layers)
        if column.is_number
    }


def card_table(neurons: pd.DataFrame, probe: ImageSet, class_names: Sequence[str], cards: int) -> pd.DataFrame:
    """Table of the neurons of highest z in each layer, with their top images side by side."""
    names = [column.name for column in columns.on_page(columns.NEURONS, neurons)]
    rows = []
    for _, group in neurons[~neurons["dead"]].groupby("layer", sort=False):
        for row in group.nlargest(cards, "z").to_dict("records"):
            at = probe.rows_of(torch.tensor(list(row["top_ids"])))
            strip = np.concatenate(list(probe.images[at].numpy().transpose(0, 2, 3, 1)), axis=1)
            known = probe.labels[at].tolist() if probe.labelled else []
            truth = ", ".join(class_names[label] if class_names else str(label) for label in known)
            image = Picture(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, truth)
            rows.append([*(row[name] for name in names), image])
    return pd.DataFrame(rows, columns=[*names, "top images"])


def edit_metrics(comparison: Comparison, stage: str) -> dict[str, float]:
    """A comparison's scalars as ``edit/<stage>/<metric>``."""
    return {
        f"edit/{stage}/{name}": float(value)
        for name, value in comparison.row().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def log_study(loggers: Sequence[Logger], study: EditStudy, figures: Mapping[str, Path] | None = None) -> None:
    """Log an edit study: results as ``edit/*``, the grid and the controls as tables, figures (PNG files) as images."""
    results = {
        "edit/delta": study.test.delta,
        "edit/p_value": study.test.p_value,
        "edit/p_random": study.p_random,
        "edit/p_shuffled": study.p_shuffled,
        **{f"edit/{name}": value for name, value in study.settings.items() if isinstance(value, int | float)},
        "edit/selected": float(study.selected.sum()),
        "edit/detectable_delta": study.detectable_delta,
        "edit/claims_gain": float(study.claims_gain),
    }
    log_metrics(loggers, {**edit_metrics(study.val, "val"), **edit_metrics(study.test, "test"), **results})
    for sink in sinks_of(loggers):
        sink.summary({"edit/layer": study.edit.layer, "edit/verdict": study.verdict})
    tables = {"edit/grid": study.grid, "edit/control_draws": study.controls, "edit/ladder": study.ladder}
    tables["edit/neuron_effects"] = study.neuron_effects
    log_tables(loggers, tables)
    log_metrics(loggers, {f"edit/{name}": value for name, value in ladder_summary(study.ladder).items()})
    log_images(loggers, {f"edit/{name}": path for name, path in (figures or {}).items()})

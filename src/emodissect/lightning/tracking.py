"""What a dissection and an edit send to loggers: metrics to all of them, tables, images and artifacts to W&B."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from emodissect.data.images import ImageSet
from emodissect.dissection.labels import Dissection
from emodissect.study import EditStudy
from emodissect.study.comparison import Comparison

log = logging.getLogger(__name__)

LAYER_METRICS = (
    "interpretable",
    "proportion",
    "proportion_null",
    "accuracy",
    "accuracy_interpretable",
    "accuracy_chance",
    "significant",
    "dead",
    "mean_z",
)


def log_metrics(loggers: Iterable[Logger], metrics: Mapping[str, float], step: int | None = None) -> None:
    """Sends finite numbers to every logger."""
    finite = {name: float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)}
    for logger in loggers:
        logger.log_metrics(finite, step=step)


def wandb_runs(loggers: Iterable[Logger]) -> list[Any]:
    """The W&B runs behind the loggers."""
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]


def log_dissection(
    loggers: Sequence[Logger],
    dissection: Dissection,
    probe: ImageSet,
    class_names: Sequence[str],
    *,
    step: int | None = None,
    pictured: int = 100,
    figures: Mapping[str, Path] | None = None,
) -> None:
    """Logs ``dissect/<layer>/<figure>`` to every logger; to W&B also the neuron table, with images, and histograms.

    Args:
        loggers: the trainer's.
        dissection: the labels.
        probe: the images that top images are taken from.
        class_names: for the captions.
        step: the trainer's step, or None for the logger's own.
        pictured: the neurons of highest z of each layer that get a row with their top images.
        figures: PNG files by name, logged as images under ``dissect/``.
    """
    metrics = {
        f"dissect/{row['layer']}/{name}": row[name]
        for row in dissection.layers.to_dict("records")
        for name in LAYER_METRICS
    }
    log_metrics(loggers, metrics, step)
    for run in wandb_runs(loggers):
        payload: dict[str, Any] = {
            "dissect/neurons": neuron_table(dissection.neurons),
            "dissect/neuron_cards": card_table(dissection.neurons, probe, class_names, pictured),
            "dissect/layers": wandb.Table(dataframe=dissection.layers),
            "dissect/concept_shares": wandb.Table(dataframe=dissection.shares),
        }
        for layer, group in dissection.neurons.groupby("layer"):
            similarity = group["similarity"].dropna().to_numpy()
            if len(similarity):
                payload[f"dissect/{layer}/similarity"] = wandb.Histogram(similarity.tolist())
        for name, figure in (figures or {}).items():
            payload[f"dissect/{name}"] = wandb.Image(str(figure))
        if step is not None:
            payload["trainer/global_step"] = step
        run.log(payload)
        for row in dissection.layers.to_dict("records"):
            run.summary[f"dissect/{row['layer']}/interpretable"] = row["interpretable"]


def log_tables(loggers: Iterable[Logger], frames: Mapping[str, pd.DataFrame]) -> None:
    """Sends data frames to W&B as tables, by name; empty ones are left out."""
    tables = {name: wandb.Table(dataframe=frame) for name, frame in frames.items() if len(frame)}
    for run in wandb_runs(loggers):
        if tables:
            run.log(tables)


def neuron_table(neurons: pd.DataFrame) -> wandb.Table:
    """Every neuron's label as a W&B table; lists are joined with semicolons."""
    flat = neurons.drop(columns=["top_values", "runners_up_similarity"]).copy()
    for column in ("top_ids", "runners_up"):
        flat[column] = ["; ".join(str(x) for x in row) for row in flat[column]]
    return wandb.Table(dataframe=flat)


def card_table(neurons: pd.DataFrame, probe: ImageSet, class_names: Sequence[str], pictured: int) -> wandb.Table:
    """The most clearly labelled neurons of each layer with their top images side by side."""
    table = wandb.Table(columns=["layer", "neuron", "concept", "similarity", "z", "q_value", "accuracy", "top images"])
    for layer, group in neurons[~neurons["dead"]].groupby("layer", sort=False):
        for row in group.nlargest(pictured, "z").to_dict("records"):
            rows = probe.rows_of(torch.tensor(list(row["top_ids"])))
            strip = np.concatenate(list(probe.images[rows].numpy().transpose(0, 2, 3, 1)), axis=1)
            truth = ", ".join(class_names[int(probe.labels[r])] for r in rows)
            image = wandb.Image(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, caption=truth)
            table.add_data(
                layer,
                row["neuron"],
                row["concept"],
                row["similarity"],
                row["z"],
                row["q_value"],
                row["accuracy"],
                image,
            )
    return table


@dataclass(frozen=True)
class Artifact:
    """Files that W&B keeps as one artifact.

    Attributes:
        name: the artifact's; W&B numbers its versions by content.
        kind: ``checkpoint``, ``labels`` or ``edited-checkpoint``.
        paths: files, or folders whose files are taken.
        metadata: e.g. content hashes of the inputs, so that the lineage is there offline too.
    """

    name: str
    kind: str
    paths: Sequence[Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def artifact(self, **further: Any) -> wandb.Artifact:
        """As W&B takes it."""
        artifact = wandb.Artifact(self.name, type=self.kind, metadata={**self.metadata, **further})
        for path in self.paths:
            if path.is_dir():
                artifact.add_dir(str(path))
            else:
                artifact.add_file(str(path))
        return artifact


def log_artifact(loggers: Iterable[Logger], made: Artifact, made_from: Sequence[Artifact] = ()) -> None:
    """Keeps files as a W&B artifact that points to what they were made from.

    What it was made from is named in the metadata, and online also marked as used: the same content is the same
    version, wherever it was made, so the lineage graph joins runs that shared the cache. W&B failing to take an
    artifact never fails the run.

    Args:
        loggers: only W&B's take artifacts.
        made: the files.
        made_from: what they came from.
    """
    for run in wandb_runs(loggers):
        if getattr(run, "disabled", False):
            continue
        try:
            if not run.offline:
                for used in made_from:
                    run.use_artifact(used.artifact())
            run.log_artifact(made.artifact(made_from=[used.name for used in made_from]))
        except (wandb.Error, OSError) as error:
            log.warning("W&B did not take the artifact %s (%s); its files stay in the run folder.", made.name, error)


def edit_metrics(comparison: Comparison, stage: str) -> dict[str, float]:
    """A comparison's plain figures as ``edit/<stage>/<figure>``."""
    return {
        f"edit/{stage}/{name}": float(value)
        for name, value in comparison.row().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def log_study(loggers: Sequence[Logger], study: EditStudy, figures: Mapping[str, Path] | None = None) -> None:
    """Logs an edit study: ``edit/*`` to every logger; grid, controls, verdict and figures (PNG files) to W&B."""
    log_metrics(loggers, {**edit_metrics(study.val, "val"), **edit_metrics(study.test, "test")})
    summary = {
        "edit/delta": study.test.delta,
        "edit/p_value": study.test.p_value,
        "edit/p_random": study.p_random,
        "edit/p_shuffled": study.p_shuffled,
        "edit/tau": study.tau,
        "edit/factor": study.factor,
        "edit/selected": float(study.selected.sum()),
        "edit/detectable_delta": study.detectable_delta,
    }
    log_metrics(loggers, summary)
    for run in wandb_runs(loggers):
        payload: dict[str, Any] = {
            "edit/grid": wandb.Table(dataframe=study.grid),
            "edit/control_draws": wandb.Table(dataframe=study.controls),
        }
        payload |= {f"edit/{name}": wandb.Image(str(figure)) for name, figure in (figures or {}).items()}
        run.log(payload)
        for name, value in summary.items():
            run.summary[name] = value
        run.summary["edit/layer"] = study.edit.layer
        run.summary["edit/verdict"] = study.verdict
        run.summary["edit/claims_gain"] = study.claims_gain

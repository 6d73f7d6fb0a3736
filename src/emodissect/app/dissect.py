"""dissect.py: label the neurons of a classifier, write and log the labels and the report."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, ListConfig

from emodissect.app.session import session
from emodissect.app.stages.classifier import trained_classifier
from emodissect.app.stages.dissection import (
    Plan,
    dissected,
    labels_artifact,
    layer_summary,
    with_columns,
    with_label_sets,
    with_maps,
)
from emodissect.app.stages.explanation import explained
from emodissect.app.stages.label_quality import Quality, score_labels
from emodissect.app.stages.leaderboard import ranked
from emodissect.app.stages.neuron_facts import with_facts
from emodissect.app.stages.pages import dissection_figures, dissection_page, write_figures, write_page
from emodissect.app.stages.relevance import relevant
from emodissect.core.errors import UserError
from emodissect.dissection.labels import Dissection
from emodissect.lightning.tracking import log_artifact, log_dissection
from emodissect.report.claims import one_label_text

log = logging.getLogger(__name__)


def dissect(cfg: DictConfig) -> dict[str, Any]:
    """Label the neurons of the chosen layers; write and log the labels and the report."""
    with session(cfg) as run:
        plan = Plan(run, needs_classes=False)
        one_threshold(cfg)
        plan.check()
        if cfg.label_quality or cfg.leaderboard:
            Quality(run, plan).check()
        trained = trained_classifier(run, fit=False, needs_classes=False)
        if not trained.classifier.knows_classes:
            log.info(
                "%s is dissected as it is. Its outputs do not match the classes %s: no predictions are shown.",
                *(type(trained.classifier.network).__name__, ", ".join(run.data.class_names)),
            )
        layers = plan.layers(trained.classifier)
        found = with_maps(run, plan, trained, dissected(run, plan, trained, layers))
        if cfg.label_sets.resamples:
            found = with_label_sets(plan, found)
        explanation = explained(plan, found) if plan.explainer is not None else None
        relevance = relevant(run, plan, trained, found) if cfg.relevance else None
        board = ranked(run, plan, trained, found) if cfg.leaderboard else None
        if explanation:
            found = with_columns(found, explanation.on_cards)
        if relevance:
            found = with_columns(found, relevance.on_cards)
        if cfg.report == "full":
            found = with_facts(run, plan, trained, found)
        found.dissection.save(run.folder)
        run.add_output("labels", run.folder / "neurons.csv")
        run.console.print(layer_summary(found.dissection))
        if warning := one_label_text(found.dissection.neurons):
            log.warning(warning)
        drawn = write_figures(run, lambda: dissection_figures(found.dissection))
        page = dissection_page(run, plan, trained, found)
        for result in (explanation, relevance, board):
            if result:
                result.show(run)
                result.save(run)
                page.extras = [*page.extras, *result.extras()]
        quality = None
        if cfg.label_quality:
            quality = score_labels(run, plan, trained, found)
            quality.show(run)
            quality.save(run)
            page.extras = [*page.extras, *quality.extras()]
            page.held_out = quality.neurons
        write_page(run, page)
        summary = dissection_summary(found.dissection)
        held_out = quality.figures() if quality else {}
        held_out |= explanation.figures() if explanation else {}
        run.summary({**summary, **held_out, "layers": found.dissection.layers.to_dict("records")})
        # loggers come last: the results are already on disk should one fail
        for scored in (explanation, quality):
            if scored:
                scored.log(run)
        log_dissection(
            run.loggers,
            found.dissection,
            plan.probe,
            run.data.class_names,
            figures=drawn,
            tables=cfg.report == "full",
            warning=found.warning,
        )
        log_artifact(run.loggers, labels_artifact(run), trained.kept)
        return {**summary, "objective": summary["neuron_accuracy"]}


def one_threshold(cfg: DictConfig) -> None:
    """Raise UserError for a list of tau or level: dissect.py has no grid."""
    for name in ("tau", "level"):
        if isinstance(cfg[name], ListConfig):
            raise UserError(
                f"{name}={list(cfg[name])} is a list, and dissect.py takes one value. Lists are the grid of edit.py; "
                f"for one dissection per value: -m {name}={','.join(map(str, cfg[name]))}."
            )


def dissection_summary(dissection: Dissection) -> dict[str, Any]:
    """Summary metrics of a dissection: counts over all layers, and the layer whose labels fit best."""
    layers = dissection.layers
    counts = {name: int(layers[name].sum()) for name in ("neurons", "dead", "interpretable", "significant")}
    if not layers["accuracy"].notna().any():
        return {**counts, "layer": str(layers["layer"].iloc[0]), "neuron_accuracy": float("nan")}
    best = layers.iloc[int(layers["accuracy"].fillna(-1).to_numpy().argmax())]
    return {
        "layer": str(best["layer"]),
        **counts,
        "neuron_accuracy": float(best["accuracy"]),
        "neuron_accuracy_chance": float(best["accuracy_chance"]),
    }

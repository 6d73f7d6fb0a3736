"""edit.py: edit chosen neurons, and test whether it helped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from emodissect.app.published import compare_shares, compare_to_published
from emodissect.app.session import Session, session
from emodissect.app.stages.classifier import Trained, trained_classifier
from emodissect.app.stages.dissection import Dissected, Plan, dissected, labels_artifact, layer_summary, with_maps
from emodissect.app.stages.edit_study import Asked, baselines_of, check_editable, grid_of
from emodissect.app.stages.neuron_facts import edited_neurons, with_facts
from emodissect.app.stages.pages import dissection_figures, dissection_page, write_figures, write_page
from emodissect.app.stages.study_words import ablation_table, best_cells, edit_summary, readable_study, study_checks
from emodissect.core.atomic_files import atomic_write
from emodissect.core.distributed import first_rank
from emodissect.core.errors import UserError
from emodissect.core.number_format import plain, unbroken
from emodissect.core.table_files import write_csv
from emodissect.data.images import ImageSet
from emodissect.dissection.labels import Dissection
from emodissect.editing.edit import bake
from emodissect.lightning.sinks import Artifact
from emodissect.lightning.tracking import log_artifact, log_dissection, log_metrics, log_study
from emodissect.models.classifier import Classifier
from emodissect.report import EditPage, figures
from emodissect.report.baselines import (
    effects_section,
    effects_table,
    group_section,
    group_table,
    ladder_section,
    ladder_summary,
    ladder_table,
    optimism_note,
)
from emodissect.report.claims import ablation_text, one_label_text, shown_controls
from emodissect.report.terminal import figures_table
from emodissect.studies import ConceptAblation, EditStudy, check_apart, check_metric, groups_of, warn_of_few_draws

log = logging.getLogger(__name__)

EDITED = "edited.ckpt"


def edit(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a grid of edits on validation, choose the best, and evaluate it once on test."""
    with session(cfg) as run:
        plan, settings = Plan(run), cfg.study
        check_metric(settings.metric, settings.groups)
        warn_of_few_draws(settings.alpha, settings.controls)
        if settings.null_studies and settings.select_on_test:
            raise UserError("study.null_studies counts claims of a gain; study.select_on_test=true never makes one.")
        if settings.ablate_concepts and settings.controls < 2:
            raise UserError("study.ablate_concepts=true needs study.controls=20 or more, to compare with.")
        selections, rules = grid_of(cfg, "selection"), grid_of(cfg, "edit")
        baselines_of(cfg)
        plan.check()
        check_editable(run, plan, rules)
        splits = {name: run.data.evaluation_images(settings[name]) for name in ("selection_split", "test_split")}
        if settings.groups is not None:
            for images in splits.values():
                groups_of(images, settings.groups)
        if not settings.select_on_test:
            check_apart(splits["selection_split"], splits["test_split"])
        trained = trained_classifier(run, fit=False)
        layers = plan.layers(trained.classifier)
        found = with_maps(run, plan, trained, dissected(run, plan, trained, layers))
        if cfg.report == "full":
            found = with_facts(run, plan, trained, found)
        layers = _kept(run, found, layers, trained.classifier)
        if not first_rank():
            return {}
        question = Asked(run, found, trained, layers, selections, rules, splits)
        study = question.study()
        found = replace(found, dissection=at_thresholds_of(study, found.dissection))
        run.console.print(layer_summary(found.dissection))
        if warning := one_label_text(found.dissection.neurons):
            log.warning(warning)
        ablations = question.ablations() if settings.ablate_concepts else {}
        null = question.null_studies() if settings.null_studies else None
        return write_outputs(run, plan, trained, found, study, ablations, null, splits)


def at_thresholds_of(study: EditStudy, dissection: Dissection) -> Dissection:
    """The dissection with interpretability and significance at the chosen edit's tau and level, where it has them."""
    return dissection.at(study.settings.get("tau"), study.settings.get("level"))


def _kept(run: Session, found: Dissected, layers: list[str], classifier: Classifier) -> list[str]:
    """The layers to edit: all dissected ones, or the one that ``layer.keep`` picks."""
    if not run.cfg.layer.get("keep"):
        return layers
    logits = [name for name, _ in classifier.network.named_modules() if name in layers][-1:]
    chosen = instantiate(run.cfg.layer.keep)(found.dissection.layers, tails=logits if len(layers) > 1 else ())
    at = f"{run.cfg.layer.keep.by}, tau {plain(found.dissection.tau)}"
    run.console.print(f"Most interpretable layer ({at}): [bold]{chosen}[/]")
    return [chosen]


def write_outputs(
    run: Session,
    plan: Plan,
    trained: Trained,
    found: Dissected,
    study: EditStudy,
    ablations: Mapping[str, ConceptAblation],
    null: pd.DataFrame | None,
    splits: Mapping[str, ImageSet],
) -> dict[str, Any]:
    """Write the results to files, terminal, page and loggers; returns the summary with the objective."""
    found.dissection.save(run.folder)
    study.save(run.folder / "study")
    checkpoint = bake_checkpoint(run, trained, study)
    optimism = optimism_note(study.optimism, study.test.delta) if study.optimistic else ""
    labelled = replace(dissection_page(run, plan, trained, found), main_layer=study.edit.layer)
    labelled.about = replace(labelled.about, edits=edited_neurons(study.edit))
    page = EditPage(
        grid=study.grid,
        comparison=study.test.row(),
        verdict=study.verdict,
        class_names=run.data.splits.class_names,
        controls=study.controls,
        before=study.before,
        after=study.after,
        images=splits["test_split"],
        dissection=labelled if run.cfg.report == "full" else None,
        command=run.manifest()["command"],
        manifest=run.manifest(),
        optimistic=study.optimistic,
        selection_split=run.cfg.study.selection_split,
        test_split=run.cfg.study.test_split,
        alpha=study.alpha,
        grid_images=len(splits["test_split" if study.optimistic else "selection_split"]),
        notes=[found.warning, optimism, one_label_text(found.dissection.neurons)],
        checks=study_checks(study, null),
        ablations=ablations,
        extras=[
            *ladder_section(study.ladder, study.test.delta),
            *group_section(study, run.data.splits.class_names),
            *effects_section(study),
            *compare_to_published(run.cfg, study),
            *compare_shares(run.cfg, found.dissection, plan.concepts.names),
        ],
    )
    for layer, result in ablations.items():
        write_csv(result.frame, run.folder / f"concept_ablation_{layer}.csv")
    if null is not None:
        write_csv(null, run.folder / "null_studies.csv")
    drawn_labels = write_figures(run, lambda: dissection_figures(found.dissection))
    drawn_edit = write_figures(run, lambda: study_figures(run, study, ablations))
    summary = edit_summary(study) | ladder_summary(study.ladder)
    if null is not None:
        summary |= {"null_studies": len(null), "null_claims": float(null["claims_gain"].mean())}
    for layer, result in ablations.items():
        run.console.print(ablation_table(result, layer, study.alpha))
        text = ablation_text(result.frame, layer, study.alpha)
        run.console.print(f"{unbroken(text)}\n", style="bold", highlight=False, markup=False)
    run.console.print(best_cells(study))
    if len(study.group_table):
        run.console.print(group_table(study, run.data.splits.class_names))
    if len(study.neuron_effects):
        run.console.print(effects_table(study))
    if len(study.ladder):
        run.console.print(ladder_table(study.ladder))
    run.console.print(
        figures_table(readable_study(study, null), f"The chosen edit of {study.edit.layer}, on {study.tested_on}")
    )
    run.console.print(f"\n{unbroken(study.verdict)}\n", style="bold", highlight=False, markup=False)
    if optimism:
        run.console.print(unbroken(optimism), style="red", highlight=False, markup=False)
    run.add_output("labels", run.folder / "neurons.csv")
    run.add_output("grid", run.folder / "study" / "grid.csv")
    run.add_output("edited checkpoint", checkpoint)
    write_page(run, page)
    run.summary(summary)
    # loggers come last: the results are already on disk should one fail
    log_dissection(
        run.loggers,
        found.dissection,
        plan.probe,
        run.data.class_names,
        figures=drawn_labels,
        tables=run.cfg.report == "full",
        warning=found.warning,
    )
    log_study(run.loggers, study, drawn_edit)
    if null is not None:
        log_metrics(run.loggers, {"edit/null_claims": summary["null_claims"]})
    labels = labels_artifact(run)
    edited_classifier = Artifact(
        "edited-classifier", "edited-checkpoint", [checkpoint], {"weights": trained.weights, **found.key}
    )
    log_artifact(run.loggers, labels, trained.kept)
    log_artifact(run.loggers, edited_classifier, [*trained.kept, labels])
    return {**summary, "objective": study.val.delta}


def bake_checkpoint(run: Session, trained: Trained, study: EditStudy) -> Path:
    """Write the edited weights as a checkpoint that every command accepts as ``ckpt_path``; returns its path."""
    network = trained.classifier.network
    state = {f"network.{name}": value.cpu() for name, value in bake(network, study.edit).items()}
    path = run.folder / EDITED
    content = {
        "state_dict": state,
        "hyper_parameters": dict(trained.classifier.hparams),
        "edit": {"layer": study.edit.layer, "from": trained.weights, "verdict": study.verdict},
    }
    with atomic_write(path) as unfinished:
        torch.save(content, unfinished)
    return path


def study_figures(run: Session, study: EditStudy, ablations: Mapping[str, ConceptAblation]) -> dict[str, Any]:
    """Name -> figure: the grid of each layer, the controls, the change of confusion, and silenced concepts."""
    names = list(run.data.splits.class_names)
    limit = figures.full_colour(study.grid, (study.test if study.optimistic else study.val).images)
    drawn = {
        f"grid_{layer}": figures.grid_heatmap(cells, title=str(layer), level=study.alpha, limit=limit)
        for layer, cells in study.grid.groupby("layer", sort=False)
        if len(cells) > 1
    }
    drawn["controls"] = figures.control_distribution(shown_controls(study.controls), study.test.delta)
    drawn["confusion"] = figures.confusion_change(study.before.confusion(), study.after.confusion(), names)
    for layer, result in ablations.items():
        matrix = figures.concept_ablation(result.matrix("drop"), result.beyond(study.alpha))
        drawn[f"concept_ablation_{layer}"] = matrix
    return drawn

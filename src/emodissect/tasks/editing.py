"""edit.py: the chosen neurons scaled, and an honest answer to whether it helped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from emodissect import figures
from emodissect.data.images import ImageSet
from emodissect.editing import bake
from emodissect.evaluation import Inference
from emodissect.models.classifier import Classifier
from emodissect.ranks import first_rank
from emodissect.report import EditPage
from emodissect.report.words import p_value, percent, plain, points
from emodissect.study import ConceptAblation, EditStudy, ablate_concepts, check_words, run_study
from emodissect.tasks.dissecting import Dissected, Plan, dissected, labels_made, layer_summary, pictured
from emodissect.tasks.publishing import beside_shares, beside_study
from emodissect.tasks.reporting import dissection_figures, dissection_page, write_figures, write_page
from emodissect.tasks.session import Session, resolved, session
from emodissect.tasks.training import Trained, as_made, trained_classifier
from emodissect.terminal import Column, figures_table, frame_table
from emodissect.tracking import Made, log_artifact, log_dissection, log_study

AXES = ("tau", "factor", "level")
"""Top-level values that a list turns into an axis of the grid."""

EDITED = "edited.ckpt"


def edit(cfg: DictConfig) -> dict[str, Any]:
    """Judges a grid of edits on validation, takes the best, and reads test once for it."""
    with session(cfg) as run:
        plan = Plan(run)
        plan.check()
        check_words(cfg.study.metric, cfg.study.select_on)
        selections, rules = grid_of(cfg, "selection"), grid_of(cfg, "edit")
        judged = {name: _images(run, cfg.study[name]) for name in ("choose_on", "judge_on")}
        trained = trained_classifier(run, fit=False)
        layers = plan.layers(trained.classifier)
        found = pictured(run, plan, trained, dissected(run, plan, trained, layers))
        run.console.print(layer_summary(found.dissection, plan.interpretation))
        layers = _kept(run, found, layers, trained.classifier)
        if not first_rank():
            return {}
        study = _studied(run, found, trained, layers, selections, rules, judged)
        ablation = _ablated(run, found, trained, layers, judged["choose_on"]) if cfg.study.ablate_concepts else None
        return _told(run, plan, trained, found, study, ablation, judged)


def grid_of(cfg: DictConfig, group: str) -> list[Any]:
    """One object of a group for every value of the lists among tau, factor and level that it refers to."""
    axes = {name: list(cfg[name]) for name in AXES if isinstance(cfg[name], ListConfig)}
    made: dict[str, Any] = {}
    for values in itertools.product(*axes.values()):
        cell = OmegaConf.merge(cfg, dict(zip(axes, values, strict=True)))
        assert isinstance(cell, DictConfig)
        plain = cell[group]
        described = json.dumps(resolved(plain), sort_keys=True)
        if described not in made:
            made[described] = instantiate(plain)
    return list(made.values())


def inference_of(classifier: Classifier) -> Inference:
    """The classifier as the study takes it: what stands before the network, the network, what stands behind."""

    def finish(output: Tensor) -> Tensor:
        return classifier.finished(output)

    return Inference(classifier.inputs, classifier.network, finish)


def _images(run: Session, split: str) -> ImageSet:
    return run.data.probe(split, None, run.cfg.seed)


def _kept(run: Session, found: Dissected, layers: list[str], classifier: Classifier) -> list[str]:
    """The layers that are edited: all that were dissected, or the one that ``layer.keep`` picks of them."""
    if not run.cfg.layer.get("keep"):
        return layers
    logits = [name for name, _ in classifier.network.named_modules() if name in layers][-1:]
    chosen = instantiate(run.cfg.layer.keep)(found.dissection.layers, tails=logits if len(layers) > 1 else ())
    run.console.print(f"Most interpretable layer ({run.cfg.layer.keep.by}): [bold]{chosen}[/]")
    return [chosen]


def _studied(
    run: Session,
    found: Dissected,
    trained: Trained,
    layers: Sequence[str],
    selections: Sequence[Any],
    rules: Sequence[Any],
    judged: Mapping[str, ImageSet],
) -> EditStudy:
    study = run.cfg.study
    key = {
        "labels": found.key,
        "layers": list(layers),
        "selections": [{"class": type(s).__name__, **asdict(s)} for s in selections],
        "rules": [{"class": type(r).__name__, **asdict(r)} for r in rules],
        "images": {name: images.fingerprint() for name, images in judged.items()},
        "study": resolved(study),
        "level": run.cfg.level if not isinstance(run.cfg.level, ListConfig) else list(run.cfg.level),
        "seed": run.cfg.seed,
    }
    run.inputs["study"] = key

    def write(folder: Path) -> None:
        run_study(
            inference_of(trained.classifier.to(run.device)),
            layers,
            found.dissection.neurons,
            selections,
            rules,
            judged["choose_on"],
            judged["judge_on"],
            metric=study.metric,
            select_on=study.select_on,
            alpha=study.alpha,
            controls=study.controls,
            bootstrap=study.bootstrap,
            seed=run.cfg.seed,
            progress=True,
        ).save(folder)

    return EditStudy.load(run.made("studies", key, write))


def _ablated(
    run: Session, found: Dissected, trained: Trained, layers: Sequence[str], images: ImageSet
) -> dict[str, ConceptAblation]:
    """By layer, each class's fall of recall when the neurons of one concept are silenced."""
    return {
        layer: ablate_concepts(
            inference_of(trained.classifier.to(run.device)),
            layer,
            found.dissection.neurons,
            images,
            run.data.splits.class_names,
            draws=run.cfg.study.controls,
            seed=run.cfg.seed,
            progress=True,
        )
        for layer in layers
    }


def _told(
    run: Session,
    plan: Plan,
    trained: Trained,
    found: Dissected,
    study: EditStudy,
    ablation: dict[str, ConceptAblation] | None,
    judged: Mapping[str, ImageSet],
) -> dict[str, Any]:
    """Files, terminal, loggers and page."""
    found.dissection.save(run.folder)
    study.save(run.folder / "study")
    checkpoint = bake_checkpoint(run, trained, study)
    drawn = {**dissection_figures(found.dissection, plan.interpretation.tau), **study_figures(run, study)}
    page = EditPage(
        grid=study.grid,
        comparison=study.test.row(),
        verdict=study.verdict,
        class_names=run.data.splits.class_names,
        controls=study.controls,
        before=study.before,
        after=study.after,
        images=judged["judge_on"],
        dissection=dissection_page(run, plan, trained, found),
        command=run.manifest()["command"],
        manifest=run.manifest(),
        optimistic=study.optimistic,
        val_images=len(judged["choose_on"]),
        extras=[*beside_study(run.cfg, study), *beside_shares(run.cfg, found.dissection)],
    )
    if ablation:
        first = next(iter(ablation.values()))
        page.ablation = first.matrix("drop")
        page.ablation_beyond = first.matrix("z").abs() > 2
        for layer, result in ablation.items():
            result.frame.to_csv(run.folder / f"concept_ablation_{layer}.csv", index=False)
            drawn[f"concept_ablation_{layer}"] = figures.concept_ablation(
                result.matrix("drop"), result.matrix("z").abs() > 2
            )
    write_figures(run, drawn)
    summary = edit_summary(study)
    run.console.print(_best_cells(study))
    run.console.print(figures_table(_readable(study), f"The chosen edit of {study.edit.layer}, on test"))
    run.console.print(f"\n[bold]{study.verdict}[/]\n", highlight=False)
    log_dissection(run.loggers, found.dissection, plan.probe, run.data.class_names)
    log_study(run.loggers, study, {name: drawn[name] for name in drawn if name.startswith(("grid", "control"))})
    log_artifact(
        run.loggers,
        Made("edited-classifier", "edited-checkpoint", [checkpoint], {"weights": trained.weights, **found.key}),
        [as_made(trained.checkpoint, trained.weights), labels_made(run)],
    )
    run.wrote("labels", run.folder / "neurons.csv")
    run.wrote("grid", run.folder / "study" / "grid.csv")
    run.wrote("edited checkpoint", checkpoint)
    write_page(run, page)
    run.summary(summary)
    return {**summary, "objective": study.val.delta}


def bake_checkpoint(run: Session, trained: Trained, study: EditStudy) -> Path:
    """The edited weights as a checkpoint that any later command takes as ``ckpt_path``."""
    network = trained.classifier.network
    state = {f"network.{name}": value.cpu() for name, value in bake(network, study.edit).items()}
    path = run.folder / EDITED
    unfinished = path.with_name(f".{path.name}.unfinished")
    torch.save(
        {
            "state_dict": state,
            "hyper_parameters": dict(trained.classifier.hparams),
            "edit": {"layer": study.edit.layer, "from": trained.weights, "verdict": study.verdict},
        },
        unfinished,
    )
    unfinished.replace(path)
    return path


def edit_summary(study: EditStudy) -> dict[str, Any]:
    """The figures that one sorts runs by."""
    return {
        "layer": study.edit.layer,
        "selection": study.selection,
        "rule": study.rule,
        "tau": study.tau,
        "factor": study.factor,
        "selected": int(study.selected.sum()),
        "delta_val": study.val.delta,
        "p_val": study.val.p_value,
        "accuracy_before": study.test.accuracy_before,
        "accuracy_after": study.test.accuracy_after,
        "delta": study.test.delta,
        "delta_low": study.test.delta_low,
        "delta_high": study.test.delta_high,
        "gained": study.test.gained,
        "lost": study.test.lost,
        "p_value": study.test.p_value,
        "p_random": study.p_random,
        "p_shuffled": study.p_shuffled,
        "nll_before": study.test.nll_before,
        "nll_after": study.test.nll_after,
        "detectable_delta": study.detectable_delta,
        "logit_difference": study.logit_difference,
        "identical_predictions": study.identical_predictions,
        "claims_gain": study.claims_gain,
        "optimistic": study.optimistic,
        "verdict": study.verdict,
    }


def study_figures(run: Session, study: EditStudy) -> dict[str, Any]:
    """By name: the grid of each layer, the controls, confusion and recall before and after."""
    names = list(run.data.splits.class_names)
    drawn = {
        f"grid_{layer}": figures.grid_heatmap(cells, title=str(layer))
        for layer, cells in study.grid.groupby("layer", sort=False)
    }
    drawn["controls"] = figures.control_distribution(study.controls, study.test.delta)
    drawn["confusion"] = figures.confusion_change(study.before.confusion(), study.after.confusion(), names)
    return drawn


def _best_cells(study: EditStudy) -> Any:
    columns = {
        "layer": Column("layer"),
        "tau": Column("tau", plain),
        "factor": Column("factor", plain),
        "selected": Column("chosen"),
        "accuracy_after": Column("accuracy", percent),
        "delta": Column("points", points),
        "gained": Column("gained"),
        "lost": Column("lost"),
        "p_value": Column("p", p_value),
        "p_holm": Column("p, Holm", p_value),
    }
    ordered = study.grid.sort_values(["chosen", "delta"], ascending=False).dropna(axis=1, how="all")
    return frame_table(ordered, "The grid, on validation; the chosen cell first", columns, rows=12)


def _readable(study: EditStudy) -> dict[str, Any]:
    test = study.test
    return {
        "accuracy before": f"{test.accuracy_before:.3%}",
        "accuracy after": f"{test.accuracy_after:.3%}",
        "change": f"{100 * test.delta:+.3f} points (95 % {100 * test.delta_low:+.3f} to {100 * test.delta_high:+.3f})",
        "images gained, lost": f"{test.gained}, {test.lost}",
        "exact McNemar p": p_value(test.p_value),
        "p against random neurons": p_value(study.p_random),
        "p against shuffled labels": p_value(study.p_shuffled),
        "smallest change one could have seen": f"{100 * study.detectable_delta:.2f} points",
        "NLL before, after": f"{test.nll_before:.4f}, {test.nll_after:.4f}",
    }

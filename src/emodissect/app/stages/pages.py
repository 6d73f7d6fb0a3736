"""Figures and report pages of the verbs' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from emodissect.app.manifest import command
from emodissect.app.published import compare_shares, compare_training, published_layers
from emodissect.app.stages.saliency_maps import audit_extras, saliency_maps
from emodissect.core.distributed import first_rank
from emodissect.dissection.labels import Dissection
from emodissect.report import DissectionPage, TrainPage, figures
from emodissect.report.neurons import NeuronFacts

if TYPE_CHECKING:
    from emodissect.app.session import Session
    from emodissect.app.stages.classifier import Trained
    from emodissect.app.stages.dissection import Dissected, Plan
    from emodissect.models.classifier import Classifier


def dissection_figures(dissection: Dissection) -> dict[str, Figure]:
    """Name -> figure: the layer table and proportions, each layer's similarity histogram and concept shares."""
    found = {"layer_table": figures.layer_table(dissection.layers)}
    if len(dissection.layers) > 1:
        found["layer_proportions"] = figures.layer_proportions(dissection.layers)
    for layer in dissection.layers["layer"]:
        rows = dissection[layer]
        null = dissection.null.get(layer)
        similarity = rows["similarity"]
        found[f"similarity_{layer}"] = figures.similarity_histogram(similarity, null, dissection.tau, title=layer)
        shares = dissection.shares[dissection.shares["layer"] == layer]
        if len(shares):
            found[f"concepts_{layer}"] = figures.concept_shares(shares, title=layer)
    return found


def write_figures(run: Session, draw: Callable[[], Mapping[str, Figure]]) -> dict[str, Path]:
    """Write each figure as a PNG under ``figures/``; returns name -> file, empty unless ``report=full``."""
    if run.cfg.report != "full":
        return {}
    found = draw()
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    run.add_output("figures", folder)
    return {name: figures.save_png(figure, folder / f"{name.replace('/', '_')}.png") for name, figure in found.items()}


def confusion_file(run: Session, classifier: Classifier) -> dict[str, Path]:
    """Write the confusion matrix of the test split as a PNG; returns name -> file."""
    counts = classifier.results["test"].confusion().numpy()
    return write_figures(run, lambda: {"confusion": figures.confusion(counts, classifier.class_names)})


def dissection_page(run: Session, plan: Plan, trained: Trained, found: Dissected) -> DissectionPage:
    """The page of a dissection; an edit's page includes its sections."""
    return DissectionPage(
        neurons=found.dissection.neurons,
        layers=found.dissection.layers,
        shares=found.dissection.shares,
        images=plan.probe,
        class_names=run.data.splits.class_names,
        command=command(),
        manifest=run.manifest(),
        predictions=found.predictions if trained.classifier.knows_classes else None,
        null=found.dissection.null,
        tau=found.dissection.tau,
        level=found.dissection.level,
        published=published_layers(run.cfg),
        extras=compare_shares(run.cfg, found.dissection, plan.concepts.names),
        heat=found.heat,
        saliency=found.saliency,
        notes=[found.warning],
        about=NeuronFacts(
            concept_classes=plan.concepts.classes,
            concepts=plan.concepts.names,
            profiles=found.profiles,
            responses=found.responses,
        ),
    )


def write_page(run: Session, page: Any) -> Path | None:
    """Write ``report.html`` to the run folder; returns its path, None with ``report=none``."""
    if not first_rank() or run.cfg.report == "none":
        return None
    path = page.write(run.folder / "report.html")
    run.add_output("report", path)
    return path


def train_page(run: Session, trained: Trained, metrics: Mapping[str, float]) -> TrainPage:
    """The page of a training."""
    classifier = trained.classifier
    outputs, tested = classifier.results.get("test"), run.data.splits.test
    wanted = run.cfg.saliency
    mistakes = [] if outputs is None else outputs.ids[outputs.confident_mistakes(wanted.images)].tolist()
    return TrainPage(
        metrics=metrics,
        class_names=run.data.splits.class_names,
        history=trained.history,
        predictions=outputs,
        images=tested if outputs is not None else None,
        saliency=saliency_maps(classifier, tested, wanted, run.cfg.seed, mistakes)
        if outputs is not None and run.cfg.report == "full"
        else {},
        extras=[*compare_training(run.cfg, metrics), *audit_extras(run.data, outputs)],
        command=command(),
        manifest=run.manifest(),
    )

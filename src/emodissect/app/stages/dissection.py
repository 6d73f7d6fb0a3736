"""Labelling of a classifier's neurons; each step is read from the cache if it is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import ListConfig

from emodissect.app.session import Session
from emodissect.app.stages.classifier import Trained, untrained
from emodissect.app.stages.given_labels import given_labels
from emodissect.app.stages.saliency_maps import chosen_ids, neuron_maps, saliency_maps
from emodissect.concepts import AnnotationScorer, ConceptScores, Scorer
from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.cache import file_hash
from emodissect.core.distributed import first_rank, wait_for_others
from emodissect.core.errors import UserError
from emodissect.core.fingerprint import content_key, fingerprint, source_hash
from emodissect.core.number_format import plain
from emodissect.data.images import ImageSet, image_loader
from emodissect.dissection.explanations import Explainer
from emodissect.dissection.label_sets import label_shares, set_words
from emodissect.dissection.labels import Dissection, Labelling, label_neurons, require_living
from emodissect.dissection.responses import Responses
from emodissect.lightning.dissect_neurons import DissectNeurons, RecordActivations
from emodissect.lightning.sinks import Artifact
from emodissect.models.classifier import Classifier
from emodissect.models.predictions import Predictions
from emodissect.recording import ActivationCollector, LayerActivations, reached_layers, resolve_layers
from emodissect.recording.store import scratch_dir
from emodissect.report import columns
from emodissect.report.terminal import frame_table
from emodissect.similarity import Similarity, best_similarity_null

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.safetensors"


def labels_artifact(run: Session) -> Artifact:
    """The labels in the run folder as a W&B artifact."""
    return Artifact("neuron-labels", "labels", [run.folder / "neurons.parquet", run.folder / "layers.csv"], run.inputs)


class Plan:
    """The objects and settings of a dissection, checked before anything is trained.

    Args:
        needs_classes: whether the network must output logits of the data's classes.

    Attributes:
        layer_words: a module path, a glob, a list of these, or ``all``.
    """

    def __init__(self, run: Session, needs_classes: bool = True) -> None:
        self.run = run
        self.needs_classes = needs_classes
        words = run.cfg.layer.names
        self.layer_words: str | list[str] = list(words) if isinstance(words, ListConfig) else str(words)
        self.pool = str(run.cfg.layer.pool)

    @cached_property
    def concepts(self) -> ConceptSet:
        """The concept set, without concepts of classes that the data lack."""
        return instantiate(self.run.cfg.concepts).of_data(self.run.data.splits.class_names)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores how strongly each concept is present in each image."""
        return instantiate(self.run.cfg.scorer)

    @property
    def doubts(self) -> str:
        """Why the scorer may be unreliable on these images; empty if there is no reason for doubt."""
        doubts = getattr(self.scorer, "doubts", None)
        return doubts(self.probe) if doubts else ""

    @property
    def scorer_gives_presence(self) -> bool:
        """Whether the scores are presences in [0, 1] already."""
        return isinstance(self.scorer, AnnotationScorer)

    @property
    def keeps_values(self) -> bool:
        """Whether all activations are needed, not only those of the top images."""
        cfg = self.run.cfg
        resampled = bool(cfg.get("label_sets") and cfg.label_sets.resamples)
        others = (self.explainer is not None, resampled, bool(cfg.label_quality), bool(cfg.get("leaderboard")))
        return self.measure.needs_values or any(others)

    @cached_property
    def explainer(self) -> Explainer | None:
        """Explains each neuron by a sum of concepts; None if only labels are computed."""
        return instantiate(self.run.cfg.get("explanation"))  # an edit has none

    @cached_property
    def measure(self) -> Similarity:
        """The similarity of neurons and concepts."""
        return instantiate(self.run.cfg.similarity)

    @cached_property
    def probe(self) -> ImageSet:
        """The images that neurons are labelled with."""
        probe = self.run.cfg.probe
        return self.run.data.probe(probe.split, probe.limit, self.run.cfg.seed)

    @property
    def labelling(self) -> Labelling:
        """How labels are compared with chance and with classes."""
        return Labelling(self.run.cfg.probe.null_draws, self.run.cfg.probe.top_images, self.run.cfg.seed)

    @property
    def top_k(self) -> int:
        """How many of each neuron's top images are kept."""
        return max(getattr(self.measure, "top_k", None) or 0, self.labelling.top_images)

    @property
    def thresholds(self) -> tuple[float, float]:
        """tau and level; of a grid's lists, the tau nearest to the published 0 and the strictest level."""
        cfg = self.run.cfg
        tau = min(cfg.tau, key=abs) if isinstance(cfg.tau, ListConfig) else cfg.tau
        level = min(cfg.level) if isinstance(cfg.level, ListConfig) else cfg.level
        return float(tau), float(level)

    def layers(self, classifier: Classifier) -> list[str]:
        """The layers' paths; for a pattern, only layers that a forward pass calls (fused attention skips some)."""
        named = resolve_layers(classifier.network, self.layer_words)
        if not isinstance(self.layer_words, str) or self.layer_words in dict(classifier.network.named_modules()):
            return named
        with torch.inference_mode():
            inputs = classifier.inputs(self.probe.images[:2])
        channels_last = self.run.cfg.layer.channels_last
        return reached_layers(classifier.network, named, inputs, self.pool, channels_last=channels_last)

    def check(self) -> None:
        """Validate the settings before any work. Raises UserError."""
        measure = self.measure  # instantiated here, so that invalid parameters are reported
        self.explainer  # noqa: B018
        if sets := self.run.cfg.get("label_sets"):
            if not isinstance(sets.resamples, int) or sets.resamples < 0:
                raise UserError(f"label_sets.resamples={sets.resamples}: must be an integer >= 0; 200 is usual.")
            if not 0 < sets.level <= 1:
                raise UserError(f"label_sets.level={sets.level}: must be above 0 and at most 1; 0.95 is usual.")
        if len(self.concepts) == 1 and not measure.needs_values:
            log.warning(
                "A single concept (%s) is meaningless to %s: a softmax over one concept is 1. Use similarity=pearson.",
                *(self.concepts.names[0], type(measure).__name__),
            )
        names = self.run.data.splits.class_names
        self.concepts.class_mask(names)
        chosen_ids(self.probe, self.run.cfg.saliency)
        if self.run.cfg.labels_dir:
            Dissection.load(self.run.cfg.labels_dir)
        # layers are known without training, so a misspelt one fails fast
        resolve_layers(untrained(self.run, self.needs_classes).network, self.layer_words)
        self.labelling.check(len(self.probe))
        self.scorer.check(self.probe, self.concepts, names)


@dataclass(frozen=True)
class Dissected:
    """A dissection and the further results that the report shows.

    Attributes:
        dissection: the labels.
        predictions: the classifier's, of the probe images; without logits if it does not know their classes.
        activations: by layer.
        scores: of the concepts on the probe images.
        key: everything that the labels depend on, for the keys of later cache entries.
        heat: (layer, neuron) -> activation maps of conv neurons over their top images.
        saliency: image id -> saliency map, of a few probe images.
        profiles: layer -> similarity of each neuron to each concept.
        responses: layer -> activations by class and effects on the logits.
        warning: about labels from ``labels_dir``; empty if there is none.
    """

    dissection: Dissection
    predictions: Predictions
    activations: Mapping[str, LayerActivations]
    scores: ConceptScores
    key: Mapping[str, Any]
    heat: Mapping[tuple[str, int], Any] = field(default_factory=dict)
    saliency: Mapping[int, Any] = field(default_factory=dict)
    profiles: Mapping[str, Any] = field(default_factory=dict)
    responses: Mapping[str, Responses] = field(default_factory=dict)
    warning: str = ""


def dissected(run: Session, plan: Plan, trained: Trained, layers: list[str]) -> Dissected:
    """Label the layers' neurons. Activations, concept scores and each layer's labels are cached.

    The thresholds tau and level are applied afterwards, to cached labels.
    """
    class_names = run.data.splits.class_names
    scores = plan.scorer.score(plan.probe, plan.concepts, class_names, run.cache)
    key = {
        "classifier": trained.identity,
        "probe": [plan.probe.fingerprint(), plan.probe.annotations_fingerprint()],
        "layers": layers,
        "recorded": recording_settings(run, plan),
        "concepts": {name: list(plan.concepts.classes.get(name, ())) for name in plan.concepts.names},
        "scorer": fingerprint(plan.scorer),
        "similarity": fingerprint(plan.measure),
        "labelling": asdict(plan.labelling),
        "labelled_by": [source_hash(code) for code in (label_neurons, best_similarity_null)],
    }
    run.inputs["concepts"] = concepts_from(plan.concepts)
    run.inputs["dissection"] = key
    keys = {layer: {**key, "layers": [layer]} for layer in layers}
    known = bool(run.cfg.labels_dir) or (run.cfg.reuse and all(run.cache.holds("labels", k) for k in keys.values()))
    activations, predictions, fresh = recorded(run, plan, trained, layers, None if known else scores)
    if run.cfg.labels_dir:
        dissection, given, warning = given_labels(
            run.cfg.labels_dir, activations, plan.probe, plan.concepts, trained.weights
        )
        run.inputs["labels"] = given
        key = {**key, "labels": given["content"]}
        dissection = dissection.at(*plan.thresholds)
        return Dissected(dissection, predictions, activations, scores, key, warning=warning)
    labels = []
    for layer in layers:

        def write(folder: Path, layer: str = layer) -> None:
            found = fresh.get(layer) or label_neurons(
                {layer: activations[layer]},
                *(scores, plan.measure, plan.probe, plan.concepts, class_names, plan.labelling),
            )
            found.save(folder)

        labels.append(run.made("labels", keys[layer], write, partial(Dissection.load, sealed=True)))
    found = require_living(Dissection.joined(labels).at(*plan.thresholds))
    return Dissected(found, predictions, activations, scores, key)


def with_label_sets(plan: Plan, found: Dissected) -> Dissected:
    """Add the column ``label_set`` to the neuron table: the concepts that remain plausible under resampling."""
    sets = plan.run.cfg.label_sets
    columns = []
    for name, layer in found.activations.items():
        assert layer.values is not None
        shares = label_shares(
            torch.as_tensor(layer.values),
            found.scores.at(layer.ids),
            plan.measure,
            sets.resamples,
            int(plan.run.cfg.seed),
            progress=f"label sets of {name}",
        )
        label_sets = set_words(shares, found.scores.names, float(sets.level))
        columns.append(pd.DataFrame({"layer": name, "neuron": range(len(label_sets)), "label_set": label_sets}))
    return with_columns(found, pd.concat(columns))


def with_columns(found: Dissected, columns: pd.DataFrame) -> Dissected:
    """Add columns to the neuron table, replacing those of the same name.

    ``columns`` also has ``layer`` and ``neuron``.
    """
    labels, place = found.dissection, ["layer", "neuron"]
    kept = labels.neurons.drop(columns=columns.columns.difference(place), errors="ignore")
    neurons = kept.merge(columns, on=place, how="left", validate="one_to_one")
    return replace(found, dissection=Dissection.of_neurons(neurons, labels.null, labels.tau, labels.level))


def with_maps(run: Session, plan: Plan, trained: Trained, found: Dissected) -> Dissected:
    """Add the activation and saliency maps that the report overlays on images."""
    wanted = run.cfg.saliency
    if run.cfg.report != "full":
        return found
    return replace(
        found,
        heat=neuron_maps(trained.classifier, found.dissection, plan.probe, wanted, run.cfg.layer.channels_last),
        saliency=saliency_maps(trained.classifier, plan.probe, wanted, run.cfg.seed)
        if trained.classifier.knows_classes
        else {},
    )


def recorded(
    run: Session, plan: Plan, trained: Trained, layers: list[str], scores: ConceptScores | None = None
) -> tuple[dict[str, LayerActivations], Predictions, dict[str, Dissection]]:
    """Each layer's activations on the probe images, the predictions, and the labels of newly recorded layers.

    One pass records everything that is not cached, and labels it if scores are given.
    """

    def key(layer: str) -> dict[str, Any]:
        return {
            "classifier": trained.identity,
            "probe": plan.probe.fingerprint(),
            "layer": layer,
            "top_k": plan.top_k,
            "values": plan.keeps_values,
            **recording_settings(run, plan),
        }

    def held(kind: str, key: Mapping[str, Any], read: Callable[[Path], Any]) -> Any:
        return run.cache.held(kind, key, read) if run.cfg.reuse else None

    fresh: dict[str, Dissection] = {}
    keys = {layer: key(layer) for layer in layers}
    prediction_key = {name: key("")[name] for name in ("classifier", "probe", "precision")}
    activations = {layer: held("activations", keys[layer], LayerActivations.load) for layer in layers}
    predictions = held("predictions", prediction_key, _read_predictions)
    missing = [layer for layer in layers if activations[layer] is None]
    if missing or predictions is None:
        # each run has its own store: two runs that record the same layer at once would overwrite each other's
        mine, recompute = content_key({"run": str(run.folder.absolute())}), not run.cfg.reuse
        with scratch_dir(run.cache.root / "stores", mine, owner=first_rank()) as store:
            recorder, predictions = _predict(run, plan, trained, missing, scores, store)
            if isinstance(recorder, DissectNeurons) and recorder.dissection is not None:
                fresh = {layer: recorder.dissection.of_layer(layer) for layer in missing}
            if first_rank():
                for layer in missing:
                    save = recorder.activations[layer].save
                    run.cache.value("activations", keys[layer], save, LayerActivations.load, recompute)
                keep = partial(_save_predictions, predictions)
                run.cache.value("predictions", prediction_key, keep, _read_predictions, recompute)
            wait_for_others()
    activations |= {layer: LayerActivations.load(run.cache.path("activations", keys[layer])) for layer in missing}
    return activations, _read_predictions(run.cache.path("predictions", prediction_key)), fresh


def _save_predictions(predictions: Predictions, folder: Path) -> None:
    predictions.save(folder / PREDICTIONS)


def _read_predictions(folder: Path) -> Predictions:
    return Predictions.load(folder / PREDICTIONS)


def recording_settings(run: Session, plan: Plan) -> dict[str, Any]:
    """Settings that activations depend on besides the classifier and the images."""
    return {
        "pool": plan.pool,
        "channels_last": str(run.cfg.layer.channels_last),
        "precision": str(run.cfg.trainer.get("precision", "32-true")),
        "recorded_by": source_hash(ActivationCollector),
    }


def _predict(
    run: Session, plan: Plan, trained: Trained, layers: list[str], scores: ConceptScores | None, store: Path
) -> tuple[RecordActivations, Predictions]:
    """Run ``trainer.predict`` over the probe images, with a callback that records and, given scores, labels."""
    settings: dict[str, Any] = {
        "root": "network",
        "pool": plan.pool,
        "channels_last": run.cfg.layer.channels_last,
        "keep_values": plan.keeps_values,
        "store_dir": store if plan.keeps_values else None,
    }
    recorder: RecordActivations
    if scores is None or not layers:
        recorder = RecordActivations(layers, top_k=plan.top_k, images=len(plan.probe), **settings)
    else:
        recorder = DissectNeurons(
            layers,
            plan.concepts,
            plan.probe,
            scorer=scores.at(plan.probe.ids),
            similarity=plan.measure,
            class_names=run.data.splits.class_names,
            null_draws=plan.labelling.draws,
            top_images=plan.labelling.top_images,
            seed=plan.labelling.seed,
            cache_dir=run.cache.root,
            **settings,
        )
    trainer = run.evaluating_trainer([recorder] if layers else [])
    classifier = trained.classifier
    with classifier.preprocess.single():
        outputs = trainer.predict(classifier, image_loader(plan.probe, run.cfg.probe.batch_size))
    assert outputs is not None
    return recorder, Predictions.joined(outputs)


def concepts_from(concepts: ConceptSet) -> dict[str, str]:
    """The origin of the concepts: a set's name, or a file and its SHA-256."""
    path = Path(concepts.origin)
    return {"from": concepts.origin, **({"sha256": file_hash(path)} if path.is_file() else {})}


def layer_summary(dissection: Dissection) -> Any:
    """The layer table as a terminal table."""
    tau = f"sim > {plain(dissection.tau)}"
    shown = columns.renamed(
        columns.LAYERS,
        interpretable=tau,
        significant=f"q < {dissection.level:g}",
        accuracy_interpretable=f"of {tau}",
    )
    return frame_table(dissection.layers, "Neuron labels by layer", shown)

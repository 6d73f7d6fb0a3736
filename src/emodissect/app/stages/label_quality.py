"""dissect.py label_quality=true: are the labels right?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.app.session import Session
from emodissect.app.stages.classifier import Trained
from emodissect.app.stages.dissection import Dissected, Plan, recorded
from emodissect.app.stages.quality_tables import ANNOTATIONS, SCORER, QualityTables
from emodissect.concepts import AnnotationScorer, ConceptScores, Scorer
from emodissect.concepts.concept_set import concept_set
from emodissect.core.errors import UserError
from emodissect.core.spelling import class_key
from emodissect.data.images import ImageSet
from emodissect.data.interventions import Interventions
from emodissect.dissection.dissect import record_layers
from emodissect.dissection.explanations import Explainer, LabelExplainer, Part
from emodissect.dissection.label_sets import coverage_table, label_shares
from emodissect.dissection.quality import (
    Planted,
    agreement,
    clarity,
    planted_mixtures,
    planted_network,
    planted_neurons,
    random_clarity,
    sanity_metrics,
    sanity_table,
)
from emodissect.dissection.quality.explained import BASELINE, explanation_table, labelling_parts
from emodissect.dissection.quality.held_out import HeldOut, held_out
from emodissect.dissection.quality.labelling import labelled
from emodissect.dissection.quality.truth import (
    caused_concepts,
    dose_response,
    planted_table,
    recovered,
    true_concepts,
)
from emodissect.recording import ActivationCollector, LayerActivations
from emodissect.similarity import Similarity

log = logging.getLogger(__name__)

SET_RESAMPLES = 200
"""Number of resamples for the label sets of planted neurons."""

LEAST_IMAGES = 20
"""With fewer images, quarters of them correlate with anything by chance."""


@dataclass(frozen=True)
class Quality:
    """The objects and settings of the label evaluation, checked before anything is trained."""

    run: Session
    plan: Plan

    def check(self) -> None:
        """Validate the settings before any work. Raises UserError."""
        images = len(self.plan.probe)
        if images < LEAST_IMAGES:
            raise UserError(
                f"label_quality=true labels on half of the probe images and scores on the other; {images} are too few. "
                f"Give {LEAST_IMAGES} or more: probe.limit, probe.split."
            )
        if not self.alphas or not all(0 < alpha <= 1 for alpha in self.alphas):
            raise UserError(
                f"quality.alphas={self.alphas}: shares of the images in (0, 1], the first is the usual 0.005."
            )
        if self.run.cfg.quality.another_clip is not None and not self._of_clip:
            raise UserError("quality.another_clip needs scorer=clip: other scorers do not use a CLIP.")
        self.explainers  # noqa: B018
        for scorer in self.other_scorers.values():
            scorer.check(self.plan.probe, self.plan.concepts, self.run.data.splits.class_names)

    @property
    def alphas(self) -> tuple[float, ...]:
        """Shares of the images that count as active; the held-out scores use the first."""
        return tuple(float(alpha) for alpha in self.run.cfg.quality.alphas)

    @cached_property
    def measures(self) -> dict[str, Similarity]:
        """Name -> similarity whose recovery of the truth is measured."""
        return {str(name): instantiate(entry) for name, entry in self.run.cfg.quality.similarities.items()}

    @cached_property
    def explainers(self) -> dict[str, Explainer]:
        """Name -> explainer whose predictions of held-out activations are compared: labels and weighted sums."""
        others = {name: LabelExplainer(measure) for name, measure in self.measures.items()}
        sums = {str(name): instantiate(entry) for name, entry in self.run.cfg.quality.explanations.items()}
        return {BASELINE: LabelExplainer(self.plan.measure), **others, **sums}

    @property
    def _of_clip(self) -> bool:
        return hasattr(self.plan.scorer, "image_embeddings")

    @cached_property
    def other_scorers(self) -> dict[str, Scorer]:
        """The run's scorer with other templates and with another CLIP; empty if it does not use CLIP."""
        if not self._of_clip:
            return {}
        cfg, quality = self.run.cfg.scorer, self.run.cfg.quality
        found = {str(name): instantiate(cfg, templates=words) for name, words in quality.templates.items()}
        if quality.another_clip is not None:
            same = {name: value for name, value in cfg.items() if name != "clip"}
            found["another CLIP"] = instantiate(same, clip=quality.another_clip)
        return found

    @cached_property
    def truth(self) -> ConceptScores | None:
        """Each concept's true presence, if the data has it.

        Drawn faces have it for all concepts. If every concept is a class, the class votes or labels are used.
        """
        names = self.run.data.splits.class_names
        classes = {class_key(name) for name in names}
        of_classes = all(class_key(name) in classes for name in self.plan.concepts.names)
        for source in ("presence", "votes", "labels"):
            if source == "presence" and source not in self.plan.probe.annotations:
                continue
            if source != "presence" and not of_classes:
                continue
            try:
                return AnnotationScorer(source).score(self.plan.probe, self.plan.concepts, names)
            except UserError:
                continue  # some concepts are not annotated, or there are no votes
        return None


def score_labels(run: Session, plan: Plan, trained: Trained, found: Dissected) -> QualityTables:
    """Evaluate the labels of all dissected layers."""
    quality, names, seed = Quality(run, plan), found.scores.names, int(run.cfg.seed)
    others = {
        name: scorer.score(plan.probe, plan.concepts, run.data.splits.class_names, run.cache)
        for name, scorer in quality.other_scorers.items()
    }
    neurons, sanity, recovery, stability, explanations = [], [], [], [], []
    responses: list[pd.DataFrame] = []
    noisy = recorded(
        run, replace_probe(plan, noised(plan.probe, run.cfg.quality.noise, seed)), trained, list(found.activations)
    )[0]
    moved = Moved.of(run, plan, trained, list(found.activations))
    for name, layer in found.activations.items():
        scores = found.scores.at(layer.ids)
        part = held_out(
            layer,
            scores,
            names,
            plan.measure,
            presence=plan.scorer_gives_presence and bool(((scores >= 0) & (scores <= 1)).all()),
            truth=None if quality.truth is None else quality.truth.at(layer.ids),
            alphas=quality.alphas,
            seed=seed,
        )
        neurons.append(part.neurons.assign(layer=name, **_clarity(run, plan, layer, seed)))
        changes = moved.part(name) if moved else None
        explained = explanation_table(labelling_parts(layer, scores, seed), quality.explainers, changes=changes)
        explanations.append(explained.assign(layer=name))
        if moved:
            responses.append(moved.responses(layer).assign(layer=name))
        sanity.append(part.sanity.assign(layer=name))
        stability.append(_stability(plan, layer, noisy[name], found.scores, others, part).assign(layer=name))
        if quality.truth is not None:
            true = quality.truth.at(layer.ids)
            truths = true_concepts(layer, true)
            if moved:
                truths["interventions"] = moved.caused(name)
            both = {SCORER: scores, ANNOTATIONS: true}
            recovery.append(recovered(layer, both, quality.measures, truths, seed=seed).assign(layer=name))
            further = {source: other.at(layer.ids) for source, other in others.items()}
            own = {type(plan.measure).__name__: plan.measure}
            recovery.append(recovered(layer, further, own, truths, seed=seed).assign(layer=name))
    planted = _planted(plan, quality, found, seed)
    recovery.append(planted[0])
    explanations.append(_planted_explanations(plan, quality, found, seed))
    of_logits, tested = pd.DataFrame(), pd.DataFrame()
    if trained.classifier.knows_classes:
        of_logits, tested = _logits(run, plan, quality, found, seed)
    return QualityTables(
        level=found.dissection.level,
        neurons=_together(neurons),
        sanity=_together([*sanity, tested]),
        recovery=_together([*recovery, of_logits]),
        planted=planted[1],
        coverage=planted[2],
        explanations=_together(explanations),
        stability=_together(stability),
        responses=_together(responses),
    )


@dataclass(frozen=True)
class Moved:
    """Drawn faces in which one property is varied at a time, with their activations and concept scores."""

    interventions: Interventions
    activations: Mapping[str, LayerActivations]
    scores: Float[Tensor, "image concept"]
    presence: Float[Tensor, "image concept"]

    @classmethod
    def of(cls, run: Session, plan: Plan, trained: Trained, layers: list[str]) -> Moved | None:
        """Record and score such faces; None if the data cannot draw them, or not with the true presence of concepts."""
        interventions = run.data.interventions(int(run.cfg.seed))
        if interventions is None:
            return None
        images, names = interventions.images, run.data.splits.class_names
        try:
            presence = AnnotationScorer("presence").score(images, plan.concepts, names)
            scores = plan.scorer.score(images, plan.concepts, names, run.cache)
        except UserError:  # some concepts are not drawn, or the scorer is a table of the probe images only
            return None
        activations = recorded(run, replace_probe(plan, images), trained, layers)[0]
        return cls(interventions, activations, scores.at(images.ids), presence.at(images.ids))

    def part(self, layer: str) -> Part:
        """The changes of a layer's activations and of the scores."""
        return Part(self.interventions.changes(self._values(layer)), self.interventions.changes(self.scores))

    def caused(self, layer: str) -> Bool[Tensor, "neuron concept"]:
        """Which concepts each neuron responds to under the interventions."""
        changes = self.interventions.changes(self._values(layer))
        return caused_concepts(changes, self.interventions.changes(self.presence))

    def responses(self, layer: LayerActivations) -> pd.DataFrame:
        """The dose-response table of a layer's neurons for each property."""
        return dose_response(self.interventions, self._values(layer.layer), layer.std)

    def _values(self, layer: str) -> Float[Tensor, "image neuron"]:
        values = self.activations[layer].values
        assert values is not None
        return torch.as_tensor(values)  # rows are in the order of the images, by ascending id


def _stability(
    plan: Plan,
    layer: LayerActivations,
    noisy: LayerActivations,
    scores: ConceptScores,
    others: Mapping[str, ConceptScores],
    part: HeldOut,
) -> pd.DataFrame:
    """One row per change that should not matter (see ``agreement``); empty for a dead layer."""
    given = scores.at(layer.ids)
    before = labels_of(layer, given, plan.measure)
    changed = {
        "the other half of the images": (part.labels, part.other),
        "noise on the images": (before, labels_of(noisy, given, plan.measure)),
        **{name: (before, labels_of(layer, other.at(layer.ids), plan.measure)) for name, other in others.items()},
        **{
            f"top_k {measure.top_k}": (before, labels_of(layer, given, measure))  # type: ignore[attr-defined]
            for measure in _other_top_k(plan.measure)
        },
    }
    if not part.live.any():
        return pd.DataFrame()
    return pd.DataFrame(
        [{"change": change, **vars(agreement(*labels, part.live))} for change, labels in changed.items()]
    )


def _clarity(run: Session, plan: Plan, layer: LayerActivations, seed: int) -> dict[str, np.ndarray]:
    """How similar each neuron's top images are in CLIP space, and which are no more similar than random images.

    Empty if the scorer does not embed images.
    """
    embed = getattr(plan.scorer, "image_embeddings", None)
    if embed is None:
        return {}
    embeddings = embed(plan.probe, run.cache)
    top = layer.top_ids[: plan.labelling.top_images]
    found = clarity(embeddings, plan.probe.rows_of(top.flatten()).reshape(top.shape))
    bound = random_clarity(embeddings, len(top), seed=seed).quantile(0.95)
    return {"clarity": found.numpy(), "scattered": ((found <= bound) & ~layer.dead).numpy()}


def labels_of(
    layer: LayerActivations, scores: Float[Tensor, "image concept"], measure: Similarity
) -> Int64[Tensor, " n"]:
    """The index of each neuron's best concept."""
    return labelled(layer, scores, measure).argmax(1)


def noised(probe: ImageSet, sd: float, seed: int) -> ImageSet:
    """The images with Gaussian noise of standard deviation ``sd`` grey levels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(probe.images.shape, generator=generator) * sd
    return replace(probe, images=(probe.images[:] + noise).round().clamp(0, 255).to(torch.uint8))


def replace_probe(plan: Plan, probe: ImageSet) -> Plan:
    """The same plan with other probe images."""
    other = Plan(plan.run)
    other.__dict__["probe"] = probe
    return other


def _other_top_k(measure: Similarity) -> list[Similarity]:
    """The measure with half and with twice the ``top_k``; empty if it has none."""
    top_k = getattr(measure, "top_k", None)
    if top_k is None:
        return []
    return [replace(measure, top_k=other) for other in (max(top_k // 2, 1), 2 * top_k)]  # type: ignore[type-var]


def _planted(
    plan: Plan, quality: Quality, found: Dissected, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Results on planted neurons: recovery of their concepts, labels by kind of neuron, and coverage of label sets.

    Empty if no neurons can be planted.
    """
    built = planted_layers(plan, quality, found, seed)
    if built is None:
        return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    planted, sources = built.planted, built.sources
    recovery, kinds, covered = [], [], []
    for name, layer in built.layers.items():
        for source, given in sources.items():
            shares = label_shares(torch.as_tensor(layer.values), given, plan.measure, SET_RESAMPLES, seed)
            covered.append(coverage_table(shares, planted.truth, planted.kind).assign(layer=name, source=source))
        found_truth = recovered(layer, sources, quality.measures, {"built": planted.truth}, seed=seed)
        recovery.append(found_truth.assign(layer=name))
        level = found.dissection.level
        kinds.append(
            planted_table(layer, sources[SCORER], quality.measures, planted, level=level, seed=seed).assign(layer=name)
        )
    return _together(recovery), _together(kinds), _together(covered)


@dataclass(frozen=True)
class PlantedLayers:
    """Neurons with known concepts.

    Attributes:
        planted: the neurons and their true concepts.
        layers: ``planted neurons`` follow the true presence up to noise; ``planted network`` sees the images.
        sources: concept scores of the same images: the scorer's and the true presences.
    """

    planted: Planted
    layers: Mapping[str, LayerActivations]
    sources: Mapping[str, Float[Tensor, "image concept"]]


def planted_layers(plan: Plan, quality: Quality, found: Dissected, seed: int) -> PlantedLayers | None:
    """Build planted neurons on the probe images; None if no truth is known, or fewer than two concepts vary."""
    if quality.truth is None:
        return None
    ids, order = torch.sort(plan.probe.ids)
    scores, truth = found.scores.at(ids), quality.truth.at(ids)
    if int((truth.amax(0) > truth.amin(0)).sum()) < 2:
        log.info("Fewer than two concepts vary over the probe images: planted neurons are skipped.")
        return None
    planted = planted_neurons(truth, seed=seed)
    network = planted_network(plan.probe.images[order].float() / 255, truth, planted, seed=seed)
    collector = ActivationCollector("neurons", top_k=100, keep_values=True)
    recorded = record_layers(
        network, collector, plan.probe, lambda images: images.float() / 255, plan.run.cfg.probe.batch_size
    )
    layers = {
        "planted neurons": LayerActivations.of("planted neurons", ids, planted.activations, 100),
        "planted network": recorded["neurons"],
    }
    return PlantedLayers(planted, layers, {SCORER: scores, ANNOTATIONS: truth})


def _planted_explanations(plan: Plan, quality: Quality, found: Dissected, seed: int) -> pd.DataFrame:
    """Scores of explanations of planted sums of true presences, from the scorer's scores and from the presences.

    Empty if no truth is known, or too few concepts vary.
    """
    if quality.truth is None:
        return pd.DataFrame()
    ids = found.scores.ids.sort().values
    truth = quality.truth.at(ids)
    try:
        planted = planted_mixtures(truth, seed=seed)
    except UserError:
        return pd.DataFrame()
    layer = LayerActivations.of("planted mixtures", ids, planted.activations)
    tables = [
        explanation_table(labelling_parts(layer, scores, seed), quality.explainers, planted.weights).assign(
            layer=f"planted mixtures, {source}"
        )
        for source, scores in {SCORER: found.scores.at(ids), ANNOTATIONS: truth}.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _logits(
    run: Session, plan: Plan, quality: Quality, found: Dissected, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recovery of the class logits, whose true labels are known on any data, and the sanity tests on these labels.

    The true concept of logit c is the name of class c. Recovery is empty if the scorer cannot score the class names.
    """
    names = run.data.splits.class_names
    layer = LayerActivations.of("class logits", found.predictions.ids, found.predictions.logits, 100)
    labels = plan.probe.labels[plan.probe.rows_of(layer.ids)]
    shown = torch.nn.functional.one_hot(labels, len(names)).float()
    assert layer.values is not None
    counts = shown.sum(0)
    tested = pd.DataFrame()
    if bool(((counts >= 2) & (counts < len(shown))).any()):
        tested = sanity_table(layer.values, shown, sanity_metrics(quality.alphas), seed=seed)
        tested = tested.assign(presence="annotations", layer="class logits")
    try:
        scores = plan.scorer.score(plan.probe, concept_set(names), names, run.cache)
    except UserError:
        return pd.DataFrame(), tested
    truth = torch.eye(len(names), dtype=torch.bool)
    sources = {SCORER: scores.at(layer.ids), ANNOTATIONS: shown}
    recovery = recovered(layer, sources, quality.measures, {"class": truth}, seed=seed)
    return recovery.assign(layer="class logits"), tested


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    if not full:
        return pd.DataFrame()
    joined = pd.concat(full, ignore_index=True)
    return joined[["layer", *(c for c in joined if c != "layer")]]

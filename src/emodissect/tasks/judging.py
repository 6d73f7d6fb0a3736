"""dissect.py evaluate=true: are the labels right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from emodissect import figures
from emodissect.concepts import concept_set
from emodissect.data.images import ImageSet
from emodissect.errors import UserError
from emodissect.label_quality import agreement, clarity, planted_neurons, random_clarity
from emodissect.label_quality.judgement import held_out, labelled, recovered
from emodissect.recording import LayerActivations
from emodissect.report import Extra
from emodissect.similarity import Similarity
from emodissect.tasks.dissecting import Dissected, Plan, recorded
from emodissect.tasks.reporting import write_figures
from emodissect.tasks.session import Session
from emodissect.tasks.training import Trained
from emodissect.terminal import frame_table

TRUTH = "presence"
"""The annotations that hold every concept's true presence, where the data knows it (drawn faces)."""


@dataclass(frozen=True)
class Judged:
    """What ``evaluate=true`` found; each frame also has the column ``layer`` where it is by layer."""

    neurons: pd.DataFrame
    sanity: pd.DataFrame
    recovery: pd.DataFrame
    stability: pd.DataFrame

    def save(self, run: Session) -> None:
        """Writes label_quality_*.csv in the run folder."""
        for name in ("neurons", "sanity", "recovery", "stability"):
            frame: pd.DataFrame = getattr(self, name)
            if len(frame):
                frame.to_csv(run.folder / f"label_quality_{name}.csv", index=False)
        if len(self.recovery):
            write_figures(run, {"label_quality": _bars(self.recovery[self.recovery["layer"] == self._shown_layer])})
        run.wrote("label quality", run.folder / "label_quality_neurons.csv")

    @property
    def _shown_layer(self) -> str:
        """The deepest dissected layer whose truth is known, else what there is."""
        own = [name for name in self.recovery["layer"].unique() if name not in ("planted neurons", "class logits")]
        return str(own[-1] if own else self.recovery["layer"].iloc[0])

    def show(self, run: Session) -> None:
        """Prints the tables."""
        scores = ("pearson", "auprc", "f1", "iou", "simulation", "clarity", "scattered")
        shown = [name for name in scores if name in self.neurons]
        means = self.neurons.groupby("layer", sort=False)[shown].mean()
        run.console.print(
            frame_table(means.reset_index(), "Labels on images that did not choose them, mean over neurons")
        )
        if len(self.recovery):
            columns = [
                "layer",
                "similarity",
                "source",
                "neurons",
                "top1",
                "top1_low",
                "top1_high",
                "top1_chance",
                "top3",
                "meta_auprc",
            ]
            run.console.print(frame_table(self.recovery, "Recovery of the truth", columns, rows=100))
        run.console.print(frame_table(self.stability, "Labels that survive a change"))
        if len(self.sanity):
            columns = [
                "layer",
                "metric",
                "neurons",
                "score",
                "missing_lowered",
                "extra_lowered",
                "passed",
                "fails_in_literature",
            ]
            run.console.print(frame_table(self.sanity, "Sanity tests of the metrics", columns))

    def extras(self) -> list[Extra]:
        """Sections of the report."""
        found = [
            Extra(
                "Do the labels survive?",
                "The share of neurons that keep their label when what should not matter is changed, against what two "
                "labellings with the same concept shares would agree on by chance.",
                frame=self.stability,
            )
        ]
        if len(self.recovery):
            shown = self.recovery[self.recovery["layer"] == self._shown_layer]
            found.append(
                Extra(
                    "Is the truth found?",
                    "The share of neurons whose label is their true concept, by similarity, from the scorer and, as a "
                    "ceiling, from the true presences themselves.",
                    frame=self.recovery,
                    figure=_bars(shown),
                )
            )
        if len(self.sanity):
            found.append(
                Extra(
                    "Can the metrics tell?",
                    "Half of the positives removed, or doubled at random: a metric that does not fall cannot tell good "
                    "labels from bad ones on this data.",
                    frame=self.sanity,
                )
            )
        return found


def judge(run: Session, plan: Plan, trained: Trained, found: Dissected) -> Judged:
    """Judges the labels of every layer that was dissected."""
    names, seed = found.scores.names, int(run.cfg.seed)
    measures: dict[str, Similarity] = {str(k): instantiate(v) for k, v in run.cfg.quality.similarities.items()}
    truth = plan.probe.annotations.get(TRUTH)
    true_scores = truth.values[:, _columns(truth.names, names)] if truth and set(names) <= set(truth.names) else None
    neurons, sanity, recovery, stability = [], [], [], []
    noisy = recorded(
        run, replace_probe(plan, noised(plan.probe, run.cfg.quality.noise, seed)), trained, list(found.activations)
    )[0]
    for name, layer in found.activations.items():
        scores = found.scores.at(layer.ids)
        part = held_out(layer, scores, names, plan.measure, presence=plan.scorer_gives_presence, seed=seed)
        neurons.append(part.neurons.assign(layer=name, **_clarity(run, plan, layer, seed)))
        sanity.append(part.sanity.assign(layer=name) if len(part.sanity) else part.sanity)
        changed = {
            "the other half of the images": (part.labels, part.other),
            "noise on the images": (
                labels_of(layer, scores, plan.measure),
                labels_of(noisy[name], scores, plan.measure),
            ),
            **_other_scores(run, plan, layer, scores),
            **_other_top_k(plan, layer, scores),
        }
        for change, (before, after) in changed.items():
            kept = agreement(before, after, ~layer.dead)
            stability.append({"layer": name, "change": change, **vars(kept)})
        if true_scores is not None:
            at = plan.probe.rows_of(layer.ids)
            recovery.append(recovered(layer, scores, true_scores[at], measures, seed=seed).assign(layer=name))
            recovery += _other_sources(run, plan, layer, true_scores[at], seed)
    if true_scores is not None:
        recovery.append(_planted(plan, found, true_scores, measures, seed))
    recovery.append(_logits(run, plan, found, measures, seed))
    return Judged(_together(neurons), _together(sanity), _together(recovery), pd.DataFrame(stability))


def _clarity(run: Session, plan: Plan, layer: LayerActivations, seed: int) -> dict[str, np.ndarray]:
    """How alike each neuron's top images are to the scorer's CLIP, and which are no more alike than random images.

    Empty where the scorer embeds no images.
    """
    embed = getattr(plan.scorer, "image_embeddings", None)
    if embed is None:
        return {}
    embeddings = embed(plan.probe, run.cache)
    top = layer.top_ids[: plan.interpretation.top_images]
    found = clarity(embeddings, plan.probe.rows_of(top.flatten()).reshape(top.shape))
    bound = random_clarity(embeddings, len(top), seed=seed).quantile(0.95)
    return {"clarity": found.numpy(), "scattered": ((found <= bound) & ~layer.dead).numpy()}


def labels_of(
    layer: LayerActivations, scores: Float[Tensor, "image concept"], measure: Similarity
) -> Int64[Tensor, " n"]:
    """Each neuron's concept."""
    return labelled(layer, scores, measure).argmax(1)


def noised(probe: ImageSet, sd: float, seed: int) -> ImageSet:
    """The images with normal noise of ``sd`` grey levels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(probe.images.shape, generator=generator) * sd
    return replace(probe, images=(probe.images + noise).round().clamp(0, 255).to(torch.uint8))


def replace_probe(plan: Plan, probe: ImageSet) -> Plan:
    """The same plan with other probe images."""
    other = Plan(plan.run)
    other.__dict__["probe"] = probe
    return other


def _other_scores(
    run: Session, plan: Plan, layer: LayerActivations, scores: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Labels with another scorer of the config: another template, another CLIP, annotations."""
    before = labels_of(layer, scores, plan.measure)
    found = {}
    for name, entry in run.cfg.quality.scorers.items():
        other = instantiate(entry).score(plan.probe, plan.concepts, run.data.splits.class_names, run.cache)
        found[str(name)] = (before, labels_of(layer, other.at(layer.ids), plan.measure))
    return found


def _other_sources(
    run: Session, plan: Plan, layer: LayerActivations, true_scores: Tensor, seed: int
) -> list[pd.DataFrame]:
    """What the run's similarity recovers from each other scorer of the config; ``source`` names it."""
    rows = []
    for name, entry in run.cfg.quality.scorers.items():
        scores = instantiate(entry).score(plan.probe, plan.concepts, run.data.splits.class_names, run.cache)
        measure = {type(plan.measure).__name__: plan.measure}
        row = recovered(layer, scores.at(layer.ids), true_scores, measure, seed=seed)
        rows.append(row[row["source"] == "scorer"].assign(source=str(name), layer=layer.layer))
    return rows


def _other_top_k(plan: Plan, layer: LayerActivations, scores: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Labels from half and from twice as many top images, for similarities that have them."""
    top_k = getattr(plan.measure, "top_k", None)
    if top_k is None:
        return {}
    before = labels_of(layer, scores, plan.measure)
    return {
        f"top_k {other}": (before, labels_of(layer, scores, replace(plan.measure, top_k=other)))  # type: ignore[type-var]
        for other in (top_k // 2, 2 * top_k)
    }


def _planted(
    plan: Plan, found: Dissected, true_scores: Tensor, measures: Mapping[str, Similarity], seed: int
) -> pd.DataFrame:
    """Recovery of neurons that were built to detect given concepts."""
    planted = planted_neurons(true_scores, seed=seed)
    ids, order = torch.sort(plan.probe.ids)
    layer = LayerActivations.of("planted", ids, planted.activations[order], 100)
    scores = found.scores.at(ids)
    return recovered(layer, scores, true_scores[order], measures, planted.truth, seed=seed).assign(
        layer="planted neurons"
    )


def _logits(run: Session, plan: Plan, found: Dissected, measures: Mapping[str, Similarity], seed: int) -> pd.DataFrame:
    """Recovery of the class logits, whose labels are known on any data: logit c stands for the name of class c.

    Empty where the scorer cannot score the class names.
    """
    names = run.data.splits.class_names
    try:
        scores = plan.scorer.score(plan.probe, concept_set(names), names, run.cache)
    except UserError:
        return pd.DataFrame()
    layer = LayerActivations.of("class logits", found.predictions.ids, found.predictions.logits, 100)
    labels = plan.probe.labels[plan.probe.rows_of(layer.ids)]
    shown = torch.nn.functional.one_hot(labels, len(names)).float()
    truth = torch.eye(len(names), dtype=torch.bool)
    return recovered(layer, scores.at(layer.ids), shown, measures, truth, seed=seed).assign(layer="class logits")


def _bars(recovery: pd.DataFrame) -> Figure:
    """Recovery by the scorer, with what the truth itself would give as the ceiling."""
    scorer = recovery[recovery["source"] == "scorer"]
    ceiling = recovery.loc[recovery["source"] == "annotations", "top1"].max()
    return figures.label_quality(
        list(scorer["similarity"]),
        scorer["top1"],
        scorer["top1_low"],
        scorer["top1_high"],
        chance=float(scorer["top1_chance"].mean()),
        ceiling=float(ceiling),
    )


def _columns(all_names: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    place = {name: column for column, name in enumerate(all_names)}
    return [place[name] for name in names]


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    if not full:
        return pd.DataFrame()
    joined = pd.concat(full, ignore_index=True)
    return joined[["layer", *(c for c in joined if c != "layer")]]

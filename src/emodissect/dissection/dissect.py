"""Labels the neurons of any network: record activations, score concepts, compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.concepts import ConceptScores, Scorer
from emodissect.concepts.clip_names import clip_named
from emodissect.concepts.concept_set import ConceptSet, concept_set, read_concepts
from emodissect.core.cache import Cache, user_cache_dir
from emodissect.core.errors import UserError
from emodissect.core.evaluation_mode import evaluating
from emodissect.core.progress import tracked
from emodissect.data.image_source import class_names_of, image_set, raw
from emodissect.data.images import ImageSet, image_loader
from emodissect.dissection.labels import REFERENCE_LEVEL, Dissection, Labelling, label_neurons, require_living
from emodissect.models.network_input import NetworkInput, Transform, forward_of, on_device
from emodissect.recording import ActivationCollector, LayerActivations, reached_layers, resolve_layers
from emodissect.recording.pooling import ChannelsLast
from emodissect.similarity import Similarity, similarity_named

Concepts = ConceptSet | str | Path | Mapping[str, Any] | Iterable[str]


def dissect(
    network: nn.Module,
    images: Any,
    concepts: Concepts,
    *,
    layers: str | Sequence[str],
    transform: Transform | None = None,
    clip: Any = "ViT-B-16",
    scorer: Scorer | Tensor | Any | None = None,
    similarity: str | Similarity = "soft_wpmi",
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    tau: float = 0.0,
    level: float = REFERENCE_LEVEL,
    null_draws: int = 1000,
    top_images: int = 10,
    pool: str = "avg",
    channels_last: ChannelsLast = "auto",
    seed: int = 0,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Dissection:
    """Labels the neurons of a network's layers with concepts (CLIP-Dissect, Oikarinen & Weng 2023).

    Args:
        network: any ``nn.Module`` or ``LightningModule``; its weights, modes and device are unchanged.
        images: the probe set: a uint8 tensor (image, channel, height, width), a ``Dataset`` (images alone,
            ``(image, label)`` or dicts; tensors or PIL images) or a ``DataLoader``. Floats in [0, 1] also count as raw.
        concepts: a list of words, ``{word: [classes]}``, or a concept file (.txt, .yaml, .json, .csv).
        layers: a module path, a glob, a list of these, or ``all`` (every convolution and linear layer).
        transform: maps raw images to the network's input; may take a batch, a tensor or a PIL image. None passes the
            images unchanged; uint8 images that the network cannot take are scaled to [0, 1]. CLIP always sees the raw
            image.
        clip: ``tiny`` (included; knows only drawn faces), an open_clip model name, or a weights file.
        scorer: used in place of CLIP: an object with ``score``, or an (image, concept) array of scores.
        similarity: ``soft_wpmi``, ``wpmi``, ``rank_reorder``, ``cos_similarity``, ``cos_similarity_cubed``,
            ``pearson``, or an object.
        labels: one class index per image; None takes the data set's own. Without labels there is no neuron accuracy.
        class_names: in the order of the labels; None takes the data set's own (``classes``).
        tau: a neuron is interpretable if its similarity is above tau.
        level: false discovery rate at which a label is significant.
        null_draws: number of random image sets for the p-values.
        top_images: number of most activating images used for a neuron's accuracy.
        pool: how positions are pooled into one number: ``avg``, ``max``, ``class_token`` or ``token_mean``.
        channels_last: whether 4-D outputs are (image, height, width, neuron).
        seed: random seed of the random image sets.
        batch_size: images per forward pass.
        device: where the network runs; None leaves it where it is.
        cache_dir: where CLIP's embeddings are cached; None is the user's cache directory.
        progress: show progress bars.

    Returns:
        The labels; ``neurons`` and ``layers`` are pandas tables, and ``dissection["fc1"]`` is the table of one layer.

    Raises:
        UserError: an unknown layer, CLIP or similarity, invalid concepts, or images that the network cannot take;
            raised before any long computation.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
        >>> brightness = images.float().mean((1, 2, 3))
        >>> scores = torch.stack([brightness, -brightness], 1)
        >>> found = dissect(network, images, ["bright", "dark"], layers="1", scorer=scores, similarity="pearson",
        ...     null_draws=100, progress=False)
        >>> sorted(set(found["1"].concept))
        ['bright', 'dark']
    """
    named = tuple(class_names) if class_names is not None else class_names_of(images)
    labeller = Labeller(
        concepts,
        clip=clip,
        scorer=scorer,
        similarity=similarity,
        labelling=Labelling(null_draws, top_images, seed),
        tau=tau,
        level=level,
        cache_dir=cache_dir,
        progress=progress,
    )
    resolved = resolve_layers(network, layers)
    probe = image_set(images, labels, as_given=True, progress=progress)
    shown = labeller.shown(probe)
    labeller.check(shown, named)
    with on_device(network, device):
        inputs = NetworkInput(network, transform, probe.images[:2])
        if not isinstance(layers, str) or layers not in resolved:
            resolved = reached_layers(network, resolved, inputs(probe.images[:2]), pool, channels_last)
        collector = labeller.collector(resolved, pool, channels_last)
        activations = record_layers(network, collector, probe, inputs, batch_size, progress)
    return require_living(labeller.label(activations, shown, named))


class Labeller:
    """Labels recorded activations: holds the concepts, scorer, similarity, null and thresholds.

    Args:
        concepts, clip, scorer, similarity, tau, level, cache_dir, progress: as in :func:`dissect`.
        labelling: parameters of the null and of neuron accuracy.
    """

    def __init__(
        self,
        concepts: Concepts,
        *,
        clip: Any = "ViT-B-16",
        scorer: Scorer | Tensor | Any | None = None,
        similarity: str | Similarity = "soft_wpmi",
        labelling: Labelling | None = None,
        tau: float = 0.0,
        level: float = REFERENCE_LEVEL,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.concepts = concepts_of(concepts)
        self.similarity = similarity_named(similarity)
        self.scorer = scorer_of(scorer, clip, progress)
        self.labelling, self.tau, self.level = labelling or Labelling(), tau, level
        self.cache = Cache(cache_dir or user_cache_dir())

    def known(self, class_names: Sequence[str]) -> ConceptSet:
        """The concepts, with only those classes that the data set has; without classes where it has no class names."""
        if not class_names:
            return ConceptSet(self.concepts.names, {}, self.concepts.origin)
        return self.concepts.of_data(class_names)

    def shown(self, images: ImageSet) -> ImageSet:
        """The images as uint8, which CLIP and figures need; unchanged if they are not raw and scores are given.

        Raises:
            UserError: the images are normalised, and the scorer needs raw ones.
        """
        if not isinstance(images.images, Tensor) or images.images.dtype == torch.uint8:
            return images
        try:
            return replace(images, images=raw(images.images))
        except UserError:
            if isinstance(self.scorer, GivenScores):
                return images
            raise

    def check(self, images: ImageSet, class_names: Sequence[str]) -> None:
        """Raises UserError, before the recording, for anything that would fail after it."""
        self.labelling.check(len(images))
        if class_names and images.labelled and int(images.labels.max()) >= len(class_names):
            raise UserError(
                f"class_names has {len(class_names)} names ({', '.join(class_names)}), but labels go up to "
                f"{int(images.labels.max())}. Give one name per label, in the order of the labels."
            )
        self.scorer.check(images, self.known(class_names), class_names)

    def collector(
        self, layers: Sequence[str], pool: str = "avg", channels_last: ChannelsLast = "auto", **further: Any
    ) -> ActivationCollector:
        """A collector that keeps what the similarity and the labels need from these layers."""
        return ActivationCollector(
            layers,
            pool=pool,
            channels_last=channels_last,
            top_k=max(getattr(self.similarity, "top_k", None) or 0, self.labelling.top_images),
            **{"keep_values": self.similarity.needs_values, **further},
        )

    def label(
        self, activations: Mapping[str, LayerActivations], images: ImageSet, class_names: Sequence[str]
    ) -> Dissection:
        """The labels of the recorded layers' neurons."""
        known = self.known(class_names)
        scores = self.scorer.score(images, known, class_names, self.cache)
        labelled = class_names if images.labelled else ()
        concepts = known if labelled else ConceptSet(known.names, {}, known.origin)
        return label_neurons(activations, scores, self.similarity, images, concepts, labelled, self.labelling).at(
            self.tau, self.level
        )


class GivenScores:
    """A scorer that returns given scores.

    Args:
        values: shape (image, concept), in the order of the probe images and of the concepts.
    """

    def __init__(self, values: Any) -> None:
        self.values: Float[Tensor, "image concept"] = torch.as_tensor(values, dtype=torch.float32)

    def check(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> None:
        """Raises UserError if the scores have the wrong shape or are not finite."""
        wanted = (len(images), len(concepts))
        if tuple(self.values.shape) != wanted or not bool(self.values.isfinite().all()):
            raise UserError(
                f"scorer= is an array of shape {tuple(self.values.shape)}; it must hold finite scores of shape "
                f"(image, concept) = {wanted}."
            )

    def score(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str], cache: Cache) -> ConceptScores:
        """The given scores with the images' ids."""
        return ConceptScores(images.ids, concepts.names, self.values, self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """A constant, since nothing that depends on these scores is cached."""
        return {"scorer": "given"}


def concepts_of(concepts: Concepts) -> ConceptSet:
    """A concept set from names, names with classes, or a file."""
    if isinstance(concepts, ConceptSet):
        return concepts
    if isinstance(concepts, str | Path):
        if not Path(concepts).expanduser().exists():
            raise UserError(
                f"concepts={str(concepts)!r} is not a file. Give a list of words, {{word: [classes]}}, or a file."
            )
        return read_concepts(concepts)
    return concept_set(concepts)


def scorer_of(scorer: Any, clip: Any, progress: bool = True) -> Scorer:
    """The given scorer, an array of scores wrapped as a scorer, or CLIP."""
    if scorer is None:
        from emodissect.concepts import ClipScorer  # imported here because open_clip takes seconds to import

        return ClipScorer(clip_named(clip), progress=progress)
    return scorer if hasattr(scorer, "score") else GivenScores(scorer)


def record_layers(
    network: nn.Module,
    collector: ActivationCollector,
    images: ImageSet,
    inputs: Any,
    batch_size: int,
    progress: bool = False,
    context: Any = None,
    root: nn.Module | None = None,
) -> dict[str, LayerActivations]:
    """Records the collector's layers on all images, in eval mode without gradients; restores modes and random state.

    Args:
        context: a context manager for the forward passes, e.g. a trainer's autocast.
        root: the submodule that the collector's paths are relative to; None is the network.
    """
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    recorded = collector.on(network if root is None else root)
    with (
        evaluating(network),
        torch.random.fork_rng(devices),
        torch.inference_mode(),
        context or nullcontext(),
        recorded,
    ):
        for batch in tracked(image_loader(images, batch_size), "recording" if progress else None):
            forward_of(network)(inputs(batch.images))
            collector.update(batch.ids)
    return collector.result()

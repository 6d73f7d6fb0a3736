"""Labels for the neurons of any network: record, score, compare."""

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
        network: any ``nn.Module`` or ``LightningModule``; its weights, modes and device are left as they were.
        images: the probe set: a uint8 tensor (image, channel, height, width), a ``Dataset`` (images alone,
            ``(image, label)`` or dicts; tensors or PIL images) or a ``DataLoader``. Floats in [0, 1] are raw too.
        concepts: a list of words, ``{word: [classes]}``, or a file of words (.txt, .yaml, .json, .csv).
        layers: a module path, a glob, a list of these, or ``all`` (every convolution and linear layer).
        transform: raw image to network input, by batch, tensor or PIL image. None gives the network the images as they
            are; uint8 images that it cannot take become values in [0, 1]. CLIP always sees the raw image.
        clip: ``tiny`` (shipped; knows drawn faces only), a name of open_clip, or a weights file.
        scorer: in place of a CLIP: an object with ``score``, or an (image, concept) array of scores.
        similarity: ``soft_wpmi``, ``wpmi``, ``rank_reorder``, ``cos_similarity``, ``cos_similarity_cubed``,
            ``pearson``, or an object.
        labels: one class index per image; None takes the data set's own. Without labels there is no neuron accuracy.
        class_names: in the order of the labels; None takes the data set's own (``classes``).
        tau: a neuron is interpretable where its similarity is above it.
        level: false discovery rate at which a label is significant.
        null_draws: random image sets behind each p-value.
        top_images: most activating images whose classes decide a neuron's accuracy.
        pool: how positions become one number: ``avg``, ``max``, ``class_token`` or ``token_mean``.
        channels_last: whether 4-D outputs are (image, height, width, neuron).
        seed: of the random image sets.
        batch_size: images in one forward pass.
        device: where the network runs; None leaves it where it is.
        cache_dir: where CLIP's embeddings are kept; None is the user's cache directory.
        progress: show progress bars.

    Returns:
        The labels; ``neurons`` and ``layers`` are pandas tables, and ``dissection["fc1"]`` is one layer's.

    Raises:
        UserError: an unknown layer, word, CLIP or similarity, images the network cannot take, before any long work.

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
    """Everything that labels need beside the network: words, scores, similarity, chance and thresholds.

    Args:
        concepts, clip, scorer, similarity, tau, level, cache_dir, progress: as in :func:`dissect`.
        labelling: how labels are compared with chance and with classes.
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
        """The concepts without classes that the images lack; without any classes where these are not known."""
        if not class_names:
            return ConceptSet(self.concepts.names, {}, self.concepts.origin)
        return self.concepts.of_data(class_names)

    def shown(self, images: ImageSet) -> ImageSet:
        """The images as uint8, which CLIP and figures need; as they are where scores are given and they are not raw.

        Raises:
            UserError: normalised images, and a scorer that looks at them.
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
        """Raises UserError for whatever would fail after the recording."""
        self.labelling.check(len(images))
        if class_names and images.labelled and int(images.labels.max()) >= len(class_names):
            raise UserError(
                f"class_names has {len(class_names)} names ({', '.join(class_names)}), and labels go up to "
                f"{int(images.labels.max())}. Name one class per label, in the order of the labels."
            )
        self.scorer.check(images, self.known(class_names), class_names)

    def collector(
        self, layers: Sequence[str], pool: str = "avg", channels_last: ChannelsLast = "auto", **further: Any
    ) -> ActivationCollector:
        """Keeps of these layers what the similarity and the labels read."""
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
    """A scorer of scores that are given: row i is of the i-th image of the probe set.

    Args:
        values: (image, concept), in the order of the images and of the concepts.
    """

    def __init__(self, values: Any) -> None:
        self.values: Float[Tensor, "image concept"] = torch.as_tensor(values, dtype=torch.float32)

    def check(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> None:
        """Raises UserError for scores of another shape, or not finite."""
        wanted = (len(images), len(concepts))
        if tuple(self.values.shape) != wanted or not bool(self.values.isfinite().all()):
            raise UserError(
                f"scorer= is an array of shape {tuple(self.values.shape)}; finite scores of shape (image, concept) = "
                f"{wanted} are needed."
            )

    def score(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str], cache: Cache) -> ConceptScores:
        """The scores with the images' ids."""
        return ConceptScores(images.ids, concepts.names, self.values, self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """Nothing is cached that depends on these scores."""
        return {"scorer": "given"}


def concepts_of(concepts: Concepts) -> ConceptSet:
    """A concept set from words, words with classes, or a file."""
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
    """The scorer that was given, given scores as a scorer, or CLIP."""
    if scorer is None:
        from emodissect.concepts import ClipScorer  # open_clip takes seconds to import

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
    """The collector's layers on all images, in evaluation mode without gradients; modes and random state are put back.

    Args:
        context: a context manager to run in, e.g. a trainer's autocast.
        root: the part of the network that the collector's paths start from; None is the network.
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

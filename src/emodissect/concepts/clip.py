"""Concept scores from CLIP: cosine similarity of image and concept embeddings, which are cached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from emodissect.concepts.clip_runtimes import Tower, check_runtime, image_tower
from emodissect.concepts.concept_set import ConceptSet
from emodissect.concepts.open_clip_model import OpenClip
from emodissect.concepts.scores import ConceptScores
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError, listed, nearest
from emodissect.core.fingerprint import fingerprint
from emodissect.core.progress import progress_bar
from emodissect.core.tensor_files import save_tensors
from emodissect.data.images import ImageSet

log = logging.getLogger(__name__)

_SHOWN = 8

_MARK = "\0"

# `bare` is CLIP-Dissect's own prompt; the prompts of `faces` mention faces, which all images here show.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "bare": ("{}",),
    "faces": (
        "{}",
        "a face with {}",
        "a photo of a face showing {}",
        "a black and white photo of a person with {}",
        "a close-up of a facial expression: {}",
    ),
    "imagenet": tuple(make(_MARK).replace(_MARK, "{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES),
}

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ClipScorer:
    """Cosine similarity of L2-normalised image and text embeddings, no logit scale (CLIP-Dissect, Oikarinen & Weng).

    Embeddings are cached by content, in shards: a second concept set does not embed the images again, and an
    interrupted run resumes after the last finished shard. The network is only loaded if a shard is missing.

    Args:
        clip: the CLIP model.
        templates: prompts with ``{}`` for the concept, or a named ensemble (``bare``, ``faces``, ``imagenet``). The
            normalised embeddings of several prompts are averaged and normalised again.
        batch_size: images, or prompts, per forward pass.
        shard_size: images, or concepts, per cache entry.
        device: ``auto`` (cuda, then mps, then cpu) or a torch device.
        precision: ``auto`` (fp32 on CPU and mps, bf16 or else fp16 on CUDA), ``fp32``, ``bf16``, ``fp16``. bf16
            took 1.2 to 1.9 times the CPU time of fp32 with ViT-B/32 on an AMD EPYC; see ``clip.runtime``.
        progress: show a progress bar.

    Raises:
        UserError: an unknown device or precision, or a template without ``{}``.
    """

    def __init__(
        self,
        clip: OpenClip,
        templates: str | Sequence[str] = ("{}",),
        batch_size: int = 256,
        shard_size: int = 2000,
        device: str = "auto",
        precision: str = "auto",
        progress: bool = True,
    ) -> None:
        if batch_size < 1 or shard_size < 1:
            raise UserError("scorer.batch_size and scorer.shard_size must be at least 1.")
        self.clip = clip
        self.templates = resolve_templates(templates)
        self.batch_size = batch_size
        self.shard_size = shard_size
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        check_runtime(clip.runtime, self.device)
        self.progress = progress

    def score(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str], cache: Cache) -> ConceptScores:
        """The cosine similarity of every image and concept.

        Args:
            images: the probe images.
            concepts: the concepts; a warning names words that the model does not know.
            class_names: unused, since CLIP needs no classes.
            cache: where embeddings are cached.
        """
        texts = self.text_embeddings(concepts.names, cache)
        values = self.image_embeddings(images, cache) @ texts.T
        return ConceptScores(images.ids, concepts.names, values, self.fingerprint())

    def check(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> None:
        """Loads weights and tokenizer, downloading them if needed. Raises UserError if they are not available."""
        self.clip.fingerprint()
        self.clip.tokenizer  # noqa: B018  to report a missing package early
        if doubts := self.doubts(images):
            log.warning("%s", doubts)

    def doubts(self, images: ImageSet) -> str:
        """A sentence on why the CLIP may not suit these images; empty if there is no reason."""
        return self.clip.doubts(images)

    def fingerprint(self) -> dict[str, Any]:
        """Content of CLIP, templates and precision, for cache keys."""
        other = {} if self.clip.runtime == "torch" else {"runtime": self.clip.runtime}
        return {"scorer": "clip", "templates": list(self.templates), **self._embedded_by(), **other}

    def image_embeddings(self, images: ImageSet, cache: Cache) -> Float[Tensor, "image embedding"]:
        """L2-normalised embeddings of the images, cached or computed, in fp32 on the CPU."""
        preprocess, runtime = self.clip.images, self.clip.runtime
        towers: list[Tower] = []  # created at the first batch, on which it is compared with torch

        def embed(network: nn.Module, part: ImageSet) -> Iterator[Tensor]:
            for pixels in part.images.split(self.batch_size):
                batch = preprocess(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)
                if runtime == "torch":
                    yield network.encode_image(batch)  # type: ignore[operator]
                    continue
                if not towers:
                    towers.append(image_tower(self.clip, runtime, cache, batch))
                yield towers[0](batch)

        parts = [images.subset(range(s, min(s + self.shard_size, len(images)))) for s in _starts(images, self)]
        other = {} if runtime == "torch" else {"runtime": runtime}
        keys = [{"pixels": _pixel_hash(part), **self._embedded_by(), **other} for part in parts]
        return self._embedded("clip_images", "images", parts, keys, embed, cache)

    def text_embeddings(self, concepts: Sequence[str], cache: Cache) -> Float[Tensor, "concept embedding"]:
        """L2-normalised embeddings of the concepts, each averaged over the templates."""
        self._warn_of_unknown_words(concepts)
        self._warn_of_lost_words(concepts)
        each = max(1, self.batch_size // len(self.templates))

        def embed(network: nn.Module, part: Sequence[str]) -> Iterator[Tensor]:
            for start in range(0, len(part), each):
                batch = part[start : start + each]
                tokens = self.clip.tokenizer([text for name in batch for text in prompts(name, self.templates)])
                embedded = network.encode_text(tokens.to(self.device))  # type: ignore[operator]
                embedded = F.normalize(embedded.float(), dim=-1).unflatten(0, (len(batch), len(self.templates)))
                yield embedded.mean(dim=1)

        parts = [concepts[s : s + self.shard_size] for s in _starts(concepts, self)]
        keys = [{"texts": list(part), "templates": list(self.templates), **self._embedded_by()} for part in parts]
        return self._embedded("clip_texts", "concepts", parts, keys, embed, cache)

    def _embedded_by(self) -> dict[str, Any]:
        return {"clip": fingerprint(self.clip), "precision": self.precision}

    def _embedded(
        self,
        kind: str,
        what: str,
        parts: Sequence[Any],
        keys: Sequence[dict[str, Any]],
        embed: Callable[[nn.Module, Any], Iterator[Tensor]],
        cache: Cache,
    ) -> Tensor:
        """The normalised embeddings of all parts; missing ones are computed and cached, one entry per part."""
        missing = sum(len(part) for part, key in zip(parts, keys, strict=True) if not cache.holds(kind, key))
        if missing:
            held = sum(map(len, parts)) - missing
            log.info(
                "Embedding %s %s with %s on %s in %s%s.",
                *(f"{missing:,}", what, self.clip.model_name, self.device, self.precision),
                f" ({held:,} are cached already)" if held else "",
            )
        shards: list[Tensor] = []
        with progress_bar(f"CLIP: {what}", missing if self.progress else 0) as advance:
            for part, key in zip(parts, keys, strict=True):

                def write(folder: Path, part: Any = part) -> None:
                    rows = []
                    with torch.inference_mode(), self._autocast():
                        for embedded in embed(self._network(), part):
                            rows.append(F.normalize(embedded.float(), dim=-1).cpu())
                            advance(len(rows[-1]))
                    save_tensors({"embeddings": torch.cat(rows)}, str(folder / "embeddings.safetensors"))

                shards.append(cache.value(kind, key, write, _read_shard))
        return torch.cat(shards)

    def _network(self) -> nn.Module:
        # Channels-last convolutions are 10-50 % faster on CPUs; it changes nothing for transformers.
        return self.clip.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_PRECISIONS[self.precision])

    def _warn_of_lost_words(self, concepts: Sequence[str]) -> None:
        """Warns of texts truncated at the context length, and of concepts with the same tokens."""
        cut: list[str] = []
        same: dict[bytes, list[str]] = {}
        for name in concepts:
            texts = prompts(name, self.templates)
            tokens = self.clip.tokenizer(texts)
            length = tokens.shape[1]
            try:
                whole = self.clip.tokenizer(texts, 2 * length)[:, :length]  # type: ignore[call-arg]
            except TypeError:  # a tokenizer with a fixed context length
                whole = tokens
            if not torch.equal(whole, tokens):
                cut.append(name)
            same.setdefault(tokens.numpy().tobytes(), []).append(name)
        if cut:
            log.warning(
                "%s reads only %d tokens per text: %s %s truncated. Shorten the concepts or scorer.templates.",
                *(self.clip.model_name, length, _listed(cut), "is" if len(cut) == 1 else "are"),
            )
        for names in [names for names in same.values() if len(names) > 1][:_SHOWN]:
            log.warning("%s reads the same text for %s: their scores are equal.", self.clip.model_name, _listed(names))

    def _warn_of_unknown_words(self, concepts: Sequence[str]) -> None:
        unknown = {name: words for name in concepts if (words := self.clip.unknown_words(name))}
        if not unknown:
            return
        words_in = [f"{' and '.join(map(repr, words))} in '{name}'" for name, words in unknown.items()]
        log.warning(
            "%s was not trained on these words: %s. Labels with them mean little. Use a general-purpose CLIP: "
            "clip=vit_b_16.",
            *(self.clip.model_name, listed(words_in, _SHOWN)),
        )


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named ensemble, a single template, or a list.

    Raises:
        UserError: a template without ``{}``, an unknown ensemble, or none at all.
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        templates = (templates,)
    found = tuple(str(template) for template in templates)
    if not found:
        raise UserError("scorer.templates is empty. To use the concept alone, set scorer.templates=bare.")
    for template in found:
        if template.count("{}") != 1:
            raise UserError(
                f"The prompt template '{template}' must contain {{}} exactly once, for the concept, e.g. 'a face with "
                f"{{}}'. For the named ensembles: {nearest(template, TEMPLATES)}"
            )
    return found


def prompts(concept: str, templates: Sequence[str]) -> list[str]:
    """The concept in each template; braces inside a concept are left alone."""
    return [template.replace("{}", concept) for template in templates]


def resolve_device(device: str) -> torch.device:
    """The torch device for ``auto`` or a name.

    Raises:
        UserError: the name is not a device, or this machine has no such device.
    """
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"scorer.device={device} is not available on this machine. "
            f"{nearest(device, ('auto', 'cpu', 'cuda', 'mps'))}"
        ) from error
    return chosen


def resolve_precision(precision: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``; half precision is several times faster on CUDA, but mostly far slower on CPUs.

    Raises:
        UserError: an unknown precision.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision not in _PRECISIONS:
        raise UserError(f"scorer.precision={precision} is unknown. {nearest(precision, ('auto', *_PRECISIONS))}")
    return precision


def _read_shard(folder: Path) -> Float[Tensor, "item embedding"]:
    return load_file(str(folder / "embeddings.safetensors"))["embeddings"]


def _listed(names: Sequence[str]) -> str:
    return listed((f"'{name[:60]}'" for name in names), _SHOWN)


def _starts(items: Any, scorer: ClipScorer) -> range:
    return range(0, len(items), scorer.shard_size)


def _pixel_hash(part: ImageSet) -> str:
    """Hash of the pixels without labels and ids, since embeddings depend on pixels only."""
    blank = torch.zeros(len(part), dtype=torch.int64)
    return ImageSet(part.images, blank, torch.arange(len(part))).fingerprint()

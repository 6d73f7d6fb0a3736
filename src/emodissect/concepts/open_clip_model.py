"""Which CLIP: an open_clip architecture with weights from the hub or from a file, found before it is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Int64
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from emodissect.concepts.clip_images import ClipImages
from emodissect.concepts.clip_weights import downloaded, offline_advice
from emodissect.concepts.hugging_face import is_hugging_face, renamed
from emodissect.core.cache import file_hash
from emodissect.core.errors import UserError, nearest, reason
from emodissect.core.fingerprint import fingerprint, weights_hash
from emodissect.core.tensor_files import check_archive, is_torchscript, torchscript_tensors
from emodissect.data.images import ImageSet

log = logging.getLogger(__name__)

_TOKENIZER_ARGUMENTS = ("clean", "strip_sep_token", "language")

Tokenizer = Callable[[Sequence[str]], Int64[Tensor, "text token"]]


@dataclass(frozen=True)
class OpenClip:
    """A CLIP model of open_clip.

    Attributes:
        model_name: an architecture that open_clip knows (``ViT-B-16-quickgelu``), or ``hf-hub:org/repository``, or
            ``local-dir:/folder``, which bring their own weights.
        pretrained: open_clip's tag of the weights (``openai``, ``laion2b_s34b_b79k``, ...), downloaded once.
        weights: a weights file instead: safetensors or a plain state dict, or OpenAI's own ``.pt`` archives.
        runtime: what runs the image tower: ``torch``, or on CPUs ``onnx_int8`` or ``openvino``, see
            :mod:`emodissect.concepts.clip_runtimes`.

    Raises:
        UserError: an unknown architecture or tag, no weights chosen, or a file that does not exist.
    """

    model_name: str
    pretrained: str | None = None
    weights: str | None = None
    runtime: str = "torch"

    def __post_init__(self) -> None:
        if self._brings_weights:
            return
        if self.model_name not in open_clip.list_models():
            raise UserError(
                f"open_clip has no architecture '{self.model_name}' (clip.model_name). "
                + nearest(self.model_name, open_clip.list_models())
            )
        if self.weights is not None:
            if not Path(self.weights).expanduser().is_file():
                raise UserError(f"The weights file {self.weights} does not exist (clip.weights).")
        elif not open_clip.is_pretrained_cfg(self.model_name, self.pretrained or ""):
            tags = open_clip.list_pretrained_tags_by_model(self.model_name)
            raise UserError(
                f"clip.pretrained={self.pretrained} names no weights of {self.model_name}. "
                f"{nearest(self.pretrained or '', tags)} Or give a file: clip.weights=<file>."
            )

    @property
    def _brings_weights(self) -> bool:
        return self.model_name.startswith(("hf-hub:", "local-dir:"))

    @property
    def _tag(self) -> dict[str, Any]:
        """What open_clip knows of the chosen weights: mean, std, activation."""
        if self.weights is not None or self.pretrained is None:
            return {}
        return dict(open_clip.get_pretrained_cfg(self.model_name, self.pretrained))

    @cached_property
    def checkpoint(self) -> Path:
        """The weights file, downloaded where that is still to be done.

        Raises:
            UserError: it cannot be downloaded; the message says what was tried and what works offline.
        """
        if self.weights is not None:
            return Path(self.weights).expanduser().absolute()
        return downloaded(self.model_name, self.pretrained or "", self._tag)

    @cached_property
    def model(self) -> nn.Module:
        """The network with its weights, on the CPU, in fp32, for evaluation.

        Raises:
            UserError: the weights cannot be had, or do not fit the architecture.
        """
        with quiet_loading():
            return self._loaded().eval()

    def _loaded(self) -> nn.Module:
        if self._brings_weights:
            try:
                self._require_no_code()
                model = open_clip.create_model(self.model_name, require_pretrained=True)
            except (RuntimeError, OSError, ValueError) as error:
                raise UserError(offline_advice(self.model_name, [f"{self.model_name}: {reason(error)}"])) from error
            return model
        try:
            check_archive(self.checkpoint)
            if is_torchscript(self.checkpoint):
                model = self._with_weights(torchscript_tensors(self.checkpoint), force_quick_gelu=True)
            elif (held := _plain_weights(self.checkpoint)) is not None and is_hugging_face(held):
                log.info("%s has Hugging Face's names for its weights; they are renamed.", self.checkpoint)
                model = self._with_weights(renamed(held))
            else:
                model = open_clip.create_model(
                    self.model_name,
                    pretrained=str(self.checkpoint),
                    force_quick_gelu=bool(self._tag.get("quick_gelu")),
                    force_preprocess_cfg=self._normalisation(),
                )
        except Exception as error:
            raise UserError(
                f"The weights {self.checkpoint} do not load as {self.model_name}: {reason(error)}. Give the "
                "architecture that the file was made with: clip.model_name=<one of open_clip.list_models()>."
            ) from error
        return model

    def _with_weights(self, held: Mapping[str, Tensor], **options: Any) -> nn.Module:
        """The architecture with these weights; OpenAI's own archives were all trained with QuickGELU."""
        with quiet_loading(logging.WARNING):  # of random weights, for a moment
            model = open_clip.create_model(self.model_name, force_preprocess_cfg=self._normalisation(), **options)
        wanted = model.state_dict()
        model.load_state_dict({name: value for name, value in held.items() if name in wanted})
        return model

    def _normalisation(self) -> dict[str, Any]:
        return {name: value for name, value in self._preprocessing().items() if name != "size"}

    @cached_property
    def images(self) -> ClipImages:
        """The model's own image preprocessing, batched."""
        if self._brings_weights:
            return ClipImages.of(open_clip.get_model_preprocess_cfg(self.model))
        return ClipImages.of(self._preprocessing())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to token ids.

        Raises:
            UserError: the tokenizer lies on the hub and cannot be had.
        """
        try:
            # transformers asks on the terminal whether to run a repository's own code, unless it is configured not to
            foreign = {"trust_remote_code": False} if self._require_no_code().get("hf_tokenizer_name") else {}
            return open_clip.get_tokenizer(self.model_name, **foreign)
        except UserError:
            raise
        except Exception as error:  # transformers missing, hub unreachable, file damaged: one answer for the user
            missing = find_spec("transformers") is None or "sentencepiece" in str(error)
            advice = "It needs the extra: pip install 'emodissect[transformers]'. " if missing else ""
            raise UserError(
                f"The tokenizer of {self.model_name} is not available on this machine: {reason(error)}. {advice}"
                "Architectures with OpenAI's tokenizer (ViT-B-16, RN50, ...) need nothing else."
            ) from error

    def _require_no_code(self) -> dict[str, Any]:
        """The text half of the architecture's config; of a model that brings its own, it may name no code.

        Raises:
            UserError: its tokenizer's arguments are others than those of open_clip's own tokenizers.
        """
        text = dict((open_clip.get_model_config(self.model_name) or {}).get("text_cfg") or {})
        other = sorted(set(text.get("tokenizer_kwargs") or {}) - set(_TOKENIZER_ARGUMENTS))
        if other and self._brings_weights:
            raise UserError(
                f"{self.model_name} is refused: its config gives its tokenizer {', '.join(map(str, other))}. Accepted "
                f"from a file: {', '.join(_TOKENIZER_ARGUMENTS)}. Where does it come from?"
            )
        return text

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that the model has never read; none where the tokenizer spells every word."""
        return ()

    def doubts(self, images: ImageSet) -> str:
        """Why this model may not know such images, in a sentence; empty where nothing speaks against it."""
        return ""

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        if self._brings_weights:
            return {"model": self.model_name, "weights": weights_hash(self.model), "images": fingerprint(self.images)}
        config = json.dumps(open_clip.get_model_config(self.model_name), sort_keys=True)
        return {
            "model": self.model_name,
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "quick_gelu": bool(self._tag.get("quick_gelu")),
            "weights": file_hash(self.checkpoint),
            "images": fingerprint(self.images),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Architecture, weights and preprocessing, by content."""
        return dict(self._fingerprint)

    def _preprocessing(self) -> dict[str, Any]:
        size = open_clip.get_model_config(self.model_name)["vision_cfg"].get("image_size", 224)
        return merge_preprocess_dict(merge_preprocess_dict(PreprocessCfg(), self._tag), {"size": size})


def _plain_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of a file that holds them by name and nothing else; None of another."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception:  # open_clip's own loading says what is wrong with the file
        return None
    named = isinstance(held, Mapping) and all(isinstance(value, Tensor) for value in held.values())
    return dict(held) if named else None


@contextmanager
def quiet_loading(level: int = logging.INFO) -> Iterator[None]:
    """open_clip tells the root logger of every step of making a model; what is above ``level`` is all one needs."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)

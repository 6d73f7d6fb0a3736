"""CLIP models of open_clip, with weights from the hub or from a file; found early, loaded when needed."""

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
        model_name: an open_clip architecture (``ViT-B-16-quickgelu``), or ``hf-hub:org/repository`` or
            ``local-dir:/folder``, which include weights.
        pretrained: open_clip's weights tag (``openai``, ``laion2b_s34b_b79k``, ...), downloaded once.
        weights: a weights file instead of a tag: safetensors, a plain state dict, or one of OpenAI's ``.pt`` archives.
        runtime: runtime of the image tower: ``torch``, or on CPUs ``onnx_int8`` or ``openvino``, see
            :mod:`emodissect.concepts.clip_runtimes`.

    Raises:
        UserError: an unknown architecture or tag, no weights given, or a file that does not exist.
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
                f"clip.pretrained={self.pretrained} is not a weights tag of {self.model_name}. "
                f"{nearest(self.pretrained or '', tags)} Or set clip.weights=<file>."
            )

    @property
    def _brings_weights(self) -> bool:
        return self.model_name.startswith(("hf-hub:", "local-dir:"))

    @property
    def _tag(self) -> dict[str, Any]:
        """open_clip's config of the chosen weights: mean, std, activation."""
        if self.weights is not None or self.pretrained is None:
            return {}
        return dict(open_clip.get_pretrained_cfg(self.model_name, self.pretrained))

    @cached_property
    def checkpoint(self) -> Path:
        """Path of the weights file, downloaded if necessary.

        Raises:
            UserError: it cannot be downloaded; the message says what was tried and what works offline.
        """
        if self.weights is not None:
            return Path(self.weights).expanduser().absolute()
        return downloaded(self.model_name, self.pretrained or "", self._tag)

    @cached_property
    def model(self) -> nn.Module:
        """The network with its weights, on the CPU, in fp32 and eval mode.

        Raises:
            UserError: the weights are not available, or do not fit the architecture.
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
                # OpenAI trained all of its models with QuickGELU
                model = self._with_weights(torchscript_tensors(self.checkpoint), force_quick_gelu=True)
            elif (held := _plain_weights(self.checkpoint)) is not None and is_hugging_face(held):
                log.info("%s uses Hugging Face's names for its weights; they are renamed.", self.checkpoint)
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
                f"The weights {self.checkpoint} do not load as {self.model_name}: {reason(error)}. Set "
                "clip.model_name=<one of open_clip.list_models()> to the architecture of the file."
            ) from error
        return model

    def _with_weights(self, held: Mapping[str, Tensor], **options: Any) -> nn.Module:
        """The architecture with these weights."""
        with quiet_loading(logging.WARNING):  # which would warn of random weights
            model = open_clip.create_model(self.model_name, force_preprocess_cfg=self._normalisation(), **options)
        wanted = model.state_dict()
        model.load_state_dict({name: value for name, value in held.items() if name in wanted})
        return model

    def _normalisation(self) -> dict[str, Any]:
        return {name: value for name, value in self._preprocessing().items() if name != "size"}

    @cached_property
    def images(self) -> ClipImages:
        """The model's image preprocessing, batched."""
        if self._brings_weights:
            return ClipImages.of(open_clip.get_model_preprocess_cfg(self.model))
        return ClipImages.of(self._preprocessing())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The function from texts to token ids.

        Raises:
            UserError: the tokenizer is on the hub and cannot be downloaded.
        """
        try:
            # by default, transformers prompts on the terminal whether to run a repository's own code
            options = {"trust_remote_code": False} if self._require_no_code().get("hf_tokenizer_name") else {}
            return open_clip.get_tokenizer(self.model_name, **options)
        except UserError:
            raise
        except Exception as error:  # transformers missing, hub unreachable, file damaged: one message for all
            missing = find_spec("transformers") is None or "sentencepiece" in str(error)
            advice = "It needs the extra: pip install 'emodissect[transformers]'. " if missing else ""
            raise UserError(
                f"The tokenizer of {self.model_name} is not available on this machine: {reason(error)}. {advice}"
                "Architectures with OpenAI's tokenizer (ViT-B-16, RN50, ...) need no download."
            ) from error

    def _require_no_code(self) -> dict[str, Any]:
        """The text config of the architecture, after checking that a config from a file cannot run code.

        Raises:
            UserError: its tokenizer has arguments that open_clip's own tokenizers do not have.
        """
        text = dict((open_clip.get_model_config(self.model_name) or {}).get("text_cfg") or {})
        other = sorted(set(text.get("tokenizer_kwargs") or {}) - set(_TOKENIZER_ARGUMENTS))
        if other and self._brings_weights:
            raise UserError(
                f"{self.model_name} is refused, because its config passes {', '.join(map(str, other))} to the "
                f"tokenizer. Accepted from a file: {', '.join(_TOKENIZER_ARGUMENTS)}. Check where the model comes from."
            )
        return text

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that the model was not trained on; empty if the tokenizer can encode every word."""
        return ()

    def doubts(self, images: ImageSet) -> str:
        """A sentence on why this model may not suit these images; empty if there is no reason."""
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
        """Content of architecture, weights and preprocessing, for cache keys."""
        return dict(self._fingerprint)

    def _preprocessing(self) -> dict[str, Any]:
        size = open_clip.get_model_config(self.model_name)["vision_cfg"].get("image_size", 224)
        return merge_preprocess_dict(merge_preprocess_dict(PreprocessCfg(), self._tag), {"size": size})


def _plain_weights(path: Path) -> dict[str, Tensor] | None:
    """The state dict in a file that contains nothing else; None for other files."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception:  # open_clip's own loading reports what is wrong with the file
        return None
    named = isinstance(held, Mapping) and all(isinstance(value, Tensor) for value in held.values())
    return dict(held) if named else None


@contextmanager
def quiet_loading(level: int = logging.INFO) -> Iterator[None]:
    """Context that disables log records up to ``level``, since open_clip logs every step to the root logger."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)

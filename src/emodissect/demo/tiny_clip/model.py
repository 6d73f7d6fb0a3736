"""The tiny CLIP: its own open_clip architecture, loaded by open_clip."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip

from emodissect.concepts.open_clip_model import OpenClip, Tokenizer
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.demo.tiny_clip import tower  # noqa: F401  registers the image tower with timm
from emodissect.demo.tiny_clip.tokenizer import WordTokenizer

MODEL_NAME = "tiny-face-clip"
WEIGHTS = Path(__file__).with_name("tiny_clip.safetensors")
VOCABULARY = "vocabulary.txt"

if MODEL_NAME not in open_clip.list_models():
    # open_clip's registry of architectures is global, so the architecture is only added once
    open_clip.add_model_config(Path(__file__).with_name(f"{MODEL_NAME}.json"))


class TinyClip(OpenClip):
    """The tiny CLIP with its word-level tokenizer.

    Once this module is imported, ``open_clip.create_model("tiny-face-clip", pretrained=<file>)`` works as well.

    Args:
        weights: a file written by ``train.py experiment=tiny_clip``, with ``vocabulary.txt`` next to it; None takes
            the included weights.
        runtime: as for :class:`~emodissect.concepts.OpenClip`.

    Raises:
        UserError: the file, or the vocabulary next to it, does not exist.
    """

    def __init__(self, weights: str | None = None, runtime: str = "torch") -> None:
        super().__init__(MODEL_NAME, None, str(WEIGHTS if weights is None else weights), runtime)
        if not self._vocabulary.is_file():
            raise UserError(
                f"The vocabulary {self._vocabulary} is missing: it must be next to the weights (clip.weights)."
            )

    @property
    def _vocabulary(self) -> Path:
        return self.checkpoint.with_name(VOCABULARY)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The function from texts to word tokens."""
        return self._words

    @cached_property
    def _words(self) -> WordTokenizer:
        return read_tokenizer(self._vocabulary)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that did not occur in the training captions."""
        return self._words.unknown_words(text)

    def doubts(self, images: ImageSet) -> str:
        """A warning for images that are not drawn faces, recognised by the missing annotations ``presence``."""
        if "presence" in images.annotations:
            return ""
        return (
            "clip=tiny was trained only on drawn faces, and these images are not from data=sketches, so its labels "
            "mean little. Use a CLIP trained on photographs: clip=vit_b_16."
        )

    def fingerprint(self) -> dict[str, Any]:
        """Content of architecture, weights, preprocessing and vocabulary, for cache keys."""
        return {**super().fingerprint(), "vocabulary": list(self._words.words)}


def text_config() -> dict[str, Any]:
    """The text config of the architecture."""
    return dict(open_clip.get_model_config(MODEL_NAME)["text_cfg"])


def read_tokenizer(path: Path) -> WordTokenizer:
    """The tokenizer for a vocabulary file, with the architecture's context length and vocabulary size."""
    config = text_config()
    return WordTokenizer.read(path, config["context_length"], config["vocab_size"])

"""The shipped CLIP: an open_clip architecture of its own, found and loaded by open_clip's loader."""

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
    # open_clip's registry of architectures is the process's own: an architecture is added to it once.
    open_clip.add_model_config(Path(__file__).with_name(f"{MODEL_NAME}.json"))


class TinyClip(OpenClip):
    """The tiny CLIP with its word-level tokenizer.

    Once this module is imported, ``open_clip.create_model("tiny-face-clip", pretrained=<file>)`` works as well.

    Args:
        weights: a file made by ``train.py experiment=tiny_clip``, with ``vocabulary.txt`` beside it; the shipped one
            where None.
        runtime: as of :class:`~emodissect.concepts.OpenClip`.

    Raises:
        UserError: the file, or the vocabulary beside it, does not exist.
    """

    def __init__(self, weights: str | None = None, runtime: str = "torch") -> None:
        super().__init__(MODEL_NAME, None, str(WEIGHTS if weights is None else weights), runtime)
        if not self._vocabulary.is_file():
            raise UserError(f"The vocabulary {self._vocabulary} is missing: it lies beside the weights (clip.weights).")

    @property
    def _vocabulary(self) -> Path:
        return self.checkpoint.with_name(VOCABULARY)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to word tokens."""
        return self._words

    @cached_property
    def _words(self) -> WordTokenizer:
        return read_tokenizer(self._vocabulary)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that no caption in the training held."""
        return self._words.unknown_words(text)

    def doubts(self, images: ImageSet) -> str:
        """It knows drawn faces alone; those carry what was drawn as annotations ``presence``."""
        if "presence" in images.annotations:
            return ""
        return (
            "clip=tiny was trained on drawn faces alone, and these images are not those of data=sketches: its labels "
            "mean little. A CLIP trained on photographs: clip=vit_b_16."
        )

    def fingerprint(self) -> dict[str, Any]:
        """Architecture, weights, preprocessing and vocabulary, by content."""
        return {**super().fingerprint(), "vocabulary": list(self._words.words)}


def text_config() -> dict[str, Any]:
    """The text half of the architecture's configuration."""
    return dict(open_clip.get_model_config(MODEL_NAME)["text_cfg"])


def read_tokenizer(path: Path) -> WordTokenizer:
    """The tokenizer of a vocabulary file, at the architecture's context length and table size."""
    config = text_config()
    return WordTokenizer.read(path, config["context_length"], config["vocab_size"])

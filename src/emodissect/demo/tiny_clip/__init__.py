"""A small CLIP for drawn faces, included with its weights."""

from emodissect.demo.tiny_clip.model import MODEL_NAME, WEIGHTS, TinyClip
from emodissect.demo.tiny_clip.tokenizer import WordTokenizer

__all__ = ["MODEL_NAME", "WEIGHTS", "TinyClip", "WordTokenizer"]

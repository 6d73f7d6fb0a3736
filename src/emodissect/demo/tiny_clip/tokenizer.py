"""A word-level tokenizer: one token per word of the captions, and one token for all other words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from emodissect.core.errors import UserError

PAD, UNKNOWN, START = 0, 1, 2
_FIRST_WORD = 3


def words_of(text: str) -> list[str]:
    """The lower-case words of a text, split at punctuation and spaces."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


class WordTokenizer:
    """Maps texts to token ids: start, one token per word, end; called like open_clip's own tokenizers.

    The end token has the highest id, since CLIP reads a text's embedding at its highest id. Texts longer than the
    context are truncated before the end token.

    Args:
        words: the vocabulary, in token order.
        context_length: tokens per text, as in the model's config.
        vocab_size: rows of the model's embedding table; those between the last word and the end token are unused.

    Raises:
        UserError: duplicate words, or more words than the table has rows.
    """

    def __init__(self, words: Sequence[str], context_length: int, vocab_size: int) -> None:
        if len(set(words)) != len(words) or len(words) + _FIRST_WORD + 1 > vocab_size:
            raise UserError(
                f"A vocabulary of {len(words)} words ({len(set(words))} distinct) does not fit an embedding table of "
                f"{vocab_size} rows. Words must be distinct; raise vocab_size in the model's config if there are too "
                "many."
            )
        self.words = tuple(words)
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.end = vocab_size - 1
        self._ids = {word: index for index, word in enumerate(words, start=_FIRST_WORD)}

    @classmethod
    def read(cls, path: Path, context_length: int, vocab_size: int) -> WordTokenizer:
        """Reads a file with one word per line."""
        return cls(path.read_text(encoding="utf-8").split(), context_length, vocab_size)

    def save(self, path: Path) -> None:
        """Writes one word per line."""
        path.write_text("\n".join(self.words) + "\n", encoding="utf-8")

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Int64[Tensor, "text token"]:
        length = context_length or self.context_length
        listed = [texts] if isinstance(texts, str) else texts
        tokens = torch.full((len(listed), length), PAD, dtype=torch.int64)
        for row, text in enumerate(listed):
            ids = [START, *(self._ids.get(word, UNKNOWN) for word in words_of(text))][: length - 1]
            tokens[row, : len(ids) + 1] = torch.tensor([*ids, self.end])
        return tokens

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The distinct words of a text that are not in the vocabulary, in order of appearance."""
        return tuple(dict.fromkeys(word for word in words_of(text) if word not in self._ids))


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """All distinct words of the texts, the most frequent first."""
    counts = Counter(word for text in texts for word in words_of(text))
    return tuple(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))

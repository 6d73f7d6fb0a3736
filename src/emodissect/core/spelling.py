"""Normalization of names: equivalent spellings of concepts and classes, and removal of control characters."""

from __future__ import annotations

import re
import unicodedata

# forms of the same emotion: FER2013 has "angry", FER+ "anger", folders often "Surprised"
_SAME_EMOTION = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "contemptuous": "contempt",
}


_TERMINAL_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\\\)?|[@-_])")
"""Terminal control sequences (ECMA-48): colours, cursor moves, window titles."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogates, from undecodable bytes in file names or escapes in JSON; they cannot be encoded."""

_INVISIBLE = ("Cc", "Cf")


def clean_name(text: str) -> str:
    """A name that is safe to print: one line, single spaces, in NFC, without invisible characters.

    Terminal sequences, control and zero-width characters and byte-order marks are removed; undecodable bytes of a file
    name become the replacement character.
    """
    text = " ".join(_TERMINAL_SEQUENCE.sub("", text).split())
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", unicodedata.normalize("NFC", text))
    return " ".join("".join(c for c in text if unicodedata.category(c) not in _INVISIBLE).split())


def printable(text: str) -> str:
    """A message without control sequences: as :func:`clean_name`, but line breaks, tabs and spaces are kept.

    Example:
        >>> printable("it holds \\x1b]0;title\\x07\\x1b[31mred\\x1b[0m")
        'it holds red'
    """
    text = _TERMINAL_SEQUENCE.sub("", text)
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", text)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE)


def name_key(name: str) -> str:
    """A key that is equal for equivalent spellings of a concept: ignores case and extra spaces, in NFKC."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def class_key(name: str) -> str:
    """A key that is equal for equivalent spellings of a class: lowercase letters and digits, standard emotion form."""
    letters = re.sub(r"[\W_]+", "", name_key(name))
    return _SAME_EMOTION.get(letters, letters)

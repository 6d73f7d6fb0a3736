"""When two spellings name the same concept or the same class."""

from __future__ import annotations

import re
import unicodedata

# The same emotion as adjective, noun or participle: FER2013 says "angry", FER+ "anger", folders often "Surprised".
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
"""A lone surrogate: bytes of a file name that are not text, or an escape in a JSON file; no encoding can write it."""

_INVISIBLE = ("Cc", "Cf")


def clean_name(text: str) -> str:
    """A name that is safe to print: one line, single spaces, letters composed (NFC), nothing invisible in it.

    Terminal commands, control and zero-width characters and byte-order marks are removed; bytes of a file name that
    are not text become the replacement character.
    """
    text = " ".join(_TERMINAL_SEQUENCE.sub("", text).split())
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", unicodedata.normalize("NFC", text))
    return " ".join("".join(c for c in text if unicodedata.category(c) not in _INVISIBLE).split())


def printable(text: str) -> str:
    """A message without control sequences: as :func:`clean_name`, with its lines, tabs and spaces kept.

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
    """What two spellings of one concept have in common: case and extra spaces ignored, compatible forms unified."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def class_key(name: str) -> str:
    """What two spellings of one class have in common: letters and digits without case, the emotion's usual form."""
    letters = re.sub(r"[\W_]+", "", name_key(name))
    return _SAME_EMOTION.get(letters, letters)

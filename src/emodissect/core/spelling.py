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
"""What terminals read as commands (ECMA-48): colours, cursor moves, window titles."""

_INVISIBLE = ("Cc", "Cf")


def clean_name(text: str) -> str:
    """A name that is safe to print: one line, single spaces, letters composed (NFC), nothing invisible in it.

    Terminal commands, control and zero-width characters and byte-order marks are removed; bytes of a file name that
    are no text become the replacement character.
    """
    text = " ".join(_TERMINAL_SEQUENCE.sub("", text).split())
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join("".join(c for c in text if unicodedata.category(c) not in _INVISIBLE).split())


def name_key(name: str) -> str:
    """What two spellings of one concept have in common: no case, no surplus spaces, compatible forms made one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def class_key(name: str) -> str:
    """What two spellings of one class have in common: letters and digits without case, the emotion's usual form."""
    letters = re.sub(r"[\W_]+", "", name_key(name))
    return _SAME_EMOTION.get(letters, letters)

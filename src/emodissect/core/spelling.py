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


def name_key(name: str) -> str:
    """What two spellings of one concept have in common: no case, no surplus spaces, compatible forms made one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def class_key(name: str) -> str:
    """What two spellings of one class have in common: letters and digits without case, the emotion's usual form."""
    letters = re.sub(r"[\W_]+", "", name_key(name))
    return _SAME_EMOTION.get(letters, letters)

"""Captions of drawn faces, on which the tiny CLIP is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from emodissect.demo.sketches.parameters import CLASS_NAMES
from emodissect.demo.sketches.presence import CONCEPTS

EMOTION_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Angry": (("angry",), ("anger",)),
    "Disgust": (("disgusted", "disgust"), ("disgust",)),
    "Fear": (("afraid", "fearful", "scared", "fear"), ("fear",)),
    "Happy": (("happy",), ("happiness", "joy")),
    "Sad": (("sad", "unhappy"), ("sadness",)),
    "Surprise": (("surprised", "surprise"), ("surprise",)),
    "Neutral": (("neutral", "calm"), ("no emotion", "a neutral expression")),
}
"""For each class, adjectives that describe a face, and nouns that name the emotion."""

PHRASES: Mapping[str, tuple[str, ...]] = {
    "Furrowed Brows": ("furrowed brows", "furrowed eyebrows", "brows drawn together"),
    "Raised Brows": ("raised brows", "raised eyebrows", "brows raised high"),
    "Lowered Brows": ("lowered brows", "lowered eyebrows", "brows pulled down"),
    "Drooping Brows": ("drooping brows", "drooping eyebrows", "brows that droop at the outer ends"),
    "Relaxed Brows": ("relaxed brows", "relaxed eyebrows"),
    "Wide Open Eyes": ("wide open eyes", "wide eyes", "eyes wide open"),
    "Narrowed Eyes": ("narrowed eyes", "narrow eyes", "squinting eyes"),
    "Twinkling or Crinkled Eyes": ("twinkling or crinkled eyes", "crinkled eyes", "twinkling eyes"),
    "Tearful Eyes": ("tearful eyes", "tears", "eyes full of tears"),
    "Closed Eyes": ("closed eyes", "eyes closed", "shut eyes"),
    "Relaxed Eyes": ("relaxed eyes", "eyes at rest"),
    "Tense Mouth and Jaw": ("a tense mouth and jaw", "a tense mouth", "a tense jaw"),
    "Relaxed Mouth and Jaw": ("a relaxed mouth and jaw", "a relaxed mouth", "a relaxed jaw"),
    "Smile": ("a smile", "a smiling mouth", "upturned lips"),
    "Frown": ("a frown", "a frowning face"),
    "Downturned Mouth": ("a downturned mouth", "mouth corners turned down", "downturned lips"),
    "Slightly Open Mouth": ("a slightly open mouth", "slightly parted lips"),
    "Wide Open Mouth": ("a wide open mouth", "a mouth wide open"),
    "Slight Chin Raise": ("a slight chin raise", "a slightly raised chin", "a raised chin"),
    "Slightly Dropped Jaw": ("a slightly dropped jaw", "a dropped jaw"),
    "Flared Nostrils": ("flared nostrils", "wide nostrils"),
    "Tightened Facial Muscles": ("tightened facial muscles", "tight facial muscles"),
    "Compressed Lips": ("compressed lips", "lips pressed together"),
    "Elevated Upper Eyelids": ("elevated upper eyelids", "raised upper eyelids"),
    "Relaxed Facial Muscles": ("relaxed facial muscles", "a relaxed face"),
}
"""For each concept, phrases for use in a sentence; the first is the concept's own name."""

_PERSONS = ("face", "person", "facial expression")
_SHOWN = ("a photo of {}", "a drawing of {}", "a picture of {}", "{}", "{}")
_EMOTION = ("an expression of {}", "a face showing {}", "{}", "a person who feels {}")


def captions(
    presence: NDArray[np.float64],
    labels: Sequence[int] | NDArray[np.int64],
    rng: Generator,
    bare: float = 0.5,
) -> list[str]:
    """One random caption per image; each call gives different ones.

    A share ``bare`` of them only name the class or a concept, like the published study's prompts. The rest are
    sentences with the emotion, with one to three concepts, or both. Only concepts with presence >= 0.5 are mentioned,
    rare ones with higher probability, so that all concepts are mentioned about equally often.

    Args:
        presence: ``(image, concept)`` in the order of ``CONCEPTS``.
        bare: share of captions that are only a name.
    """
    present = np.asarray(presence) >= 0.5
    rarity = 1.0 / (present.mean(axis=0) + 0.02)
    return [_caption(present[row], CLASS_NAMES[int(label)], rarity, rng, bare) for row, label in enumerate(labels)]


def _caption(
    present: NDArray[np.bool_], class_name: str, rarity: NDArray[np.float64], rng: Generator, bare: float
) -> str:
    known = np.flatnonzero(present)
    tells_emotion = rng.random() < 0.35 or len(known) == 0
    if rng.random() < bare:
        if not tells_emotion:
            return _cased(CONCEPTS[_drawn(known, rarity, 1, rng)[0]], rng)
        adjectives, nouns = EMOTION_WORDS[class_name]
        return _cased(_one((class_name, class_name, class_name, *adjectives, *nouns), rng), rng)
    if tells_emotion and (len(known) == 0 or rng.random() < 0.5):
        adjectives, nouns = EMOTION_WORDS[class_name]
        if rng.random() < 0.35:
            return _one(_EMOTION, rng).format(_one(nouns, rng))
        return _one(_SHOWN, rng).format(_with_article(f"{_one(adjectives, rng)} {_one(_PERSONS, rng)}"))
    subject = _one(_PERSONS, rng)
    if tells_emotion:
        subject = f"{_one(EMOTION_WORDS[class_name][0], rng)} {subject}"
    chosen = _drawn(known, rarity, min(len(known), int(rng.integers(1, 4))), rng)
    items = [PHRASES[CONCEPTS[column]][0 if rng.random() < 0.6 else -1 - int(rng.integers(2))] for column in chosen]
    listed = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    return listed if rng.random() < 0.2 else _one(_SHOWN, rng).format(f"{_with_article(subject)} with {listed}")


def _drawn(known: NDArray[np.int64], rarity: NDArray[np.float64], count: int, rng: Generator) -> list[int]:
    weights = rarity[known] / rarity[known].sum()
    return [int(column) for column in rng.choice(known, size=count, replace=False, p=weights)]


def _one(words: Sequence[str], rng: Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _cased(words: str, rng: Generator) -> str:
    return words if rng.random() < 0.5 else words.lower()


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

"""Captions of drawn faces are true, vary in wording, and include the published study's bare prompts."""

from __future__ import annotations

import numpy as np
import pytest

from emodissect.demo.sketches import CLASS_NAMES, CONCEPTS, captions
from emodissect.demo.sketches.captions import EMOTION_WORDS, PHRASES


def face(*present: str) -> np.ndarray:
    return np.array([1.0 if name in present else 0.2 for name in CONCEPTS])


def written(present: tuple[str, ...], label: int, count: int, seed: int = 0, **options: float) -> list[str]:
    return captions(np.tile(face(*present), (count, 1)), [label] * count, np.random.default_rng(seed), **options)


def test_bare_names_of_class_and_concepts_are_among_the_wordings() -> None:
    found = set(written(("Furrowed Brows", "Smile"), 0, 600))
    assert {"Furrowed Brows", "furrowed brows", "Smile", "smile", "Angry", "angry", "anger"} <= found
    assert len(found) > 100


def test_sentences_join_the_emotion_and_several_concepts() -> None:
    found = written(("Raised Brows", "Wide Open Mouth"), 5, 800)
    assert any("surprised" in text and "raised brows" in text and "wide open mouth" in text for text in found)
    assert "a face with a wide open mouth and raised brows" in found
    assert any(text.startswith("a photo of a surprise") for text in found)


@pytest.mark.parametrize("label", range(7))
def test_only_what_is_present_is_reported_and_no_other_emotion(label: int) -> None:
    present = ("Closed Eyes", "Compressed Lips")
    absent = {phrase for name in CONCEPTS if name not in present for phrase in PHRASES[name]}
    others = {
        word for name in CLASS_NAMES if name != CLASS_NAMES[label] for words in EMOTION_WORDS[name] for word in words
    }
    others -= {word for words in EMOTION_WORDS[CLASS_NAMES[label]] for word in words}
    for text in written(present, label, 300, seed=label):
        assert not [phrase for phrase in absent if phrase in text.lower()], text
        assert not others & set(text.lower().replace(",", "").split()), text


def test_a_face_without_any_concept_is_reported_by_its_emotion() -> None:
    words = {word for group in EMOTION_WORDS["Sad"] for word in group}
    assert all(any(word in text.lower() for word in words) for text in written((), 4, 100))


def test_rare_concepts_are_reported_more_often_than_common_ones() -> None:
    rows = np.stack([face("Smile", "Tearful Eyes")] * 100 + [face("Smile")] * 900)
    found = captions(rows, [3] * 1000, np.random.default_rng(0), bare=1.0)[:100]
    counted = [sum(text.lower() == name for text in found) for name in ("tearful eyes", "smile")]
    assert counted[0] > 3 * counted[1]


def test_the_same_seed_writes_the_same() -> None:
    assert written(("Smile",), 3, 50) == written(("Smile",), 3, 50)
    assert written(("Smile",), 3, 50) != written(("Smile",), 3, 50, seed=1)


def test_every_concept_has_its_own_name_among_its_phrases() -> None:
    assert tuple(PHRASES) == CONCEPTS
    for name, phrases in PHRASES.items():
        assert phrases[0] in (name.lower(), f"a {name.lower()}")

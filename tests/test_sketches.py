"""Drawn faces: the same seed gives the same faces, parameters give the true presences, and classes overlap."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from emodissect.core.errors import UserError
from emodissect.data.datamodule import FaceDataModule
from emodissect.demo.sketches import CLASS_NAMES, CONCEPTS, Expression, Sketches, draw_faces, faces, presence, source
from emodissect.demo.sketches.appearance import Appearance, draw_appearance
from emodissect.demo.sketches.drawing import draw_face
from emodissect.demo.sketches.parameters import (
    CLASS_SHARES,
    PARAMETERS,
    PATTERNS,
    SIGNED,
    Difficulty,
    draw_expression,
    draw_label,
)

BROWS, EYES, NOSE, MOUTH, CHIN = slice(8, 17), slice(16, 23), slice(15, 29), slice(28, 42), slice(34, 48)


def told(expression: Expression) -> dict[str, float]:
    return dict(zip(CONCEPTS, presence([expression])[0].tolist(), strict=True))


@pytest.fixture(scope="module")
def expressions() -> tuple[np.ndarray, np.ndarray]:
    """3,000 expressions with their labels, nothing drawn."""
    rng = np.random.default_rng(7)
    labels = [draw_label(rng) for _ in range(3000)]
    return np.array([draw_expression(rng, label) for label in labels]), np.array(labels)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory):
    return Sketches(cache_dir=tmp_path_factory.mktemp("cache"), train=40, val=10, test=12).splits


def test_a_face_depends_on_its_id_and_the_seed_alone() -> None:
    together, alone = draw_faces(range(6), seed=3), draw_faces([4], seed=3)
    np.testing.assert_array_equal(together.images[4], alone.images[0])
    np.testing.assert_array_equal(together.expressions[4], alone.expressions[0])
    assert together.labels[4] == alone.labels[0]
    assert not np.array_equal(draw_faces([4], seed=4).images[0], alone.images[0])


def test_processes_draw_the_same_faces_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "_WORTH_A_PROCESS", 2)
    spread, plain = faces.draw_faces_in_processes(range(5, 12), 1, processes=3), draw_faces(range(5, 12), 1)
    for field in faces.Drawn._fields:
        np.testing.assert_array_equal(getattr(spread, field), getattr(plain, field))
    monkeypatch.setattr(faces.sys, "executable", "/bin/false")  # a process that fails loses no face
    np.testing.assert_array_equal(
        faces.draw_faces_in_processes(range(4), 1, processes=2).images, draw_faces(range(4), 1).images
    )


def test_drawing_is_a_pure_function_of_expression_and_appearance() -> None:
    rng = np.random.default_rng(0)
    for label in range(7):
        expression, appearance = draw_expression(rng, label), draw_appearance(rng)
        image = draw_face(expression, appearance)
        assert image.shape == (48, 48)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, draw_face(expression, appearance))


def test_the_neutral_face_has_the_relaxed_concepts_and_no_other() -> None:
    relaxed = {"Relaxed Brows", "Relaxed Eyes", "Relaxed Mouth and Jaw", "Relaxed Facial Muscles"}
    assert {name for name, value in told(Expression()).items() if value == 1.0} == relaxed
    assert {name for name, value in told(Expression()).items() if value == 0.0} == set(CONCEPTS) - relaxed


@pytest.mark.parametrize(
    ("concept", "expression"),
    [
        ("Furrowed Brows", Expression(brow_furrow=0.7)),
        ("Raised Brows", Expression(brow_height=0.7)),
        ("Lowered Brows", Expression(brow_height=-0.6)),
        ("Drooping Brows", Expression(brow_slant=0.7)),
        ("Relaxed Brows", Expression()),
        ("Wide Open Eyes", Expression(lid_opening=1.0)),
        ("Narrowed Eyes", Expression(lid_opening=0.2)),
        ("Twinkling or Crinkled Eyes", Expression(cheeks=0.7)),
        ("Tearful Eyes", Expression(tears=0.6)),
        ("Closed Eyes", Expression(lid_opening=0.0)),
        ("Relaxed Eyes", Expression(lid_opening=0.5)),
        ("Tense Mouth and Jaw", Expression(clench=0.7)),
        ("Relaxed Mouth and Jaw", Expression()),
        ("Smile", Expression(mouth_curve=0.6)),
        ("Frown", Expression(mouth_curve=-0.5, brow_slant=0.6)),
        ("Downturned Mouth", Expression(mouth_curve=-0.6)),
        ("Slightly Open Mouth", Expression(mouth_opening=0.25)),
        ("Wide Open Mouth", Expression(mouth_opening=0.6)),
        ("Slight Chin Raise", Expression(chin=0.6)),
        ("Slightly Dropped Jaw", Expression(jaw=0.4)),
        ("Flared Nostrils", Expression(nostrils=0.65)),
        ("Tightened Facial Muscles", Expression(brow_furrow=0.7, lid_tension=0.7)),
        ("Compressed Lips", Expression(lip_press=0.65)),
        ("Elevated Upper Eyelids", Expression(upper_lid=0.65)),
        ("Relaxed Facial Muscles", Expression()),
    ],
)
def test_each_concept_is_fully_present_where_its_parameters_say_so(concept: str, expression: Expression) -> None:
    assert told(expression)[concept] == pytest.approx(1.0)


def test_presence_is_a_half_in_the_middle_of_a_ramp() -> None:
    assert told(Expression(brow_furrow=0.425))["Furrowed Brows"] == pytest.approx(0.5)
    assert told(Expression(mouth_curve=0.35))["Smile"] == pytest.approx(0.5)
    assert told(Expression(mouth_opening=0.47))["Wide Open Mouth"] == pytest.approx(0.5)
    assert told(Expression(mouth_opening=0.47))["Slightly Open Mouth"] == pytest.approx(0.5)
    assert told(Expression(mouth_curve=-0.3, brow_slant=0.6))["Frown"] == pytest.approx(0.5)


def test_what_one_concept_needs_can_deny_another() -> None:
    assert told(Expression(mouth_curve=-0.6))["Frown"] == 0.0  # the mouth alone does not frown
    assert told(Expression(lip_press=1.0, mouth_opening=0.4))["Compressed Lips"] == 0.0  # open lips are not pressed
    assert told(Expression(lid_opening=0.0, upper_lid=1.0))["Elevated Upper Eyelids"] == 0.0
    assert told(Expression(lid_opening=0.0))["Narrowed Eyes"] == 0.0
    assert told(Expression(jaw=1.0))["Slightly Dropped Jaw"] == pytest.approx(0.4)  # not slightly any more


_RANGES = st.tuples(*(st.floats(-1 if name in SIGNED else 0, 1) for name in PARAMETERS))
_OPPOSITES = [
    ("Raised Brows", "Lowered Brows"),
    ("Wide Open Eyes", "Closed Eyes"),
    ("Narrowed Eyes", "Wide Open Eyes"),
    ("Smile", "Downturned Mouth"),
    ("Wide Open Mouth", "Compressed Lips"),
    ("Tense Mouth and Jaw", "Relaxed Mouth and Jaw"),
    ("Tightened Facial Muscles", "Relaxed Facial Muscles"),
    ("Furrowed Brows", "Relaxed Brows"),
]


@settings(max_examples=200, deadline=None)
@given(_RANGES)
def test_presence_stays_in_range_and_opposites_exclude_each_other(values: tuple[float, ...]) -> None:
    found = told(Expression(*values))
    assert all(0.0 <= value <= 1.0 for value in found.values())
    for one, other in _OPPOSITES:
        assert min(found[one], found[other]) < 0.5, (one, other)


@pytest.mark.parametrize(
    ("region", "expression"),
    [
        (BROWS, Expression(brow_furrow=0.5)),
        (BROWS, Expression(brow_height=0.45)),
        (BROWS, Expression(brow_height=-0.4)),
        (BROWS, Expression(brow_slant=0.45)),
        (EYES, Expression(lid_opening=0.85)),
        (EYES, Expression(lid_opening=0.3)),
        (EYES, Expression(lid_opening=0.0)),
        (EYES, Expression(upper_lid=0.5)),
        (EYES, Expression(cheeks=0.5)),
        (EYES, Expression(lid_tension=0.6)),
        (NOSE, Expression(tears=0.5)),
        (NOSE, Expression(nostrils=0.5)),
        (NOSE, Expression(nose_wrinkle=0.5)),
        (MOUTH, Expression(mouth_curve=0.45)),
        (MOUTH, Expression(mouth_curve=-0.45)),
        (MOUTH, Expression(mouth_opening=0.2)),
        (MOUTH, Expression(lip_press=0.5)),
        (MOUTH, Expression(clench=0.5)),
        (CHIN, Expression(chin=0.5)),
        (CHIN, Expression(jaw=0.4)),
    ],
)
def test_each_parameter_shows_in_the_pixels_of_its_part_of_the_face(region: slice, expression: Expression) -> None:
    plain = draw_face(Expression(), Appearance()).astype(int)
    changed = np.abs(draw_face(expression, Appearance()).astype(int) - plain)
    assert (changed[region] >= 20).sum() >= 6  # at least six pixels by at least 20 grey levels
    outside = np.ones(48, bool)
    outside[region] = False
    if expression.jaw == 0 and expression.tears == 0:
        assert changed[region].sum() > changed[outside].sum()


def test_every_concept_is_there_in_5_to_60_percent_of_the_faces(expressions: tuple[np.ndarray, np.ndarray]) -> None:
    shares = dict(zip(CONCEPTS, (presence(expressions[0]) >= 0.5).mean(axis=0), strict=True))
    assert not {name: share for name, share in shares.items() if not 0.05 <= share <= 0.6}


def test_concepts_lean_to_the_classes_that_the_study_counts_as_correct(
    expressions: tuple[np.ndarray, np.ndarray],
) -> None:
    from emodissect.demo.sketches import CONCEPT_CLASSES

    values, labels = presence(expressions[0]), expressions[1]
    lowered = [name.lower() for name in CLASS_NAMES]
    for column, concept in enumerate(CONCEPTS):
        right = np.isin(labels, [lowered.index(name) for name in CONCEPT_CLASSES[concept]])
        if concept not in ("Relaxed Eyes", "Slight Chin Raise"):  # AU17 belongs to disgust and sadness
            assert values[right, column].mean() > 1.2 * values[~right, column].mean(), concept


def test_class_shares_are_like_fer2013s_with_enough_disgust(expressions: tuple[np.ndarray, np.ndarray]) -> None:
    counted = np.bincount(expressions[1], minlength=7) / len(expressions[1])
    np.testing.assert_allclose(counted, CLASS_SHARES, atol=0.025)
    assert counted[CLASS_NAMES.index("Disgust")] >= 0.06
    assert CLASS_NAMES[int(counted.argmax())] == "Happy"


def test_classes_overlap_so_that_even_the_parameters_do_not_tell_all(
    expressions: tuple[np.ndarray, np.ndarray],
) -> None:
    from sklearn.ensemble import ExtraTreesClassifier

    values, labels = expressions
    trees = ExtraTreesClassifier(60, min_samples_leaf=2, random_state=0).fit(values[:2400], labels[:2400])
    accuracy = (trees.predict(values[2400:]) == labels[2400:]).mean()
    assert 0.8 < accuracy < 0.93


def test_without_overlap_the_patterns_tell_the_class() -> None:
    plain = Difficulty(intensity=(1e6, 1.0), least=0.99, blended=0.0, spread=0.0)
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASS_NAMES[:-1]):
        face = np.array(draw_expression(rng, label, plain)._replace(lid_opening=0.0))
        distance = {
            other: min(np.abs(face - np.array(p.target._replace(lid_opening=0.0))).sum() for p in PATTERNS[other])
            for other in CLASS_NAMES
        }
        assert min(distance, key=distance.__getitem__) == name


def test_splits_hold_images_labels_unique_ids_and_the_truth(splits) -> None:
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [40, 10, 12]
    assert splits.train.images.shape == (40, 1, 48, 48)
    assert splits.train.images.dtype == torch.uint8
    assert splits.class_names == CLASS_NAMES
    ids = torch.cat([splits.train.ids, splits.val.ids, splits.test.ids])
    assert len(torch.unique(ids)) == 62
    truth = splits.val.annotations["presence"]
    assert truth.names == CONCEPTS
    assert truth.values.shape == (10, 25)
    drawn = draw_faces(splits.val.ids.tolist())
    torch.testing.assert_close(truth.values, torch.from_numpy(drawn.presence).float())
    np.testing.assert_array_equal(splits.val.images[:, 0].numpy(), drawn.images)
    np.testing.assert_array_equal(splits.val.labels.numpy(), drawn.labels)


def test_a_second_read_draws_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Sketches(cache_dir=tmp_path, train=5, val=2, test=2).splits
    monkeypatch.setattr(source, "save_tensors", lambda *_: pytest.fail("drawn again"))
    again = Sketches(cache_dir=tmp_path, train=5, val=2, test=2).splits
    assert again.train.fingerprint() == first.train.fingerprint()


def test_validation_images_do_not_change_with_the_size_of_training(tmp_path) -> None:
    few = Sketches(cache_dir=tmp_path, train=3, val=4, test=1).splits
    more = Sketches(cache_dir=tmp_path, train=6, val=4, test=1).splits
    assert few.val.fingerprint() == more.val.fingerprint()
    torch.testing.assert_close(few.train.images, more.train.images[:3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val": 0}, "data.val=0: a split of drawn faces must have 1 to 1,000,000 images"),
        ({"class_names": ["happy", "sad"]}, "For other classes use data=image_folder"),
        ({"size": 96}, "data.size=96, data.channels=1: drawn faces are always 48 x 48 and grey"),
        ({"difficulty": {"noise": 1.0}}, "data.difficulty.noise is unknown.*intensity, least, blended, blend, spread"),
        ({"difficulty": {"intensity": [2.2]}}, r"data\.difficulty\.intensity=\[2\.2\] must be two numbers above 0"),
    ],
)
def test_mistakes_are_reported_before_anything_is_drawn(tmp_path, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sketches(cache_dir=tmp_path, **given)


def test_the_yaml_names_every_argument_and_no_other(pytestconfig: pytest.Config) -> None:
    config = OmegaConf.load(pytestconfig.rootpath / "conf/data/sketches.yaml")
    own, common = (set(inspect.signature(source).parameters) for source in (Sketches, FaceDataModule))
    assert set(config) - {"_target_"} == (own | common) - {"loading"}
    assert tuple(config.class_names) == CLASS_NAMES
    config.cache_dir = "unused"
    configured = instantiate(config)
    assert configured.difficulty == Difficulty()
    json.dumps(asdict(configured.difficulty))  # as the drawing processes are told

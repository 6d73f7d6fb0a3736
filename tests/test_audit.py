"""The audit finds planted faults, counts each once, and lists the images to leave out of each split."""

from __future__ import annotations

import io
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emodissect.data.audit import audit_splits
from emodissect.data.fer2013 import Fer2013
from emodissect.data.images import Annotations, ImageSet, Splits

REAL = os.environ.get("EMODISSECT_FER2013")


def image_set(
    pixels: list[torch.Tensor], first_id: int, labels: list[int], not_faces: tuple[int, ...] = ()
) -> ImageSet:
    shares = torch.zeros(len(pixels), 2)
    shares[list(not_faces), 1] = 0.5
    annotations = {"votes_other": Annotations(("unknown", "not a face"), shares)}
    ids = torch.arange(first_id, first_id + len(pixels))
    return ImageSet(torch.stack(pixels).to(torch.uint8), torch.tensor(labels), ids, annotations)


@pytest.fixture(scope="module")
def planted() -> Splits:
    generator = torch.Generator().manual_seed(0)
    face = [torch.randint(0, 256, (1, 6, 6), generator=generator) for _ in range(12)]
    blank = torch.full((1, 6, 6), 7)
    faint = blank.clone()
    faint[0, 0, 0] = 9
    train = [face[0], face[1], blank, face[0], face[2], face[3], face[0], faint, face[4]]
    val = [face[5], face[2], face[6], face[6], blank]
    test = [face[7], face[3], face[5], face[8]]
    return Splits(
        image_set(train, 0, [0, 1, 2, 0, 1, 1, 1, 0, 2], not_faces=(8,)),
        image_set(val, 10, [0, 1, 2, 2, 2]),
        image_set(test, 20, [0, 0, 0, 0], not_faces=(3,)),
        ("a", "b", "c"),
    )


def test_planted_faults_are_counted(planted):
    assert audit_splits(planted).counts == {
        "images": 18,
        "blank": 2,
        "near_constant": 1,
        "not_a_face": 2,
        "duplicate": 7,  # 3, 6 of train; 11, 13, 14 of val; 21, 22 of test
        "duplicate_in_split": 3,  # 3, 6, 13
        "leaked": 8,  # both sides of the four images below
        "conflicting": 5,  # the three of face 0 (0, 0, 1), the two of face 3 (1, 0)
        "near_duplicate": 0,
        "near_leaked": 0,
        "images_across_splits": 4,  # face 2, face 3, face 5, blank
        "images_with_conflicting_labels": 2,
    }


def test_what_to_drop(planted):
    report = audit_splits(planted)
    # blank 2, copies 3 and 6, leaked 4 (val) and 5 (test), faint 7, no face 8
    assert report.to_drop("train").tolist() == [2, 3, 4, 5, 6, 7, 8]
    # leaked into test 10, copy 13, blank 14; 11 stays though it is in train
    assert report.to_drop("val").tolist() == [10, 13, 14]
    assert report.to_drop("test").tolist() == [23]
    assert report.leaked_into("test").tolist() == [21]
    assert report.leaked_into("val").tolist() == [11, 14]
    assert report.leaked_into("test", source="val").tolist() == [22]


def test_table_has_a_row_for_each_faulty_image(planted):
    table = audit_splits(planted).table
    assert table["id"].tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 21, 22, 23]
    row = table.set_index("id").loc[21]
    assert row["first_id"] == 5
    assert row["copies"] == 2
    assert row["in_splits"] == "train+test"
    assert row["leaked"]
    assert row["conflicting"]
    assert "distinct images in more than one split" in audit_splits(planted).summary()


def test_clean_images_give_an_empty_table():
    generator = torch.Generator().manual_seed(1)
    parts = [
        image_set([torch.randint(0, 256, (1, 6, 6), generator=generator) for _ in range(4)], first, [0, 1, 2, 0])
        for first in (0, 10, 20)
    ]
    report = audit_splits(Splits(*parts, class_names=("a", "b", "c")))
    assert len(report.table) == 0
    for split in ("train", "val", "test"):
        assert report.to_drop(split).tolist() == []


@settings(max_examples=40, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40))
def test_duplicates_agree_with_a_table_of_who_is_who(picks):
    faces = torch.randint(0, 256, (6, 1, 6, 6), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    parts = []
    for split in range(3):
        rows = [place for place, pick in enumerate(picks) if pick[1] == split]
        images = faces[[picks[row][0] for row in rows]] if rows else torch.zeros(0, 1, 6, 6, dtype=torch.uint8)
        labels = torch.tensor([picks[row][2] for row in rows], dtype=torch.int64)
        parts.append(ImageSet(images, labels, torch.tensor(rows, dtype=torch.int64)))
    report = audit_splits(Splits(parts[0], parts[1], parts[2], ("a", "b")))
    who = pd.DataFrame(picks, columns=["face", "split", "label"])
    by_face = who.groupby("face")
    assert report.counts["duplicate"] == len(who) - by_face.ngroups
    assert report.counts["images_across_splits"] == int(by_face["split"].agg(lambda column: len(set(column)) > 1).sum())
    assert report.counts["images_with_conflicting_labels"] == int(
        by_face["label"].agg(lambda column: len(set(column)) > 1).sum()
    )
    left = [row for row in who.index[who["split"] == 0] if row not in report.to_drop("train").tolist()]
    kept_faces = who.loc[left, "face"]
    assert kept_faces.is_unique
    assert not set(kept_faces) & set(who.loc[who["split"] > 0, "face"])


@pytest.mark.skipif(not REAL, reason="EMODISSECT_FER2013 is not set")
def test_real_fer2013_has_its_known_faults(tmp_path):
    counts = Fer2013(path=REAL, cache_dir=tmp_path).audit_report.counts
    assert counts["blank"] == 12
    assert counts["duplicate"] == 1851
    assert counts["images_across_splits"] == 557
    assert counts["near_duplicate"] == 1492
    assert counts["near_leaked"] == 1231


def test_nearly_equal_images_are_found_whatever_their_brightness_and_compression():
    """One face unchanged, brighter, compressed, shifted by a quarter pixel, and in test; and another person's face."""
    generator = np.random.default_rng(0)

    def smooth() -> Image.Image:
        return Image.fromarray(generator.integers(20, 230, (6, 6), dtype=np.uint8)).resize(
            (48, 48), Image.Resampling.BICUBIC
        )

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image))[None]

    face, other = smooth(), smooth()
    buffer = io.BytesIO()
    face.save(buffer, "jpeg", quality=40)
    brighter = face.point(lambda value: min(255, int(value * 0.9 + 15)))
    train = image_set([pixels(face), pixels(brighter), pixels(other)], 0, [0, 0, 1])
    val = image_set([pixels(Image.open(buffer))], 10, [0])
    shifted = face.transform((48, 48), Image.Transform.AFFINE, (1, 0, 0.25, 0, 1, 0.25), Image.Resampling.BICUBIC)
    test = image_set([pixels(shifted), pixels(other)], 20, [0, 1])
    report = audit_splits(Splits(train, val, test, ("a", "b", "c")))
    table = report.table.set_index("id")
    assert report.counts["near_duplicate"] == 3
    assert report.counts["near_leaked"] == 4
    assert table["near_id"].to_dict() == {0: -1, 1: 0, 2: -1, 10: 0, 20: 0, 21: -1}
    assert table["near_leaked"].to_dict() == {0: True, 1: True, 2: False, 10: True, 20: True, 21: False}
    assert not table.loc[21, "near_duplicate"]  # equal to 2: a duplicate, which is another fault
    assert "3 near-duplicates of an earlier image, 4 of one in another split" in report.summary()

"""All formats of FER2013 give the same images; errors name the line; FER+ votes; the real dataset."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emodissect.core.errors import UserError
from emodissect.data import fer2013, fer2013_files
from emodissect.data.fer2013 import CLASS_NAMES, Fer2013
from emodissect.data.ferplus import VOTED_ON, majority, soft_labels, vote_annotations
from emodissect.data.images import ImageSet

USAGES = ("Training", "PublicTest", "PrivateTest")
REAL = os.environ.get("EMODISSECT_FER2013")


class Small:
    """28 drawn images: 14 Training, then 7 PublicTest, then 7 PrivateTest, each class once in seven."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (28, 48, 48), dtype=np.uint8)
        self.labels = np.arange(28) % 7
        self.usage = np.repeat([0, 1, 2], [14, 7, 7])
        self.votes = generator.multinomial(10, np.full(10, 0.1), size=28).astype(np.uint8)

    def lines(self) -> list[str]:
        return [
            f"{label},{' '.join(map(str, image.flatten()))},{USAGES[usage]}"
            for label, image, usage in zip(self.labels, self.pixels, self.usage, strict=True)
        ]

    def csv(self, path: Path) -> Path:
        path.write_text("\n".join(["emotion,pixels,Usage", *self.lines()]) + "\n")
        return path

    def npz(self, path: Path, **more: np.ndarray) -> Path:
        np.savez(path, pixels=self.pixels, labels=self.labels, usage=self.usage, **more)
        return path

    def ferplus(self, path: Path) -> Path:
        rows = [
            f"{USAGES[usage]},fer{row:07}.png,{','.join(map(str, votes))}"
            for row, (usage, votes) in enumerate(zip(self.usage, self.votes, strict=True))
        ]
        path.write_text("\n".join(["Usage,Image name," + ",".join(VOTED_ON), *rows]) + "\n")
        return path


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


@pytest.fixture
def make(tmp_path) -> Callable[..., Fer2013]:
    return lambda path, **options: Fer2013(path=path, cache_dir=tmp_path / "cache", **options)


def check_small(data: Fer2013, small: Small) -> None:
    for images, usage in ((data.splits.train, 0), (data.splits.val, 1), (data.splits.test, 2)):
        rows = np.flatnonzero(small.usage == usage)
        assert images.ids.tolist() == rows.tolist()
        assert images.labels.tolist() == small.labels[rows].tolist()
        assert np.array_equal(images.images.numpy(), small.pixels[rows, None])
    assert data.class_names == CLASS_NAMES == data.splits.class_names


def test_csv(make, small, tmp_path):
    check_small(make(small.csv(tmp_path / "fer2013.csv")), small)


def test_icml_csv_with_spaces_in_its_columns_and_another_order(make, small, tmp_path):
    rows = [line.split(",") for line in small.lines()]
    text = "\n".join(["emotion, Usage, pixels", *(f"{a},{c},{b}" for a, b, c in rows)])
    (tmp_path / "icml_face_data.csv").write_text(text)
    check_small(make(tmp_path / "icml_face_data.csv"), small)


def test_csv_with_windows_lines_a_byte_order_mark_and_blank_lines(make, small, tmp_path):
    text = "\r\n".join(["emotion,pixels,Usage", small.lines()[0], "", *small.lines()[1:], ""])
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    check_small(make(tmp_path / "f.csv"), small)


def test_folder_that_holds_the_csv_and_relative_paths(make, small, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    small.csv(tmp_path / "data" / "fer2013.csv")
    check_small(make(tmp_path / "data"), small)
    monkeypatch.chdir("/")
    check_small(make("fer2013.csv", data_dir=tmp_path / "data"), small)


def test_an_npz_that_unpacks_to_more_than_fer2013_could(make, small, tmp_path, monkeypatch):
    path = small.npz(tmp_path / "a.npz")
    monkeypatch.setattr(fer2013_files.require_unpacked_size, "__defaults__", (1000,))
    with pytest.raises(UserError, match=r"it unpacks to 0\.0 GiB; FER2013 has 0\.08"):
        _ = make(path).splits


def test_npz_plain_and_with_names(make, small, tmp_path):
    check_small(make(small.npz(tmp_path / "a.npz")), small)
    flat = {"pixels": small.pixels.reshape(28, -1), "usage": np.array(USAGES)[small.usage]}
    np.savez(tmp_path / "b.npz", labels=np.array(CLASS_NAMES)[small.labels], **flat)
    check_small(make(tmp_path / "b.npz"), small)


def test_npz_with_another_class_order_is_brought_into_fer2013s(make, small, tmp_path):
    alphabet = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
    place = np.array([0, 1, 2, 3, 5, 6, 4])  # of FER2013's classes in it
    np.savez(
        tmp_path / "c.npz",
        pixels=small.pixels,
        labels=place[small.labels],
        usage=small.usage,
        class_names=np.array(alphabet),
    )
    check_small(make(tmp_path / "c.npz"), small)


def write_folders(small: Small, root: Path, names: tuple[str, ...]) -> None:
    for row, (image, label) in enumerate(zip(small.pixels, small.labels, strict=True)):
        folder = root / ("train" if row < 14 else "test") / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"im{row:03}.png")


def test_class_folders_in_fer2013s_order_with_test_halved_and_said_so(make, small, tmp_path, caplog):
    root = tmp_path / "fer"
    write_folders(small, root, ("angry", "disgust", "Fearful", "happiness", "sad", "surprised", "neutral"))
    caplog.set_level(logging.INFO)
    splits = make(root).splits
    assert [len(splits.train), len(splits.val), len(splits.test)] == [14, 7, 7]
    assert "split into 7 for validation and 7 for test, class by class, seed 0" in caplog.text
    for part in (splits.train, splits.val, splits.test):
        assert torch.bincount(part.labels, minlength=7).tolist() == [len(part) // 7] * 7
        for image, label in zip(part.images, part.labels, strict=True):
            (row,) = np.flatnonzero((small.pixels == image.numpy()).all(axis=(1, 2)))
            assert small.labels[row] == label
    again = make(root, split_seed=1).splits
    assert sorted(again.val.ids.tolist() + again.test.ids.tolist()) == list(range(14, 28))
    assert make(root).origin(torch.tensor([0])) == ["train/Fearful/im002.png"]
    with pytest.raises(UserError, match="cannot be swapped"):
        _ = make(root, splits="khaireddin2021").splits


def test_khaireddin_swaps_val_and_test(make, small, tmp_path):
    splits = make(small.npz(tmp_path / "a.npz"), splits="khaireddin2021").splits
    assert splits.val.ids.tolist() == list(range(21, 28))
    assert splits.test.ids.tolist() == list(range(14, 21))


def test_second_read_takes_the_cache_and_a_changed_file_does_not(make, small, tmp_path, monkeypatch):
    path = small.csv(tmp_path / "fer2013.csv")
    _ = make(path).splits
    stat = path.stat()

    def no_parsing(_: Path) -> None:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patched:
        patched.setattr(fer2013, "read_csv", no_parsing)
        check_small(make(path), small)
    text = path.read_text()
    path.write_text(text.replace("\n0,", "\n1,", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert make(path).splits.train.labels[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda line: re.sub(r",\d+ ", ",", line, count=1),
            r"line 7: the row has 2,303 pixels; 2,304 \(48 x 48\) are needed",
        ),
        (lambda line: line.replace(" ", "0000", 1), "line 7: pixel 1 is '"),
        (lambda line: line.replace(",", ",7 ", 1), "line 7: the row has 2,305 pixels"),
        (lambda line: line.replace(" ", " x", 1), "line 7: pixel 2 is 'x"),
        (lambda line: line.replace(",", ",256 ", 1).replace(" ", "_", 1), "line 7: pixel 1 is '256_"),
        (lambda line: "5,-1" + line[line.index(" ") :], "line 7: pixel 1 is '-1'; pixels are integers"),
        (lambda line: "5,300" + line[line.index(" ") :], "line 7: pixel 1 is '300'"),
        (lambda line: "5,4294967301" + line[line.index(" ") :], "line 7: pixel 1 is '4294967301'"),
        (lambda line: "5,18446744073709551617" + line[line.index(" ") :], "line 7: pixel 1 is '18446744073709551617'"),
        (lambda line: "7" + line[1:], "line 7: the label is '7'; FER2013's labels are 0 to 6"),
        (lambda line: "happy" + line[1:], "line 7: the label is 'happy'"),
        (lambda line: line.replace("Training", "Trainig"), "line 7: the usage is 'Trainig'. Did you mean 'Training'"),
        (lambda line: line + ",1", "line 7: the row has 4 columns, the header 3"),
        (lambda line: line[:3000], "line 7: the row has 2 columns, the header 3"),
    ],
)
def test_corrupt_row_is_reported_by_file_line_and_fault(make, small, tmp_path, change, message):
    lines = small.lines()
    lines[5] = change(lines[5])
    (tmp_path / "fer.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    with pytest.raises(UserError, match=rf"fer\.csv, {message}"):
        _ = make(tmp_path / "fer.csv").splits
    assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file() and found.suffix != ".lock"]


def test_pixels_that_are_right_in_number_over_two_rows_are_still_wrong(make, small, tmp_path):
    lines = small.lines()
    lines[3] = lines[3].replace(",", ",9 ", 1)  # one more
    lines[4] = re.sub(r",\d+ ", ",", lines[4], count=1)  # one fewer
    (tmp_path / "fer.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    with pytest.raises(UserError, match="line 5: the row has 2,305 pixels"):
        _ = make(tmp_path / "fer.csv").splits


def test_missing_file_says_where_to_get_it_and_what_is_taken(make, tmp_path):
    with pytest.raises(UserError) as message:
        make(tmp_path / "nothing.csv", data_dir=tmp_path)
    for word in (
        "nothing.csv",
        "challenges-in-representation-learning-facial-expression-recognition-challenge",
        "msambare/fer2013",
        "icml_face_data.csv",
        "train/<class>/",
        ".npz",
    ):
        assert word in str(message.value)


def test_csv_without_rows_and_without_letters(make, tmp_path):
    (tmp_path / "a.csv").write_text("emotion,pixels,Usage\n")
    with pytest.raises(UserError, match="has no images, only a header"):
        _ = make(tmp_path / "a.csv").splits
    (tmp_path / "b.csv").write_bytes(b"\x00\x07,\x1b[2J\n")
    with pytest.raises(UserError, match=r"its first line has \?\?, \?\[2J\."):
        _ = make(tmp_path / "b.csv").splits


def test_contest_csv_without_usage_is_recognised(make, tmp_path):
    (tmp_path / "train.csv").write_text("emotion,pixels\n0,1 2 3\n")
    with pytest.raises(UserError, match=r"lacks the columns usage.*use fer2013\.csv"):
        _ = make(tmp_path / "train.csv").splits


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": None}, "lacks labels"),
        ({"pixels": np.zeros((28, 48, 40), np.uint8)}, r"pixels is uint8 \(28, 48, 40\)"),
        ({"pixels": np.zeros((28, 48, 48))}, "pixels is float64"),
        ({"labels": np.full(28, 7)}, "labels is int64 .* from 0 to 6"),
        ({"usage": np.zeros(27, int)}, "differ in length"),
        ({"usage": np.zeros(28, int)}, "no PublicTest and no PrivateTest images"),
        ({"class_names": np.array(["Angri", *CLASS_NAMES[1:]])}, "Did you mean 'angry'"),
        ({"pixels": np.uint8(3)}, r"pixels is uint8 \(\)"),
        ({"labels": np.zeros(28, int)}, "has no image of Disgust, Fear, Happy, Sad, Surprise, Neutral"),
        ({"ferplus_votes": np.full((28, 10), np.nan)}, "ferplus_votes is float64 .* counts from 0 to 255"),
        ({"ferplus_votes": np.full((28, 10), -1)}, "ferplus_votes is int64 .* counts from 0 to 255"),
        ({"ferplus_votes": np.full((28, 10), 0.5)}, "counts from 0 to 255"),
        ({"ferplus_votes": np.ones((28, 9), np.uint8)}, r"ferplus_votes is uint8 \(28, 9\)"),
    ],
)
def test_wrong_npz(make, small, tmp_path, arrays, message):
    whole = {"pixels": small.pixels, "labels": small.labels, "usage": small.usage} | arrays
    np.savez(tmp_path / "w.npz", **{name: array for name, array in whole.items() if array is not None})
    with pytest.raises(UserError, match=message):
        _ = make(tmp_path / "w.npz").splits


def test_broken_npz_and_unknown_ending(make, tmp_path):
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(UserError, match="cannot be read as an "):
        _ = make(tmp_path / "b.npz").splits
    (tmp_path / "b.pkl").write_bytes(b"")
    with pytest.raises(UserError, match="not recognised by its extension"):
        _ = make(tmp_path / "b.pkl").splits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": "standart"}, "Did you mean 'standard'"),
        ({"labels": "majority"}, "Did you mean 'ferplus_majority'"),
        ({"size": 40}, r"48 x 48 grey.*model\.preprocess"),
        ({"class_names": sorted(CLASS_NAMES)}, r"in this order.*model\.class_order"),
        ({"ferplus": "nowhere.csv"}, "github.com/microsoft/FERPlus"),
    ],
)
def test_wrong_options(make, small, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(small.npz(tmp_path / "a.npz"), **options)


def test_unknown_class_folder(make, tmp_path):
    (tmp_path / "fer" / "train" / "hapy").mkdir(parents=True)
    Image.new("L", (48, 48)).save(tmp_path / "fer" / "train" / "hapy" / "a.png")
    with pytest.raises(UserError, match="Did you mean 'Happy'"):
        _ = make(tmp_path / "fer").splits


def test_a_missing_class_folder_and_a_broken_image(make, small, tmp_path):
    names = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    write_folders(small, tmp_path / "fer", names)
    broken = tmp_path / "fer" / "train" / "sad" / "im004.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"im004\.png[\s\S]*download the set again"):
        _ = make(tmp_path / "fer").splits
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "fer" / split / "sad")
    with pytest.raises(UserError, match="has no image of Sad"):
        _ = make(tmp_path / "fer").splits


# FER+ -------------------------------------------------------------------------------------------------------------

#            neutral happy surpr sad anger disg fear cont unkn NF
VOTES = torch.tensor(
    [
        [8, 2, 0, 0, 0, 0, 0, 0, 0, 0],  # Neutral
        [0, 0, 0, 4, 4, 0, 0, 2, 0, 0],  # Sad and Angry tie
        [1, 0, 0, 0, 0, 0, 0, 6, 3, 0],  # contempt
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 10],  # not a face
        [0, 5, 0, 0, 0, 0, 0, 0, 5, 0],  # Happy and unknown tie
    ],
    dtype=torch.uint8,
)


def test_votes_as_annotations():
    annotations = vote_annotations(VOTES)
    assert annotations["votes"].names == CLASS_NAMES
    assert annotations["votes"].values[0].tolist() == pytest.approx([0, 0, 0, 0.2, 0, 0, 0.8])
    assert annotations["votes"].values[1].tolist() == pytest.approx([0.4, 0, 0, 0, 0.4, 0, 0])
    assert annotations["votes_other"].names == ("contempt", "unknown", "not a face")
    assert annotations["votes_other"].values[2].tolist() == pytest.approx([0.6, 0.3, 0])
    sums = annotations["votes"].values.sum(1) + annotations["votes_other"].values.sum(1)
    assert sums.tolist() == pytest.approx([1.0] * 5)


def test_majority_and_its_ties():
    labels, has_one = majority(VOTES, torch.tensor([3, 4, 0, 0, 3]))
    assert has_one.tolist() == [True, True, False, False, True]
    assert labels[has_one].tolist() == [6, 4, 3]
    labels, _ = majority(VOTES, torch.tensor([3, 6, 0, 0, 3]))  # the FER2013 label is not among the tied: the first
    assert labels[1] == 0


def test_soft_labels_sum_to_one_and_fall_back_on_the_label():
    images = ImageSet(
        torch.zeros(5, 1, 48, 48, dtype=torch.uint8),
        torch.tensor([6, 4, 0, 2, 3]),
        torch.arange(5),
        vote_annotations(VOTES),
    )
    soft = soft_labels(images, CLASS_NAMES)
    assert soft.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert soft[1].tolist() == pytest.approx([0.5, 0, 0, 0, 0.5, 0, 0])
    assert soft[2].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert soft[3].tolist() == [0, 0, 1, 0, 0, 0, 0]
    backwards = soft_labels(images, CLASS_NAMES[::-1])
    assert torch.equal(backwards[:3], soft[:3].flip(1))
    with pytest.raises(UserError, match="no votes for calm"):
        soft_labels(images, ("calm",))
    with pytest.raises(UserError, match=r"data\.ferplus"):
        soft_labels(ImageSet(images.images, images.labels, images.ids), CLASS_NAMES)


def test_votes_of_the_npz_and_of_the_file_are_the_same(make, small, tmp_path):
    shuffled = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    names = np.array(VOTED_ON)[shuffled]
    path = small.npz(tmp_path / "v.npz", ferplus_votes=small.votes[:, shuffled], ferplus_names=names)
    in_npz = make(path).splits
    beside = make(small.csv(tmp_path / "f.csv"), ferplus=small.ferplus(tmp_path / "fer2013new.csv")).splits
    for kind in ("votes", "votes_other"):
        assert torch.equal(in_npz.val.annotations[kind].values, beside.val.annotations[kind].values)
    assert in_npz.val.annotations["votes"].values[2, 3].item() == pytest.approx(small.votes[16, 1] / 10)


def test_ferplus_majority_labels_keep_the_ids(make, small, tmp_path):
    data = make(small.npz(tmp_path / "v.npz", ferplus_votes=small.votes), labels="ferplus_majority")
    labels, has_one = majority(torch.from_numpy(small.votes), torch.from_numpy(small.labels))
    ids = torch.cat([part.ids for part in (data.splits.train, data.splits.val, data.splits.test)])
    assert ids.tolist() == torch.nonzero(has_one).flatten().tolist()
    assert data.splits.train.labels.tolist() == labels[data.splits.train.ids].tolist()
    with pytest.raises(UserError, match="needs FER"):
        _ = make(small.csv(tmp_path / "f.csv"), labels="ferplus_majority").splits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("contempt", "scorn"), "lacks the FER. columns contempt"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "votes on 27 images, the data set has 28"),
        (lambda text: text.replace(".png,", ".png,x", 1), "line 2: a vote is not an integer"),
        (lambda text: text.replace(".png,", ".png,1.", 1), "line 2: a vote is not an integer"),
        (lambda text: text.replace(".png,", ".png,300", 1), "line 2: a vote is not an integer"),
        (lambda text: text.replace("Training", "PublicTest", 1), "line 2: its Usage differs from row 0"),
    ],
)
def test_wrong_ferplus_file(make, small, tmp_path, change, message):
    path = small.ferplus(tmp_path / "fer2013new.csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        _ = make(small.npz(tmp_path / "a.npz"), ferplus=path).splits


def test_ferplus_does_not_go_with_folders(make, small, tmp_path):
    write_folders(small, tmp_path / "fer", CLASS_NAMES)
    path = small.ferplus(tmp_path / "fer2013new.csv")
    with pytest.raises(UserError, match="do not keep them"):
        _ = make(tmp_path / "fer", ferplus=path).splits


@pytest.mark.skipif(not REAL, reason="EMODISSECT_FER2013 is not set")
def test_real_fer2013(make):
    data = make(REAL)
    assert [len(data.splits.train), len(data.splits.val), len(data.splits.test)] == [28709, 3589, 3589]
    assert torch.bincount(data.splits.train.labels).tolist() == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert torch.bincount(data.splits.val.labels).tolist() == [467, 56, 496, 895, 653, 415, 607]
    assert torch.bincount(data.splits.test.labels).tolist() == [491, 55, 528, 879, 594, 416, 626]
    assert data.splits.test.ids.tolist() == list(range(32298, 35887))

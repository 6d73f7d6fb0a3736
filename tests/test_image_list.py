"""Images named in lists, and published datasets in the layouts in which they are distributed."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emodissect.core.errors import UserError
from emodissect.data.image_list import ImageList, listed_classes
from emodissect.data.published_sets import AFFECT_NET, AffectNet, FerPlusFolders, RafDb


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)


def parts(data: Any) -> list[Any]:
    return [data.splits.train, data.splits.val, data.splits.test]


def shades(images: Any) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.fixture
def listed(tmp_path: Path) -> Any:
    """The data module of a list with so many rows, each an image with its own shade of grey."""

    def make(lines: list[str], name: str = "faces.csv", **options: Any) -> ImageList:
        for shade in range(40):
            draw(tmp_path / "images" / f"face {shade}.png", shade)
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        options.setdefault("images_dir", tmp_path / "images")
        return ImageList(path=tmp_path / name, cache_dir=tmp_path / "cache", size=4, **options)

    return make


SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
WORDS = ["calm", "angry"] * 4


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_columns_are_found_by_their_usual_names(listed: Any, mark: str) -> None:
    rows = [mark.join([f" {s}", f"face {n}.png", w, "x"]) for n, (s, w) in enumerate(zip(SPLITS, WORDS, strict=True))]
    data = listed([mark.join(["Usage", " Image ", "Emotion", "other"]), *rows, ""])
    assert data.class_names == ("angry", "calm")
    assert [shades(part) for part in parts(data)] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert data.splits.train.labels.tolist() == [1, 0, 1, 0]
    assert data.origin(torch.tensor([3])) == ["face 3.png"]


def test_lists_without_a_header_and_with_white_space(listed: Any) -> None:
    rows = [f"face {n}.png {n % 2 + 1}" for n in range(30)]
    data = listed(rows, "faces.txt", class_names=["happy", "sad"])
    assert torch.cat([part.labels for part in parts(data)]).bincount().tolist() == [15, 15]
    assert torch.cat([part.ids for part in parts(data)]).sort().values.tolist() == list(range(30))
    assert listed([f"face {n}.png,{n % 3 + 9}" for n in range(30)]).class_names == ("9", "10", "11")


def test_columns_are_named_by_the_user(listed: Any, tmp_path: Path) -> None:
    rows = [f"{w},{w}s,face {n}.png,{s}" for n, (s, w) in enumerate(zip(SPLITS, WORDS, strict=True))]
    head = "a,b,c,d"
    named = {"path_column": "c", "label_column": "b", "split_column": "d"}
    assert listed([head, *rows], **named).class_names == ("angrys", "calms")
    with pytest.raises(UserError, match=r"no column for the path: it has a, b, c, d\. Name it: data\.path_column="):
        listed([head, *rows])
    with pytest.raises(UserError, match=r"data\.label_column=e: .* has no such column"):
        listed([head, *rows], path_column="c", label_column="e")
    with pytest.raises(UserError, match=r"'angry' is not a split"):
        listed([head, *rows], **named | {"split_column": "a"})
    (tmp_path / "labels.csv").write_text("path,b\na.png,sad\nb.png,calm\n")
    assert listed_classes(str(tmp_path / "labels.csv"), None, None, "b") == ["calm", "sad"]


def test_a_column_keeps_subjects_together(listed: Any) -> None:
    rows = [f"face {n}.png,{'ab'[n % 2]},subject {n // 4}" for n in range(40)]
    data = listed(["path,label,person", *rows], split_by="person")
    people = [set((part.ids // 4).tolist()) for part in parts(data)]
    assert [len(names) for names in people] == [8, 1, 1]
    assert sum(map(len, people)) == len(set.union(*people))
    by_name = listed(["path,label,person", *rows], split_by=r"face (\d)\d?\.png")
    digits = [{str(number)[0] for number in part.ids.tolist()} for part in parts(by_name)]
    assert not digits[0] & digits[1] | digits[0] & digits[2] | digits[1] & digits[2]


def test_a_list_for_each_split_and_an_archive_of_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for split, first in (("train", 0), ("valid", 4), ("test", 6)):
            rows = [f"images/{first + n}.png,{'ab'[n % 2]}" for n in range(4 if split == "train" else 2)]
            archive.writestr(f"faces/{split}_labels.csv", "\n".join(["image,label", *rows]))
        for shade in range(8):
            draw(tmp_path / "x.png", shade)
            archive.write(tmp_path / "x.png", f"faces/images/{shade}.png")
    data = ImageList(path=tmp_path / "f.zip", cache_dir=tmp_path / "cache", size=4)
    assert [shades(part) for part in parts(data)] == [[0, 1, 2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label"], "has no images"),
        (["path,label", "a.png"], r"row 2: it has 1 columns, the first row 2"),
        (["path,label", '"a.png,0'], "cannot be read as a list"),
        (["path,label", "a.png,0", "b.png,7"], r"The labels range from 0 to 7, and data\.class_names has 2 names"),
        (["path,label", "a.png,calm", "b.png,glad"], "has a class 'glad', which is not in data.class_names"),
    ],
)
def test_what_is_wrong_with_a_list(listed: Any, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        listed(lines, class_names=["calm", "angry"])


def test_images_that_a_list_names_and_that_do_not_exist_are_named(listed: Any) -> None:
    rows = [f"face {n}.png,{'ab'[n % 2]}" for n in range(38)]
    with pytest.raises(UserError, match=r"1 of 39 image files cannot be read:\n.*nowhere\.png \(no such file\)"):
        _ = listed(["path,label", *rows, "nowhere.png,a"]).splits


# -- published sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "folders"])
def test_raf_db(layout: str, tmp_path: Path) -> None:
    root, shade = tmp_path / "basic", 0
    lines = []
    for split, count in (("train", 70), ("test", 14)):
        for number in range(count):
            label = number % 7 + 1
            name = f"{split}_{number:05}.jpg"
            place = root / "Image" / "aligned" / f"{split}_{number:05}_aligned.jpg"
            draw(place if layout == "official" else root / split / str(label) / name, shade)
            lines.append(f"{name} {label}")
            shade += 1
    if layout == "official":
        (root / "EmoLabel").mkdir()
        (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines))
    data = RafDb(path=root, cache_dir=tmp_path / "cache", size=4, val_from="train")
    assert [len(part) for part in parts(data)] == [63, 7, 14]
    assert data.class_names[0] == "Surprise"
    surprised = data.splits.test.subset(torch.nonzero(data.splits.test.labels == 0).flatten())
    assert sorted(shades(surprised)) == pytest.approx([70, 77], abs=1)
    few = RafDb(path=root, cache_dir=tmp_path / "cache", size=4, val_from="train", class_names=["Angry", "Happy"])
    assert len(few.splits.test) == 4
    with pytest.raises(UserError, match="is not RAF-DB as it is distributed"):
        RafDb(path=tmp_path / "cache", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("layout", ["lists", "annotations"])
def test_affectnet(layout: str, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    root, shade = tmp_path / "AffectNet", 0
    for split, folder, count in (("training", "train_set", 88), ("validation", "val_set", 22)):
        rows = ["subDirectory_filePath,face_x,expression,valence"]
        (root / folder / "annotations").mkdir(parents=True)
        for number in range(count):
            name, label = f"{number // 10}/{split[:3]}{number}.jpg", number % 11
            if layout == "lists":
                draw(root / "Manually_Annotated_Images" / name, shade)
                rows.append(f"{name},0,{label},0.5")
            else:
                draw(root / folder / "images" / f"{number:03}.jpg", shade)
                np.save(root / folder / "annotations" / f"{number:03}_exp.npy", str(label))
            shade += 1
        if layout == "lists":
            (root / f"{split}.csv").write_text("\n".join(rows))
    data = AffectNet(path=root, cache_dir=tmp_path / "cache", size=4, val_from="train")
    assert data.class_names == AFFECT_NET
    assert [len(part) for part in parts(data)] == [56, 8, 16]
    assert "30 of 110 images are labelled none, uncertain or no face: excluded." in caplog.text
    assert shades(data.splits.test) == pytest.approx([88 + n for n in range(22) if n % 11 < 8], abs=1)
    seven = AffectNet(path=root, cache_dir=tmp_path / "cache", size=4, val_from="train", class_names=AFFECT_NET[:7])
    assert len(seven.splits.test) == 14
    assert "10 of 80 images have a class that is not in data.class_names: excluded." in caplog.text


def test_ferplus_folders(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    shade = 0
    for folder, count in (("FER2013Train", 24), ("FER2013Valid", 16), ("FER2013Test", 16)):
        rows = []
        for number in range(count):
            votes = [0] * 10
            votes[number % 8] = 7
            votes[9] = 3
            if number == 0:
                votes[9] = 8  # not a face
            draw(tmp_path / folder / f"fer{shade:07}.png", shade)
            rows.append(f'fer{shade:07}.png,"(0, 0, 48, 48)",{",".join(map(str, votes))}')
            shade += 1
        (tmp_path / folder / "label.csv").write_text("\n".join(rows))
    data = FerPlusFolders(path=tmp_path, cache_dir=tmp_path / "cache", size=4)
    assert [len(part) for part in parts(data)] == [23, 15, 15]
    assert "3 of 56 images have no class with the most votes: excluded." in caplog.text
    assert data.splits.train.labels[:3].tolist() == [1, 2, 3]
    votes, other = data.splits.train.annotations["votes"], data.splits.train.annotations["votes_other"]
    assert votes.names == data.class_names
    assert votes.values[0].tolist() == pytest.approx([0, 0.7, 0, 0, 0, 0, 0, 0])
    assert other.values[0].tolist() == pytest.approx([0, 0.3])
    assert other.names == ("unknown", "not a face")
    seven = FerPlusFolders(path=tmp_path, cache_dir=tmp_path / "cache", size=4, class_names=data.class_names[:7])
    assert len(seven.splits.test) == 13
    (tmp_path / "FER2013Test" / "label.csv").write_text('a.png,"(0)",1,2\n')
    with pytest.raises(UserError, match="a row has 4 columns; the image's name, its box and ten votes are needed"):
        FerPlusFolders(path=tmp_path, cache_dir=tmp_path / "cache")

"""A user's own images: all layouts, grey and RGB, resizing, names, broken files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from emodissect.core.errors import UserError
from emodissect.data import image_files
from emodissect.data.decoding import decode, fitted
from emodissect.data.folder import ImageFolder, class_folders
from emodissect.data.parts import grouped_parts, stratified_parts
from emodissect.data.stored_images import StoredImages


@pytest.fixture
def make(tmp_path) -> Callable[..., ImageFolder]:
    return lambda path, **options: ImageFolder(path=path, cache_dir=tmp_path / "cache", **options)


def draw(root: Path, layout: dict[str, int], ending: str = "png") -> Path:
    """``layout``: folder -> number of 10 x 8 RGB images, each with its own colour."""
    shade = 0
    for name, count in layout.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (10, 8), (shade, 255 - shade, 100)).save(root / name / f"{number:02}.{ending}")
            shade += 1
    return root


def test_three_splits(make, tmp_path):
    layout = {"train/b": 3, "train/a": 2, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 2}
    data = make(draw(tmp_path / "own", layout), size=6, channels=3)
    splits = data.splits
    assert data.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.train.ids.tolist() == [0, 1, 2, 3, 4]
    assert splits.val.ids.tolist() == [5, 6]
    assert splits.test.labels.tolist() == [0, 1, 1]
    # Shades follow the layout: train/b has 0, 1, 2, then train/a 3, 4; one colour survives any resizing.
    assert splits.train.images.shape == (5, 3, 6, 6)
    assert splits.train.images[:, 0, 3, 3].tolist() == [3, 4, 0, 1, 2]
    assert splits.train.images[:, 1, 0, 5].tolist() == [252, 251, 255, 254, 253]
    assert data.origin(torch.tensor([2, 7])) == ["train/b/00.png", "test/a/00.png"]


def test_grey_is_the_luma_of_itu_r_601(make, tmp_path):
    data = make(draw(tmp_path / "own", {"train/a": 2, "train/b": 1, "val/a": 1, "test/a": 1}), size=4)
    expected = [round(0.299 * s + 0.587 * (255 - s) + 0.114 * 100) for s in (0, 1, 2)]
    assert data.splits.train.images[:, 0, 1, 1].tolist() == pytest.approx(expected, abs=1)
    assert data.splits.train.images.shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("layout", "sizes", "message"),
    [
        ({"a": 20, "b": 10}, [24, 3, 3], "no train and no val and no test: all images were split"),
        ({"train/a": 20, "train/b": 10}, [24, 3, 3], "no val and no test: all images were split"),
        ({"train/a": 4, "train/b": 2, "test/a": 6, "test/b": 4}, [6, 5, 5], "no val: its test images were halved"),
        ({"train/a": 4, "valid/a": 6, "valid/b": 4}, [4, 5, 5], "no test: its val images were halved"),
    ],
)
def test_missing_splits_are_cut_out_stratified_seeded_and_said(make, tmp_path, caplog, layout, sizes, message):
    caplog.set_level(logging.INFO)
    root = draw(tmp_path / "own", layout)
    splits = make(root).splits
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == sizes
    assert message in caplog.text
    assert "seed 0" in caplog.text
    ids = torch.cat([part.ids for part in parts])
    assert sorted(ids.tolist()) == list(range(sum(sizes)))
    assert torch.equal(make(root).splits.val.ids, splits.val.ids)
    if sum(sizes) == 30:
        assert torch.bincount(splits.val.labels).tolist() == [2, 1]


def test_stratified_parts_cut_each_class_to_the_nearest_image():
    labels = torch.tensor([0] * 10 + [1] * 5)
    train, val, test = stratified_parts(labels, (0.6, 0.2, 0.2), seed=4)
    assert [torch.bincount(labels[part]).tolist() for part in (train, val, test)] == [[6, 3], [2, 1], [2, 1]]
    assert torch.equal(torch.cat([train, val, test]).sort().values, torch.arange(15))


def test_class_names_from_the_configuration_set_the_order(make, tmp_path):
    root = draw(tmp_path / "own", {"train/Happy": 1, "train/Sad": 2, "val/sad": 1, "test/happy": 1})
    data = make(root, class_names=["sad", "happy"])
    assert data.splits.train.labels.tolist() == [1, 0, 0]
    assert data.class_names == ("sad", "happy")
    with pytest.raises(UserError, match="Did you mean 'hapy'"):
        make(root, class_names=["sad", "hapy"])
    with pytest.raises(UserError, match="no image of 'calm'"):
        _ = make(root, class_names=["sad", "happy", "calm"]).splits
    with pytest.raises(UserError, match="twice"):
        make(root, class_names=["sad", "happy", "Sad"])


def test_folder_names_can_stand_in_a_configuration(tmp_path):
    root = draw(tmp_path / "own", {"train/b": 1, "train/A": 1, "test/a": 1, "val/c": 1})
    OmegaConf.register_new_resolver("class_folders", class_folders, replace=True)
    config = OmegaConf.create({"path": str(root), "class_names": "${class_folders:${path},null}"})
    assert list(config.class_names) == ["A", "b", "c"]  # of a and A the first
    with pytest.raises(UserError, match="no such file or folder"):
        class_folders("nowhere", str(tmp_path))


def test_cut_and_stretch():
    wide = torch.zeros(1, 4, 8, dtype=torch.uint8)
    wide[..., :2] = 200
    wide[..., 6:] = 200
    assert fitted(wide, 4, "crop").max() == 0  # the bright edges are cut away
    stretched = fitted(wide, 4, "stretch")
    assert stretched[0, :, 0].float().mean() > 150
    assert stretched[0, :, 1].float().mean() < 50
    assert fitted(torch.zeros(3, 7, 5, dtype=torch.uint8), 6).shape == (3, 6, 6)
    square = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    assert fitted(square, 4) is square


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_ending_is_decoded(tmp_path, ending, channels):
    pixels = np.random.default_rng(0).integers(90, 110, (9, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{ending}")
    image = decode(tmp_path / f"x.{ending}", channels)
    assert image.shape == (channels, 9, 12)
    assert image.dtype == torch.uint8
    assert np.abs(image.numpy().astype(int) - pixels).mean() < 8
    if ending in ("png", "bmp", "tiff"):
        assert np.array_equal(image[0].numpy(), pixels)


def test_16_bit_palette_and_transparent_images(tmp_path):
    deep = (np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", 1)[0].tolist() == np.round(deep / 257).tolist()
    Image.new("RGB", (4, 4), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", 3)[:, 0, 0].tolist() == [10, 20, 30]
    Image.new("RGBA", (4, 4), (10, 20, 30, 128)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_unreadable_files_are_all_named_or_left_out(make, tmp_path, caplog):
    root = draw(tmp_path / "own", {"train/a": 3, "train/b": 1, "val/a": 1, "test/a": 1})
    (root / "train" / "a" / "01.png").write_bytes(b"no image")
    (root / "test" / "a" / "zz.jpg").write_bytes(b"")
    with pytest.raises(UserError) as message:
        _ = make(root).splits
    assert "2 of 7 image files cannot be read" in str(message.value)
    assert "01.png" in str(message.value)
    assert "zz.jpg" in str(message.value)
    assert "data.skip_unreadable=true" in str(message.value)
    assert not list((tmp_path / "cache").rglob("images.npy"))
    splits = make(root, skip_unreadable=True).splits
    assert splits.train.ids.tolist() == [0, 2, 3]
    assert splits.test.ids.tolist() == [5]
    assert "They are skipped" in caplog.text


def test_second_read_takes_the_cache_and_another_size_does_not(make, tmp_path, monkeypatch):
    root = draw(tmp_path / "own", {"train/a": 3, "train/b": 1, "val/a": 1, "test/a": 1})
    first = make(root, size=8).splits
    calls: list[int] = []
    real = image_files.read_images
    monkeypatch.setattr(image_files, "read_images", lambda *given: (calls.append(given[1]), real(*given))[1])
    assert torch.equal(make(root, size=8).splits.train.images, first.train.images)
    assert calls == []
    _ = make(root, size=9).splits
    Image.new("RGB", (10, 8), (255, 255, 255)).save(root / "train" / "a" / "00.png")
    assert make(root, size=8).splits.train.images[0].min() == 255
    assert calls == [9, 8]


def test_other_files_are_passed_over(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 2, "train/b": 1, "val/a": 1, "test/a": 1, "train/.hidden": 1})
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / ".DS_Store").write_text("x")
    assert len(make(root).splits.train) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "data.channels=2"),
        ({"size": 0}, "data.size=0"),
        ({"fit": "corp"}, "Did you mean 'crop'"),
        ({"shares": {"train": 1.0, "val": 0.0, "test": 0.5}}, "data.shares"),
    ],
)
def test_wrong_options(make, tmp_path, options, message):
    root = draw(tmp_path / "own", {"train/a": 1, "train/b": 1, "val/a": 1, "test/a": 1})
    with pytest.raises(UserError, match=message):
        make(root, **options)


def test_missing_and_empty_folders(make, tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        make("nowhere")
    (tmp_path / "own" / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no image files in class folders"):
        make(tmp_path / "own")
    with pytest.raises(UserError, match="no training images"):
        _ = make(draw(tmp_path / "other", {"val/a": 1, "val/b": 1, "test/a": 1})).splits
    with pytest.raises(UserError, match=r"its 2 images are too few .* none is left for val"):
        _ = make(draw(tmp_path / "few", {"a": 1, "b": 1})).splits


def test_more_than_the_disk_holds_is_refused_before_reading(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 1, "train/b": 1, "val/a": 1, "test/a": 1})
    with pytest.raises(UserError, match="GiB are free on the cache's disk"):
        _ = make(root, size=1_000_000).splits


# -- files as they come ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
def test_no_flipped_byte_ends_the_process_or_changes_a_png(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path)
    whole, expected = path.read_bytes(), decode(path, 3)
    for place in np.random.default_rng(1).integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        try:
            image = decode(path, 3)
        except Exception:
            continue
        assert ending != "png" or torch.equal(image, expected)


def test_what_is_no_readable_file_is_named_and_skipped(make, tmp_path, caplog):
    root = draw(tmp_path / "own", {"train/a": 3, "train/b": 3, "val/a": 1, "test/a": 1})
    (root / "train" / "a" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    (root / "train" / "a" / "folder.png").mkdir()  # holds no image: nothing is lost
    with pytest.raises(UserError) as message:
        _ = make(root).splits
    assert "2 of 10 image files cannot be read" in str(message.value)
    assert "dangling.png (a link to a file that does not exist)" in str(message.value)
    assert "pipe.png (a pipe, socket or device, not a file)" in str(message.value)
    for _ in range(2):  # read, then from the cache
        caplog.clear()
        assert len(make(root, skip_unreadable=True).splits.train) == 6
        assert "2 of 10 files are skipped: train/a/dangling.png, train/a/pipe.png" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 1, "train/b": 1, "val/a": 1, "test/a": 1})
    (root / "train" / "a" / "00.png").chmod(0)
    with pytest.raises(UserError, match=r"00\.png \(no permission to read it\)"):
        _ = make(root).splits


RAMP = np.arange(16).reshape(4, 4)


@pytest.mark.parametrize(
    ("ending", "pixels"),
    [
        ("png", (RAMP * 4369).astype(np.uint16)),
        ("tiff", (RAMP * 4369).astype(np.uint16)),
        ("pgm", (RAMP * 4369).astype(np.uint16)),
        ("tiff", (RAMP / 15).astype(np.float32)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_files_are_scaled_by_the_range_of_their_type(tmp_path, ending, pixels, channels):
    Image.fromarray(pixels).save(tmp_path / f"x.{ending}")
    assert decode(tmp_path / f"x.{ending}", channels)[0].tolist() == (RAMP * 17).tolist()


@pytest.mark.parametrize(
    ("ending", "pixels", "white"),
    [
        ("png", (RAMP * 273).astype(np.uint16), 4095),  # 12 bits in a file of 16
        ("tiff", (RAMP * 1000).astype(np.int32), 15000),
        ("tiff", (RAMP * 17).astype(np.float32), 255),
    ],
)
def test_a_range_that_is_not_known_is_refused_until_it_is_given(tmp_path, ending, pixels, white):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=r"data\.value_range="):
        decode(path, 1)
    assert decode(path, 1, value_range=white)[0].tolist() == (RAMP * 17).tolist()


def test_lab_is_converted_by_its_definition(tmp_path):
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (255, 128, 128)])
    lab.paste((136, 128 + 80, 128 + 67), (0, 0, 2, 4))  # L* 53.3, a* 80, b* 67: sRGB's red
    lab.save(tmp_path / "x.tiff")
    image = decode(tmp_path / "x.tiff", 3)
    assert image[:, 0, 3].tolist() == pytest.approx([255, 255, 255], abs=1)
    assert image[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=12)


def test_one_class_is_an_error_that_names_the_folder_that_was_meant(make, tmp_path):
    draw(tmp_path / "X" / "archive" / "images", {"train/a": 2, "train/b": 2})
    with pytest.raises(UserError, match=r"only one class, 'archive'.*Did you mean data\.path=.*/X/archive/images\?"):
        make(tmp_path / "X")
    draw(tmp_path / "Y", {"raf/train/a": 1, "raf/train/b": 1, "sfew/train/a": 1, "sfew/train/b": 1})
    with pytest.raises(UserError, match=r"whole data sets: .*Y/raf, .*Y/sfew\. Did you mean data\.path=.*Y/raf\?"):
        make(tmp_path / "Y")
    with pytest.raises(
        UserError, match=r"only one class, 'a'; two or more are needed\. Class folders must be directly"
    ):
        make(draw(tmp_path / "Z", {"train/a": 2}))


def test_folders_as_they_come_are_read_or_reported_with_counts(make, tmp_path, caplog):
    layout = {"train/a": 2, "Train/b": 3, "dev/a": 1, "dev/B": 1, "test/a": 1, "test/b": 1, "more/a": 4}
    root = draw(tmp_path / "own", layout | {"__MACOSX/train": 1, "train/a/@eaDir/00.png": 1})
    (root / "train" / "calm").mkdir()
    (root / "train" / "a" / "00.png").rename(root / "train" / "a" / "00.jfif")
    (root / "train" / "a" / "face.heic").write_bytes(b"x")
    Image.new("L", (4, 4)).save(root / "test" / "unlabelled.png")
    data = make(root)
    assert data.class_names == ("a", "B")
    assert [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)] == [5, 2, 2]
    assert data.splits.train.labels.tolist() == [1, 1, 1, 0, 0]
    for note in (
        "Read together as train: Train/ (3 images), train/ (2 images).",
        "Next to the split folders, not read: more/ (4 images).",
        "Without images: 1 folders (train/calm).",
        "System folders, not read: @eaDir/.",
        "Files of other kinds, not read: .heic 1.",
        "Outside class folders, without a label: 1 images in",
    ):
        assert note in caplog.text


def test_links_that_lead_back_up_end(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 2, "train/b": 1, "val/a": 1, "test/a": 1})
    (root / "train" / "a" / "again").symlink_to(root / "train" / "a")
    (root / "train" / "c").symlink_to(draw(tmp_path / "elsewhere", {"c": 2}) / "c")
    assert torch.bincount(make(root).splits.train.labels).tolist() == [2, 1, 2]


# -- splits and sizes -----------------------------------------------------------------------------------------------


def test_images_beyond_the_limit_stay_on_disk_and_are_the_same(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 3, "train/b": 2, "val/a": 1, "test/a": 1})
    in_memory, on_disk = make(root, channels=3).splits, make(root, channels=3, in_memory_gib=0).splits
    assert isinstance(on_disk.train.images, StoredImages)
    assert torch.equal(on_disk.train.images[:], in_memory.train.images)
    assert on_disk.train.fingerprint() == in_memory.train.fingerprint()


def test_val_is_cut_out_of_train_where_that_is_asked_for(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 18, "train/b": 9, "test/a": 2, "test/b": 2})
    splits = make(root, val_from="train").splits
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [24, 3, 4]
    assert torch.bincount(splits.val.labels).tolist() == [2, 1]
    with pytest.raises(UserError, match="Did you mean 'train'"):
        make(root, val_from="trian")


def test_subjects_stay_on_one_side(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = tmp_path / "own"
    for subject in range(20):
        for label, count in (("calm", 4), ("angry", 2)):
            (root / label).mkdir(parents=True, exist_ok=True)
            for frame in range(count):
                Image.new("L", (4, 4), subject).save(root / label / f"S{subject:03}_{frame:02}.png")
    data = make(root, split_by=r"/(S\d+)_")
    parts = (data.splits.train, data.splits.val, data.splits.test)
    subjects = [{name.split("/")[1][:4] for name in data.origin(part.ids)} for part in parts]
    assert [len(names) for names in subjects] == [16, 2, 2]
    assert not subjects[0] & subjects[1]
    assert not subjects[0] & subjects[2]
    assert not subjects[1] & subjects[2]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[32, 64], [4, 8], [4, 8]]
    assert "20 groups kept together" in caplog.text
    assert make(root, split_by=r"S\d+").splits.val.ids.tolist() == data.splits.val.ids.tolist()
    assert make(root, split_by=r"S\d+", split_seed=1).splits.val.ids.tolist() != data.splits.val.ids.tolist()


def test_subjects_that_given_splits_take_apart_are_reported(make, tmp_path, caplog):
    root = draw(tmp_path / "own", {"train/a": 3, "train/b": 2, "val/a": 1, "test/b": 1})
    _ = make(root, split_by=r"\d+\.png").splits
    assert r"1 of 3 groups of data.split_by=\d+\.png are in both train and val, e.g. 00.png" in caplog.text
    with pytest.raises(UserError, match=r"data\.split_by=train matches 5 of 7 file names\..*val/a/00\.png"):
        make(root, split_by="train")
    with pytest.raises(UserError, match="not a regular expression"):
        make(root, split_by="(")


def test_grouped_parts_keep_class_shares_with_groups_of_all_sizes():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(120), generator.integers(1, 30, 120))
    labels = torch.from_numpy(generator.integers(0, 7, len(groups)))
    parts = grouped_parts(labels, [str(group) for group in groups], (0.8, 0.1, 0.1), seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(groups)))
    held = [set(groups[part.numpy()]) for part in parts]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert len(part) / len(groups) == pytest.approx(share, abs=0.01)
        shares = torch.bincount(labels[part], minlength=7) / torch.bincount(labels, minlength=7)
        assert float((shares - share).abs().max()) < 0.05

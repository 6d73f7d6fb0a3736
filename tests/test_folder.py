"""A user's own images: all layouts, grey and RGB, resizing, names, broken files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from emodissect.core.errors import UserError
from emodissect.data import folder
from emodissect.data.class_folders import stratified_parts
from emodissect.data.decoding import decode, fitted
from emodissect.data.folder import ImageFolder, class_folders


@pytest.fixture
def make(tmp_path) -> Callable[..., ImageFolder]:
    return lambda path, **options: ImageFolder(path=path, cache_dir=tmp_path / "cache", **options)


def draw(root: Path, layout: dict[str, int], ending: str = "png") -> Path:
    """``layout``: folder -> number of 10 x 8 RGB images, each of one colour of its own."""
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
    data = make(draw(tmp_path / "own", {"train/a": 2, "val/a": 1, "test/a": 1}), size=4)
    expected = [round(0.299 * s + 0.587 * (255 - s) + 0.114 * 100) for s in (0, 1)]
    assert data.splits.train.images[:, 0, 1, 1].tolist() == pytest.approx(expected, abs=1)
    assert data.splits.train.images.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("layout", "sizes", "told"),
    [
        ({"a": 20, "b": 10}, [24, 3, 3], "no train and no val and no test: all images were split"),
        ({"train/a": 20, "train/b": 10}, [24, 3, 3], "no val and no test: all images were split"),
        ({"train/a": 4, "train/b": 2, "test/a": 6, "test/b": 4}, [6, 5, 5], "no val: its test folder was halved"),
        ({"train/a": 4, "valid/a": 6, "valid/b": 4}, [4, 5, 5], "no test: its val folder was halved"),
    ],
)
def test_missing_splits_are_cut_out_stratified_seeded_and_said(make, tmp_path, caplog, layout, sizes, told):
    caplog.set_level(logging.INFO)
    root = draw(tmp_path / "own", layout)
    splits = make(root).splits
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == sizes
    assert told in caplog.text
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
    assert list(config.class_names) == ["A", "a", "b", "c"]
    with pytest.raises(UserError, match="no folder"):
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
    assert decode(tmp_path / "deep.png", 1)[0].tolist() == (deep >> 8).tolist()
    Image.new("RGB", (4, 4), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", 3)[:, 0, 0].tolist() == [10, 20, 30]
    Image.new("RGBA", (4, 4), (10, 20, 30, 128)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_unreadable_files_are_all_named_or_left_out(make, tmp_path, caplog):
    root = draw(tmp_path / "own", {"train/a": 3, "val/a": 1, "test/a": 1})
    (root / "train" / "a" / "01.png").write_bytes(b"no image")
    (root / "test" / "a" / "zz.jpg").write_bytes(b"")
    with pytest.raises(UserError) as told:
        _ = make(root).splits
    assert "2 of 6 image files cannot be read" in str(told.value)
    assert "01.png" in str(told.value)
    assert "zz.jpg" in str(told.value)
    assert "data.skip_unreadable=true" in str(told.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    splits = make(root, skip_unreadable=True).splits
    assert splits.train.ids.tolist() == [0, 2]
    assert splits.test.ids.tolist() == [4]
    assert "They are left out" in caplog.text


def test_second_read_takes_the_cache_and_another_size_does_not(make, tmp_path, monkeypatch):
    root = draw(tmp_path / "own", {"train/a": 3, "val/a": 1, "test/a": 1})
    first = make(root, size=8).splits
    calls: list[int] = []
    real = folder.read_images
    monkeypatch.setattr(folder, "read_images", lambda *given: (calls.append(given[1]), real(*given))[1])
    assert torch.equal(make(root, size=8).splits.train.images, first.train.images)
    assert calls == []
    _ = make(root, size=9).splits
    Image.new("RGB", (10, 8), (255, 255, 255)).save(root / "train" / "a" / "00.png")
    assert make(root, size=8).splits.train.images[0].min() == 255
    assert calls == [9, 8]


def test_other_files_are_passed_over(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 2, "val/a": 1, "test/a": 1, "train/.hidden": 1})
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / ".DS_Store").write_text("x")
    assert len(make(root).splits.train) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": 2}, "data.channels=2"),
        ({"size": 0}, "data.size=0"),
        ({"fit": "corp"}, "Did you mean 'crop'"),
        ({"shares": {"train": 1.0, "val": 0.0, "test": 0.5}}, "data.shares"),
    ],
)
def test_wrong_options(make, tmp_path, options, told):
    root = draw(tmp_path / "own", {"train/a": 1, "val/a": 1, "test/a": 1})
    with pytest.raises(UserError, match=told):
        make(root, **options)


def test_missing_and_empty_folders(make, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        make("nowhere")
    (tmp_path / "own" / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no image files in class folders"):
        make(tmp_path / "own")
    with pytest.raises(UserError, match="no images under train/"):
        _ = make(draw(tmp_path / "other", {"val/a": 1, "test/a": 1})).splits
    with pytest.raises(UserError, match=r"its 2 images are too few .* none is left for val"):
        _ = make(draw(tmp_path / "few", {"a": 2})).splits


def test_more_than_memory_holds_is_refused_before_reading(make, tmp_path):
    root = draw(tmp_path / "own", {"train/a": 1, "val/a": 1, "test/a": 1})
    with pytest.raises(UserError, match="GiB of memory are free"):
        _ = make(root, size=10_000_000).splits

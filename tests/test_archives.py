"""Archives as downloaded: unpacked once, and never outside their folder."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data import archives
from emodissect.data.archives import unpacked
from emodissect.data.fer2013 import Fer2013
from emodissect.data.folder import ImageFolder, class_folders

LAYOUT = {"train/a": 3, "train/b": 2, "test/a": 2, "test/b": 2}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "png")
    return buffer.getvalue()


def faces(prefix: str = "") -> dict[str, bytes]:
    names = [f"{prefix}{folder}/{n}.png" for folder, count in LAYOUT.items() for n in range(count)]
    return {name: png(shade) for shade, name in enumerate(names)}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    mode = {".tar": "w", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w:gz")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("f.zip", zipped),
        ("f.tar", tarred),
        ("f.tar.gz", tarred),
        ("f.TGZ", tarred),
        ("f.tar.xz", tarred),
        ("f.tar.bz2", tarred),
    ],
)
@pytest.mark.parametrize("prefix", ["", "archive/images/"])
def test_an_archive_of_folders_is_read_as_the_folder(name: str, make: Callable, prefix: str, tmp_path: Path) -> None:
    junk = {"__MACOSX/train/a/._0.png": b"x", f"{prefix}train/a/notes.docx": b"x"}
    path = make(tmp_path / name, faces(prefix) | junk)
    data = ImageFolder(path=path, cache_dir=tmp_path / "cache", size=4)
    assert data.class_names == ("a", "b")
    assert data.splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.origin(torch.tensor([0])) == ["train/a/0.png"]
    assert class_folders(str(path), None, str(tmp_path / "cache")) == ["a", "b"]
    assert not list((tmp_path / "cache").rglob("*.docx"))


def fer2013_csv() -> bytes:
    rows = [f"{row % 7},{' '.join([str(row)] * 2304)},{use}" for row, use in
            enumerate(np.repeat(["Training", "PublicTest", "PrivateTest"], 7))]  # fmt: skip
    return "\n".join(["emotion,pixels,Usage", *rows]).encode()


def test_fer2013_as_kaggle_ships_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tarred(tmp_path / "fer2013.tar.gz", {"fer2013/fer2013.csv": fer2013_csv(), "fer2013/README": b"x"})
    zipped(tmp_path / "challenge.zip", {"icml_face_data.csv": fer2013_csv(), "train.csv": b"x", "fer2013.tar.gz": b"x"})
    (tmp_path / "fer2013.csv.gz").write_bytes(gzip.compress(fer2013_csv()))
    for name in ("fer2013.tar.gz", "challenge.zip", "fer2013.csv.gz"):
        splits = Fer2013(path=tmp_path / name, cache_dir=cache).splits
        assert splits.val.images[:, 0, 0, 0].tolist() == list(range(7, 14))


@pytest.mark.parametrize(
    "name", ["../outside.png", "/outside.png", "a/../../outside.png", "..\\outside.png", "C:/x.png"]
)
@pytest.mark.parametrize(("ending", "make"), [("zip", zipped), ("tar", tarred)])
def test_a_member_that_would_lie_outside_is_refused(name: str, ending: str, make: Callable, tmp_path: Path) -> None:
    path = make(tmp_path / f"f.{ending}", {name: png(0)})
    with pytest.raises(UserError, match="would be written outside the folder"):
        unpacked(path, Cache(tmp_path / "deep" / "cache"))
    assert not list(tmp_path.rglob("outside.png"))
    assert not list((tmp_path / "deep").rglob("files"))


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "l.png"), (tarfile.LNKTYPE, "h.png"), (tarfile.FIFOTYPE, "p.png"),
                           (tarfile.CHRTYPE, "d.png")):  # fmt: skip
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(about)
        about = tarfile.TarInfo("a.png")
        about.size = len(png(1))
        archive.addfile(about, io.BytesIO(png(1)))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        link = zipfile.ZipInfo("l.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret.png"))
        archive.writestr("a.png", png(1))
    for name in ("f.tar", "f.zip"):
        folder = unpacked(tmp_path / name, Cache(tmp_path / "cache"))
        assert [item.name for item in folder.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["f.zip", "f.tar.gz", "f.csv.gz"])
def test_bombs_end_early(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_ALWAYS", 1_000_000)
    content = bytes(50_000_000)
    if name == "f.csv.gz":
        (tmp_path / name).write_bytes(gzip.compress(content))
    else:
        {"f.zip": zipped, "f.tar.gz": tarred}[name](tmp_path / name, {"a.png": content})
    with pytest.raises(UserError, match="more than 200 times its own size"):
        unpacked(tmp_path / name, Cache(tmp_path / "cache"))
    assert sum(item.stat().st_size for item in (tmp_path / "cache").rglob("*") if item.is_file()) < 1_000


def test_a_tar_that_hides_its_bulk_in_what_is_passed_over_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_ALWAYS", 1_000_000)
    tarred(tmp_path / "f.tar.gz", {"bulk.bin": bytes(50_000_000), "a.png": png(0)})
    with pytest.raises(UserError, match="refused: it unpacks to more than"):
        unpacked(tmp_path / "f.tar.gz", Cache(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["f.zip", "f.tar.gz", "f.csv.gz"])
def test_damage_is_one_message(name: str, tmp_path: Path) -> None:
    if name == "f.csv.gz":
        (tmp_path / name).write_bytes(gzip.compress(np.random.default_rng(0).bytes(5000)))
    else:
        {"f.zip": zipped, "f.tar.gz": tarred}[name](tmp_path / name, faces())
    whole = (tmp_path / name).read_bytes()
    cut, flipped = whole[: len(whole) // 2], bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (cut, b"no archive", b"", bytes(flipped)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"Download it again|Unpack it"):
            unpacked(tmp_path / name, Cache(tmp_path / "cache"))


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "f.zip", {"a.png": png(0)}).read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    (tmp_path / "f.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"encrypted.*Unpack it"):
        unpacked(tmp_path / "f.zip", Cache(tmp_path / "cache"))

"""Readers of the formats that FER2013 is distributed in: Kaggle's CSVs, class folders, .npz."""

from __future__ import annotations

import csv
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8

from emodissect.core.errors import UserError, nearest
from emodissect.core.progress import tracked
from emodissect.core.spelling import class_key
from emodissect.core.tensor_files import is_zip
from emodissect.data.class_folders import deeper_folders, find_images
from emodissect.data.decoding import read_images
from emodissect.data.ferplus import VOTED_ON
from emodissect.data.parts import stratified_parts

CLASS_NAMES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
USAGES = ("Training", "PublicTest", "PrivateTest")
SIDE = 48
_LABEL_OF = {spelling: label for label, name in enumerate(CLASS_NAMES) for spelling in (class_key(name), str(label))}
_USAGE_OF = {class_key(name): place for place, name in enumerate(USAGES)}
_ARRAYS = ("pixels", "labels", "usage", "class_names", "usage_names", "ferplus_votes", "ferplus_names")
_ROWS_AT_A_TIME = 2000
LARGEST = 2**32  # maximum unpacked bytes of an .npz


@dataclass(frozen=True)
class FerRows:
    """FER2013 as read from a file.

    Attributes:
        pixels: grey.
        labels: in FER2013's class order.
        usage: 0 Training, 1 PublicTest, 2 PrivateTest.
        votes: of FER+, columns as in ``ferplus.VOTED_ON``; None if the file has none.
        files: the file of each image, for folders.
    """

    pixels: UInt8[np.ndarray, "image 48 48"]
    labels: UInt8[np.ndarray, " image"]
    usage: UInt8[np.ndarray, " image"]
    votes: UInt8[np.ndarray, "image ten"] | None = None
    files: tuple[str, ...] = ()


def read_csv(path: Path) -> FerRows:
    """Read ``fer2013.csv`` or ``icml_face_data.csv``: columns emotion, pixels, Usage, in any order, padded or not.

    Raises:
        UserError: a missing column or an invalid row; names the file, the line and the fault.
    """
    columns = _csv_columns(path)
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    usages: list[np.ndarray] = []
    try:
        for table in _in_pieces(path):
            if table.empty:
                continue
            table = table.rename(columns={given: name for name, given in columns.items()})
            label = table["emotion"].str.strip().map({str(known): known for known in range(7)})
            usage = table["usage"].str.strip().str.lower().map(_USAGE_OF)
            if label.isna().any() or usage.isna().any():
                raise ValueError("labels or usage")
            pixels.append(_parsed(table["pixels"].tolist()))
            labels.append(label.to_numpy(dtype=np.uint8))
            usages.append(usage.to_numpy(dtype=np.uint8))
    except (ValueError, KeyError, AttributeError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(_csv_fault(path, columns) or f"{path} cannot be read as a CSV file: {error}") from error
    if not labels:
        raise UserError(f"{path} has no images, only a header.")
    return FerRows(np.concatenate(pixels), np.concatenate(labels), np.concatenate(usages))


def read_npz(path: Path) -> FerRows:
    """Read an ``.npz`` with ``pixels`` (48 x 48 or flat), ``labels``, ``usage`` and, optionally, ``ferplus_votes``.

    Labels and usage are numbers or names. ``class_names``, ``usage_names`` and ``ferplus_names`` declare another
    order.

    Raises:
        UserError: an array is missing, or has an invalid shape or value.
    """
    try:
        require_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files if name in _ARRAYS}
            there = ", ".join(arrays.files)
    except Exception as error:  # zip, zlib and numpy each raise their own
        raise UserError(f"{path} cannot be read as an .npz file: {error}") from error
    missing = [name for name in ("pixels", "labels", "usage") if name not in given]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it has {there}. See docs/data.md for the format.")
    pixels = given["pixels"]
    if pixels.dtype != np.uint8 or not pixels.ndim or pixels.size != len(pixels) * SIDE * SIDE:
        raise UserError(f"{path}: pixels is {pixels.dtype} {pixels.shape}; uint8 (image, 48, 48) is needed.")
    labels = _coded(path, "labels", given["labels"], given.get("class_names", np.array(CLASS_NAMES)), _LABEL_OF)
    usage = _coded(path, "usage", given["usage"], given.get("usage_names", np.array(USAGES)), _USAGE_OF)
    votes = _votes(path, given)
    lengths = {"pixels": len(pixels), "labels": len(labels), "usage": len(usage)}
    lengths |= {} if votes is None else {"ferplus_votes": len(votes)}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{path}: the arrays differ in length: {lengths}.")
    return FerRows(pixels.reshape(-1, SIDE, SIDE), labels, usage, votes)


def require_unpacked_size(path: Path, most: int = LARGEST) -> None:
    """Raise ValueError for a zip archive that declares more than ``most`` unpacked bytes.

    The declared size is an upper bound, because Python stops unpacking there.
    """
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
        if size > most:
            raise ValueError(f"it unpacks to {size / 2**30:,.1f} GiB; FER2013 has 0.08")


def _votes(path: Path, given: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "image ten"] | None:
    votes = given.get("ferplus_votes")
    if votes is None:
        return None
    names = [str(name) for name in given.get("ferplus_names", np.array(VOTED_ON))]
    absent = [name for name in VOTED_ON if name not in names]
    if absent:
        raise UserError(f"{path}: ferplus_names lacks {', '.join(absent)}.")
    counts = votes.ndim == 2 and votes.shape[1] == len(names) and votes.dtype.kind in "iuf"
    if not counts or not ((votes >= 0) & (votes <= 255) & (votes == np.floor(votes))).all():
        raise UserError(
            f"{path}: ferplus_votes is {votes.dtype} {votes.shape}; counts from 0 to 255, (image, {len(names)}), are "
            "needed."
        )
    return votes[:, [names.index(name) for name in VOTED_ON]].astype(np.uint8)


def read_folders(root: Path, split_seed: int) -> tuple[FerRows, str]:
    """Read folders ``train/<class>``, ``test/<class>`` and, optionally, ``val/<class>``; also returns how val was made.

    Without val, half of test becomes PublicTest (val), the other half PrivateTest (test), class by class in a seeded
    order. Images are numbered by split, class folder and path.

    Raises:
        UserError: a class folder that is not one of FER2013's, no train or no test folder, unreadable images.
    """
    found = find_images(root).images
    splits = {image.split for image in found}
    folders = {image.class_name for image in found}
    unknown = sorted(folder for folder in folders if class_key(folder) not in _LABEL_OF)
    if unknown and splits != {None}:
        raise UserError(
            f"{root} has a class folder '{unknown[0]}'. {nearest(unknown[0], CLASS_NAMES)} For other classes use "
            "data=image_folder."
        )
    if not {"train", "test"} <= splits:
        meant = "".join(f" Did you mean data.path={folder}?" for folder in deeper_folders(root)[:1])
        raise UserError(
            f"{root} has images under {sorted(str(s) for s in splits if s) or 'no split folder'}; train/<class>/ and "
            f"test/<class>/ are needed.{meant} For a folder with only class folders use data=image_folder."
        )
    files = [image.path for image in found]
    advice = "Repair or remove them, or download the set again."
    read = [image for image in read_images(files, SIDE, 1, what="Reading FER2013", advice=advice) if image is not None]
    labels = np.array([_LABEL_OF[class_key(image.class_name)] for image in found], dtype=np.uint8)
    usage = np.array([("train", "val", "test").index(str(image.split)) for image in found], dtype=np.uint8)
    note = ""
    if "val" not in splits:
        rows = np.flatnonzero(usage == 2)
        val, test = stratified_parts(torch.from_numpy(labels[rows].astype(np.int64)), (0.5, 0.5), split_seed)
        usage[rows[val.numpy()]] = 1
        note = (
            f"{root} has no validation images: the {len(rows):,} of its test folder were split into {len(val):,} for "
            f"validation and {len(test):,} for test, class by class, seed {split_seed}. They are not Kaggle's "
            "PublicTest and PrivateTest."
        )
    names = tuple(path.relative_to(root).as_posix() for path in files)
    return FerRows(torch.cat(read).numpy(), labels, usage, None, names), note


def _csv_columns(path: Path) -> dict[str, str]:
    """Needed column -> its name in the file."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    columns = {name.strip().lower(): name for name in header}
    missing = [name for name in ("emotion", "pixels", "usage") if name not in columns]
    if missing:
        contest = (
            " This looks like the contest's train.csv or test.csv; use fer2013.csv." if "pixels" in columns else ""
        )
        line = ", ".join(name.strip() for name in header)[:200] or "nothing"
        found = "".join(letter if letter.isprintable() else "?" for letter in line)
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: its first line has {found}.{contest}")
    return {name: columns[name] for name in ("emotion", "pixels", "usage")}


def _in_pieces(path: Path) -> Iterator[pd.DataFrame]:
    size = path.stat().st_size
    # about 8.4 kB per row; only an estimate for the progress bar
    pieces = pd.read_csv(
        path,
        dtype=str,
        keep_default_na=False,
        chunksize=_ROWS_AT_A_TIME,
        encoding="utf-8-sig",
        encoding_errors="replace",
    )
    yield from tracked(pieces, "Reading FER2013", max(1, round(size / 8390 / _ROWS_AT_A_TIME)))


def _parsed(texts: list[str]) -> UInt8[np.ndarray, "image 48 48"]:
    """Rows of 2,304 numbers each. Raises ValueError without a location; :func:`_csv_fault` finds it."""
    for text in texts:
        # single separators between numbers, as in Kaggle's files, are the fast path
        if text.count(" ") != SIDE * SIDE - 1 and len(text.split()) != SIDE * SIDE:
            raise ValueError("pixel count")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's signal that a string is not a number
        try:
            # 64 bits: too large a number would wrap around in 32 bits, but saturates in 64
            values = np.fromstring(" ".join(texts), dtype=np.int64, sep=" ")
        except DeprecationWarning as note:
            raise ValueError("not a number") from note
    if values.size != len(texts) * SIDE * SIDE or values.min() < 0 or values.max() > 255:
        raise ValueError("pixel count or range")
    return values.astype(np.uint8).reshape(-1, SIDE, SIDE)


def _csv_fault(path: Path, columns: dict[str, str]) -> str:
    """A description of the first invalid row with its line number; empty if there is none."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        header = next(rows)
        places = {name: header.index(given) for name, given in columns.items()}
        try:
            for row in rows:
                wrong = _row_fault(row, len(header), places)
                if wrong:
                    return (
                        f"{path}, line {rows.line_num}: {wrong} Repair or remove the line, or download the file again."
                    )
        except csv.Error as error:
            return f"{path}, line {rows.line_num}: {error}."
    return ""


def _row_fault(row: list[str], width: int, places: dict[str, int]) -> str:
    if not row:
        return ""
    if len(row) != width:
        return f"the row has {len(row)} columns, the header {width}."
    label, usage = row[places["emotion"]].strip(), row[places["usage"]].strip()
    if label not in {str(known) for known in range(7)}:
        return f"the label is '{label[:40]}'; FER2013's labels are 0 to 6."
    if usage.lower() not in _USAGE_OF:
        return f"the usage is '{usage[:40]}'. {nearest(usage[:40], USAGES)}"
    numbers = row[places["pixels"]].split()
    for place, number in enumerate(numbers):
        if not (number.isascii() and number.isdigit() and int(number) <= 255):
            return f"pixel {place + 1} is '{number[:40]}'; pixels are integers from 0 to 255."
    if len(numbers) != SIDE * SIDE:
        return f"the row has {len(numbers):,} pixels; {SIDE * SIDE:,} (48 x 48) are needed."
    return ""


def _coded(path: Path, array: str, given: np.ndarray, names: Iterable[object], code: dict[str, int]) -> np.ndarray:
    """Indices into ``names``, or names, converted to FER2013's numbers."""
    own = [str(name) for name in names]
    texts = given.astype(str) if given.dtype.kind in "US" else None
    for name in own if texts is None else sorted(set(texts.tolist())):
        if class_key(name) not in code:
            raise UserError(f"{path}: {array} has the name '{name}'. {nearest(name, code)}")
    if texts is not None:
        return np.array([code[class_key(text)] for text in texts.tolist()], dtype=np.uint8)
    if (
        given.ndim != 1
        or given.dtype.kind not in "iu"
        or (given.size and not 0 <= given.min() <= given.max() < len(own))
    ):
        raise UserError(
            f"{path}: {array} is {given.dtype} {given.shape}; one number from 0 to {len(own) - 1} per image is needed."
        )
    return np.array([code[class_key(name)] for name in own], dtype=np.uint8)[given]

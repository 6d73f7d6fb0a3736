"""Decoding of image files to uint8 tensors, in threads; unreadable files are reported."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from emodissect.core.errors import UserError, reason
from emodissect.core.progress import tracked

log = logging.getLogger(__name__)

FITS = ("crop", "stretch")
ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png"),
    *(".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Extensions of the image formats that are read, by Pillow."""

_MODES = {1: "L", 3: "RGB"}
_AT_A_TIME = 256  # files that are decoded ahead of the consumer; limits memory
_DARK = 16  # of 255: no photo has such a low maximum, except 12 bits stored as 16


def read_images(
    files: Sequence[Path],
    size: int,
    channels: int,
    fit: str = "crop",
    value_range: float | None = None,
    skip_unreadable: bool = False,
    what: str = "Reading images",
    advice: str = "Repair or remove them, or leave them out with data.skip_unreadable=true.",
) -> Iterator[UInt8[Tensor, "channel size size"] | None]:
    """Each file's image, in order; None for files that cannot be decoded, which are reported at the end.

    Args:
        channels: 1 for grey, 3 for RGB; images are converted.
        fit: ``crop`` resizes the shorter side and crops the centre; ``stretch`` changes the aspect ratio.
        value_range: see :func:`decode`.
        skip_unreadable: report files that cannot be decoded in a warning instead of an error.

    Raises:
        UserError: at the end, listing the files that cannot be decoded.
    """
    faults: list[str] = []
    decoded = tracked(decoded_images(files, size, channels, fit, value_range), what, len(files))
    for file, image in zip(files, decoded, strict=True):
        if isinstance(image, str):
            faults.append(f"{file} ({image})")
        yield None if isinstance(image, str) else image
    if not faults:
        return
    named = "".join(f"\n  {fault}" for fault in faults[:20])
    more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
    text = f"{len(faults)} of {len(files):,} image files cannot be read:{named}{more}"
    if not skip_unreadable:
        raise UserError(f"{text}\n{advice}")
    log.warning("%s\nThey are skipped.", text)


def decoded_images(
    files: Sequence[Path], size: int, channels: int, fit: str = "crop", value_range: float | None = None
) -> Iterator[UInt8[Tensor, "channel size size"] | str]:
    """Each file's image at ``size``, in order, or the reason why it cannot be read; decoded ahead in threads."""
    read = partial(_read_or_fault, size=size, channels=channels, fit=fit, value_range=value_range)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        ahead = threads.map(read, files[:_AT_A_TIME])
        for start in range(0, len(files), _AT_A_TIME):
            now, end = ahead, start + _AT_A_TIME
            ahead = threads.map(read, files[end : end + _AT_A_TIME])
            yield from now


def decode(path: Path, channels: int, value_range: float | None = None) -> UInt8[Tensor, "channel height width"]:
    """One file's pixels, grey or RGB, rotated according to EXIF; of several frames the first.

    Pillow is used for all formats, because libpng, as used by torchvision, can end the process on a damaged PNG. PNG
    checksums are verified; other formats have none.

    Values of more than 8 bits are scaled to 0..255 by the maximum of their type: 16-bit integers by 65,535, 12-bit
    TIFFs by 4,095, floats in [0, 1] by 1.

    Args:
        value_range: value of white in grey files of 16 or more bits, instead of the maximum of their type.

    Raises:
        OSError, ValueError, SyntaxError: the file cannot be read, or its value range is unknown.
    """
    content = _content(path)
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as opened:
            opened.verify()
    mode = _MODES[channels]
    with Image.open(io.BytesIO(content)) as opened:
        if opened.format == "JPEG" and mode == "L" and opened.mode == "RGB":
            opened.draft("L", None)  # the stored luma channel
        bits = _bits(opened, content)
        opened.load()
        white = value_range or (_white(opened, bits) if opened.mode.startswith(("I", "F")) else None)
        pixels = torch.from_numpy(np.array(_in_mode(_upright(opened), mode, white)))
    if bits > 8 and value_range is None and 0 < int(pixels.max()) <= _DARK:
        raise ValueError(
            "it has 16 bits per value but uses at most 12: data.value_range=4095 scales grey images; else convert it "
            "to 8 bits"
        )
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def fitted(
    image: UInt8[Tensor, "channel height width"], size: int, fit: str = "crop"
) -> UInt8[Tensor, "channel size size"]:
    """The image at ``size`` x ``size`` pixels (antialiased bilinear); unchanged if it already has that size."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    if fit == "stretch":
        return transforms.resize(image, [size, size], antialias=True)
    shorter = min(height, width)
    scaled = [max(size, round(height * size / shorter)), max(size, round(width * size / shorter))]
    return transforms.center_crop(transforms.resize(image, scaled, antialias=True), [size, size])


def _content(path: Path) -> bytes:
    """The bytes of a regular file; anything else is rejected before opening it, since a pipe would block forever."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError("a link to a file that does not exist" if path.is_symlink() else "no such file") from None
    if not stat.S_ISREG(kind):
        raise ValueError("a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device, not a file")
    try:
        content = path.read_bytes()
    except PermissionError:
        raise ValueError("no permission to read it") from None
    if not content:
        raise ValueError("the file is empty")
    return content


def _bits(opened: Image.Image, content: bytes) -> int:
    """Bits per value, if the format declares them; else 8."""
    if opened.format == "PNG":
        return content[24]
    if opened.format == "TIFF":
        with suppress(Exception):  # a tag of a wrong type
            return int(max(opened.tag_v2[258]))  # type: ignore[attr-defined]
    return 8


def _upright(opened: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(opened)
    except Exception:  # broken EXIF does not mean broken pixels
        return opened


def _in_mode(opened: Image.Image, mode: str, white: float | None) -> Image.Image:
    """The image as 8-bit grey or RGB; Pillow's own conversion clips values above 255, or fails."""
    if opened.mode.startswith(("I", "F")) and white:
        values = np.asarray(opened, dtype=np.float64) * (255 / white)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not numbers")
        return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert(mode)
    if opened.mode == "LAB":
        srgb = ImageCms.profileToProfile(
            opened, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert srgb is not None
        return srgb.convert(mode)
    return opened.convert(mode)


def _white(opened: Image.Image, bits: int) -> float:
    if opened.mode.startswith("I;16"):
        return 4095.0 if bits == 12 else 65535.0
    if opened.format == "PPM":  # which Pillow expands to 16 bits
        return 65535.0
    values = np.asarray(opened)
    if opened.mode == "F" and float(np.nanmin(values)) >= 0 and float(np.nanmax(values)) <= 1:
        return 1.0
    kind = "floats outside [0, 1]" if opened.mode == "F" else "32-bit integers"
    raise ValueError(f"it holds {kind}, whose white value is unknown: give data.value_range=<largest value>")


def _read_or_fault(path: Path, size: int, channels: int, fit: str, value_range: float | None) -> Tensor | str:
    try:
        return fitted(decode(path, channels, value_range), size, fit)
    except Exception as error:  # a broken file can make a decoder raise anything
        return reason(error)

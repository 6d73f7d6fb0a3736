"""Image files to uint8 tensors: decoded in threads, resized, unreadable ones named."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2 import functional as transforms

from emodissect.core.errors import UserError
from emodissect.core.progress import tracked

log = logging.getLogger(__name__)

FITS = ("crop", "stretch")
_MODES = {1: (ImageReadMode.GRAY, "L"), 3: (ImageReadMode.RGB, "RGB")}


def read_images(
    files: Sequence[Path],
    size: int,
    channels: int,
    fit: str = "crop",
    skip_unreadable: bool = False,
    what: str = "Reading images",
    advice: str = "Mend or remove them, or leave them out with data.skip_unreadable=true.",
) -> tuple[UInt8[Tensor, "image channel size size"], Bool[Tensor, " image"]]:
    """All files as one tensor, and which of them could be read (the rows of the others are 0).

    Args:
        files: in the order of the rows.
        size: pixels a side.
        channels: 1 for grey, 3 for RGB, whatever the files hold.
        fit: ``crop`` resizes the shorter side and cuts the middle out; ``stretch`` changes the proportions.
        skip_unreadable: go on where files cannot be decoded, and log their names.
        what: the words beside the progress bar.
        advice: what the error says to do about files that cannot be decoded.

    Raises:
        UserError: files that cannot be decoded, all of them named in one message; more images than memory holds.
    """
    needed, free = len(files) * channels * size * size, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise UserError(
            f"{len(files):,} images of {channels} x {size} x {size} take {needed / 2**30:.1f} GiB; {free / 2**30:.1f} "
            "GiB of memory are free. Give a smaller data.size, or data.channels=1."
        )
    images = torch.zeros(len(files), channels, size, size, dtype=torch.uint8)
    readable = torch.ones(len(files), dtype=torch.bool)
    faults: list[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        decoded = threads.map(partial(_read_or_fault, size=size, channels=channels, fit=fit), files)
        for row, image in enumerate(tracked(decoded, what, len(files))):
            if isinstance(image, Tensor):
                images[row] = image
            else:
                readable[row] = False
                faults.append(f"{files[row]} ({image})")
    if faults:
        named = "".join(f"\n  {fault}" for fault in faults[:20])
        more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
        told = f"{len(faults)} of {len(files):,} image files cannot be read:{named}{more}"
        if not skip_unreadable:
            raise UserError(f"{told}\n{advice}")
        log.warning("%s\nThey are left out.", told)
    return images, readable


def decode(path: Path, channels: int) -> UInt8[Tensor, "channel height width"]:
    """One file's pixels, grey or RGB, turned upright as its EXIF says; by torchvision, else by Pillow.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot read it either.
    """
    mode, pillow_mode = _MODES[channels]
    if path.suffix.lower() in (".jpeg", ".jpg", ".png"):  # torchvision's other decoders do not turn colour into grey
        with suppress(RuntimeError):
            image = decode_image(read_file(str(path)), mode, apply_exif_orientation=True)
            if image.dtype == torch.uint16:
                image = (image.to(torch.int32) >> 8).to(torch.uint8)
            if image.ndim == 3 and len(image) == channels:
                return image
    with Image.open(path) as opened:
        pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(opened).convert(pillow_mode)))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def fitted(
    image: UInt8[Tensor, "channel height width"], size: int, fit: str = "crop"
) -> UInt8[Tensor, "channel size size"]:
    """The image at ``size`` x ``size`` pixels (antialiased bilinear); unchanged where it has that size already."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    if fit == "stretch":
        return transforms.resize(image, [size, size], antialias=True)
    shorter = min(height, width)
    scaled = [max(size, round(height * size / shorter)), max(size, round(width * size / shorter))]
    return transforms.center_crop(transforms.resize(image, scaled, antialias=True), [size, size])


def _read_or_fault(path: Path, size: int, channels: int, fit: str) -> Tensor | str:
    try:
        return fitted(decode(path, channels), size, fit)
    except Exception as error:  # a broken file can make a decoder raise anything
        return str(error).splitlines()[0] if str(error) else type(error).__name__

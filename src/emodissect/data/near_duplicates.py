"""Near-duplicate images: frames of one video, recompressed, brighter or smaller copies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64
from torch.nn import functional as F

from emodissect.data.images import ImageSet

DISTANCE = 10  # bits of 64 that may differ
CORRELATION = 0.97  # of the two images at 16 x 16 pixels
_SIDE = 16
_PAIRS = 32_000_000  # pairs compared at once, 256 MB


def difference_hashes(images: ImageSet) -> tuple[UInt64[np.ndarray, " image"], Float32[np.ndarray, "image thumbnail"]]:
    """A 64-bit perceptual hash of each image (dHash, Krawetz 2013), and its standardized grey 16 x 16 thumbnail.

    A bit of the hash tells whether a pixel of the image resized to 9 x 8 is brighter than its left neighbour.
    """
    hashes, thumbnails = [], []
    for start in range(0, len(images), 1024):
        grey = images.images[start : start + 1024].float().mean(dim=1, keepdim=True)
        small = F.interpolate(grey, size=(8, 9), mode="bilinear", antialias=True, align_corners=False)[:, 0]
        bits = (small[..., 1:] > small[..., :-1]).flatten(1).numpy()
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
        thumbnail = F.interpolate(grey, size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        thumbnail = thumbnail.flatten(1) - thumbnail.flatten(1).mean(dim=1, keepdim=True)
        thumbnails.append(F.normalize(thumbnail, dim=1).numpy())
    if not hashes:
        return np.empty(0, dtype=np.uint64), np.empty((0, _SIDE**2), dtype=np.float32)
    return np.concatenate(hashes), np.concatenate(thumbnails)


def near_pairs(
    hashes: UInt64[np.ndarray, " image"],
    thumbnails: Float32[np.ndarray, "image thumbnail"],
    compared: Bool[np.ndarray, " image"],
) -> Int64[np.ndarray, "pair 2"]:
    """Pairs (earlier, later) whose hashes differ in at most 10 bits and whose thumbnails correlate at .97 or more.

    All pairs are compared: time is quadratic in the number of images. Flipped and rotated copies are not found.

    Args:
        hashes, thumbnails: from :func:`difference_hashes`.
        compared: mask of the images to compare; blank images would all match.

    >>> import torch
    >>> face = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 200
    >>> other = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 200
    >>> images = torch.cat([face, other, face + 9]).to(torch.uint8)
    >>> found = difference_hashes(ImageSet(images, torch.zeros(3).long(), torch.arange(3)))
    >>> near_pairs(*found, np.ones(3, dtype=bool)).tolist()
    [[0, 2]]
    """
    rows = np.flatnonzero(compared)
    hashes, thumbnails = hashes[rows], thumbnails[rows]
    found = [np.empty((0, 2), dtype=np.int64)]
    step = max(1, _PAIRS // max(1, len(rows)))
    for start in range(0, len(rows), step):
        later = hashes[start:]
        apart = np.bitwise_count(hashes[start : start + step, None] ^ later[None])
        first, second = np.nonzero(apart <= DISTANCE)
        first, second = first[second > first] + start, second[second > first] + start
        for part in np.array_split(np.arange(len(first)), len(first) // 100_000 + 1):
            alike = np.einsum("pt,pt->p", thumbnails[first[part]], thumbnails[second[part]]) >= CORRELATION
            found.append(np.stack([rows[first[part][alike]], rows[second[part][alike]]], axis=1))
    return np.concatenate(found)

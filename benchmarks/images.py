"""Peak memory and images per second of a training and a probe pass over images in memory and in a file.

python benchmarks/images.py [--counts 10000 30000 100000] [--size 224] [--folder <where the file goes>]

Generated images of 3 x size x size are written in the same format as the decoded images of ``ImageFolder``. Each
measurement runs in its own process, since the peak memory of a process never decreases. For the throughput, one process
holds the same images in memory, in the file, memory-mapped and as JPEGs, and takes batches from them in turn, so that
other load on the machine affects all equally. Rates are medians over batches, by CPU time (user and system) and by
wall time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from emodissect.data.images import ImageSet, image_loader
from emodissect.data.stored_images import ImageWriter, StoredImages
from emodissect.models.preprocessing import Preprocess

BATCH = 64
COMPARED = 3000  # number of images for the throughput comparison


def written(path: Path, count: int, size: int) -> StoredImages:
    """Writes a file of random images: 64 different ones, shifted cyclically, because generating is slower."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8, generator=generator)
    with ImageWriter(path, (3, size, size), count) as writer:
        for row in range(count):
            writer.add(some[row % 64].roll(row // 64, dims=2))
    return StoredImages(path)


def image_set(images: Tensor | StoredImages) -> ImageSet:
    """The images with ids and arbitrary labels."""
    return ImageSet(images, torch.arange(len(images)) % 7, torch.arange(len(images)))


def passed(images: ImageSet, shuffle: bool) -> float:
    """Images per second from a loader."""
    start = time.perf_counter()
    seen = sum(len(batch.images) for batch in image_loader(images, BATCH, shuffle))
    return seen / (time.perf_counter() - start)


def compared(batches: dict[str, Callable[[Tensor], object]], count: int, shuffle: bool) -> dict[str, dict[str, float]]:
    """Images per second of each way to read a batch, in turn: by CPU time and by wall time."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in batches}
    for turn in range(2):
        rows = torch.randperm(count) if shuffle else torch.arange(count)
        for number, wanted in enumerate(rows.split(BATCH)[: count // BATCH]):
            names = list(batches)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                wall, cpu = time.perf_counter(), time.process_time()
                batches[name](wanted)
                if turn:  # the first pass loads files into the page cache
                    times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {
        name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in times.items()
    }
    return {name: {"cpu": BATCH / cpu, "wall": BATCH / wall} for name, (cpu, wall) in medians.items()}


def peak_gib() -> float:
    """Peak resident memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(path: Path) -> dict[str, float]:
    """Runs a training pass and a probe pass over the whole file with a loader."""
    images = image_set(StoredImages(path))
    return {"shuffled": passed(images, True), "in order": passed(images, False), "peak": peak_gib()}


def throughput(path: Path) -> dict[str, dict[str, float]]:
    """Images per second of the same images in memory and in files, with and without a network's preprocessing."""
    count = min(COMPARED, len(StoredImages(path)))
    stored = image_set(StoredImages(path)).subset(range(count))
    held = image_set(stored.images[:])
    shape, start = stored.images.shape, path.stat().st_size - len(StoredImages(path)) * held.images[0].numel()
    mapped = torch.from_numpy(np.memmap(path, np.uint8, "c", start, shape))
    jpegs = [encode_jpeg(smooth_image(shape[-1], row), quality=90) for row in range(BATCH)]
    in_memory, in_file = (image_loader(images, BATCH).dataset for images in (held, stored))
    found: dict[str, dict[str, float]] = {}
    network = Preprocess(None, channels=3, mean=0.5, std=0.25)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "memory": lambda rows: in_memory.__getitems__(rows.tolist()).images,
        "file": lambda rows: in_file.__getitems__(rows.tolist()).images,
        "memory-mapped file": lambda rows: mapped.index_select(0, rows),
        "JPEG": lambda rows: torch.stack([decode_jpeg(jpegs[int(row) % BATCH]) for row in rows]),
    }
    for name, shuffle in (("shuffled", True), ("in order", False)):
        found |= {f"{name}, {way}": rates for way, rates in compared(ways, count, shuffle).items()}
    with_network = {
        "memory": lambda rows: network(ways["memory"](rows)),
        "file": lambda rows: network(ways["file"](rows)),
    }
    rates = compared(with_network, count, True)
    return found | {f"shuffled, with a network's preprocessing, {way}": rate for way, rate in rates.items()}


def smooth_image(size: int, seed: int) -> Tensor:
    """Enlarged coarse noise with a little fine noise: its JPEG is about as large as that of a photograph."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 28, 28, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0] * 255
    return (image + 6 * torch.randn(image.shape, generator=generator)).clamp(0, 255).byte()


def in_a_process(what: str, path: Path) -> dict[str, Any]:
    """Runs a measurement in its own process and returns its result."""
    words = [sys.executable, __file__, "--measure", what, "--file", str(path)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--measure", choices=["memory", "throughput"])
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps({"memory": memory, "throughput": throughput}[given.measure](given.file)))
        return
    print("| images | file | peak memory | images/s shuffled | images/s in order |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "images.npy"
        for count in given.counts:
            path.unlink(missing_ok=True)
            written(path, count, given.size)
            found = in_a_process("memory", path)
            print(
                f"| {count:,} | {path.stat().st_size / 2**30:.1f} GiB | {found['peak']:.2f} GiB | "
                f"{found['shuffled']:,.0f} | {found['in order']:,.0f} |",
                flush=True,
            )
        rates = in_a_process("throughput", path)
    print(f"\nThe same {COMPARED:,} images, batches of {BATCH} in turns, images/s of processor time and of wall time:")
    for name, rate in rates.items():
        print(f"  {name}: {rate['cpu']:,.0f}, {rate['wall']:,.0f}")


if __name__ == "__main__":
    main()

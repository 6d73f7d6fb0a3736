"""Peak memory and images per second of a training and a probe pass over images in memory and in a file.

python benchmarks/images.py [--counts 10000 30000 100000] [--size 224] [--folder <where the file goes>]

Generated images of 3 x size x size are written as ``ImageFolder`` writes decoded ones. Each measurement is a process
of its own, since a process never gives back its peak. For the throughput one process holds both forms of the same
images and takes batches of them in turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from emodissect.data.images import ImageSet, image_loader
from emodissect.data.stored_images import ImageWriter, StoredImages
from emodissect.models.preprocessing import Preprocess

BATCH = 64
COMPARED = 3000  # images that the throughput is compared on


def written(path: Path, count: int, size: int) -> StoredImages:
    """A file of random images; 64 different ones, turned, since drawing them takes longer than writing."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8, generator=generator)
    with ImageWriter(path, (3, size, size), count) as writer:
        for row in range(count):
            writer.add(some[row % 64].roll(row // 64, dims=2))
    return StoredImages(path)


def image_set(images: Tensor | StoredImages) -> ImageSet:
    """The images with ids and made-up labels."""
    return ImageSet(images, torch.arange(len(images)) % 7, torch.arange(len(images)))


def passed(images: ImageSet, shuffle: bool) -> float:
    """Images per second that a loader gives."""
    start = time.perf_counter()
    seen = sum(len(batch.images) for batch in image_loader(images, BATCH, shuffle))
    return seen / (time.perf_counter() - start)


def compared(one: ImageSet, other: ImageSet, shuffle: bool, prepare: Callable[[Tensor], object]) -> tuple[float, float]:
    """Images per second of each, batch by batch in turns, so that both meet the same machine."""
    times = [0.0, 0.0]
    loaders = [iter(image_loader(images, BATCH, shuffle)) for images in (one, other)]
    batches = -(-len(one) // BATCH)
    for number in range(batches):
        for place in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            prepare(next(loaders[place]).images)
            times[place] += time.perf_counter() - start
    return len(one) / times[0], len(one) / times[1]


def peak_gib() -> float:
    """Of this process, all its memory that was resident at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(path: Path) -> dict[str, float]:
    """A training pass and a probe pass over the whole file, as a loader gives it."""
    images = image_set(StoredImages(path))
    return {"shuffled": passed(images, True), "in order": passed(images, False), "peak": peak_gib()}


def throughput(path: Path) -> dict[str, float]:
    """Stored and in-memory images per second, of the loader alone and with a network's preprocessing behind it."""
    stored = image_set(StoredImages(path)).subset(range(min(COMPARED, len(StoredImages(path)))))
    held = image_set(stored.images[:])
    found: dict[str, float] = {}
    network = Preprocess(None, channels=3, mean=0.5, std=0.25)
    for name, shuffle, prepare in (
        ("shuffled, loader alone", True, len),
        ("in order, loader alone", False, len),
        ("shuffled, preprocessed", True, network),
    ):
        file, memory_ = compared(stored, held, shuffle, prepare)
        found |= {f"{name}, file": file, f"{name}, memory": memory_, f"{name}, ratio": file / memory_}
    return found


def in_a_process(what: str, path: Path) -> dict[str, float]:
    """What a measurement gives in a process of its own."""
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
    print(f"\nFile against memory, {COMPARED:,} images, batches of {BATCH} in turns:")
    for name, value in rates.items():
        print(f"  {name}: {value:,.2f}" if "ratio" in name else f"  {name}: {value:,.0f} images/s")


if __name__ == "__main__":
    main()

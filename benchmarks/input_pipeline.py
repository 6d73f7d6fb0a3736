"""Augmented images per second: whole batches at once, compared with single images in worker processes.

    python benchmarks/input_pipeline.py                # the published FER2013 recipe, 8,192 random images

Both apply the same chain (resized crop, shift, mirror, rotation) to 48 x 48 grey images and yield batches of 64. The
alternative is how such code is usually written: a torchvision pipeline on PIL images in a DataLoader with two workers.
They run alternately in one process, and medians over repeats are compared. Workers are started before timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from emodissect.data.images import ImageSet, image_loader
from emodissect.models.augmentation import FlipShift, Khaireddin2021


class PerImage(Dataset[torch.Tensor]):
    """The published chain on one PIL image."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.numpy()
        self.chain = v2.Compose(
            [
                v2.RandomResizedCrop(48, scale=(0.8, 1.2)),
                v2.RandomApply([v2.RandomAffine(0, translate=(0.2, 0.2))], p=0.5),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.RandomRotation(10)], p=0.5),
                v2.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.chain(Image.fromarray(self.images[row, 0]))


def rate(run: Callable[[], object], images: int) -> float:
    """Images per second of one pass."""
    start = time.perf_counter()
    run()
    return images / (time.perf_counter() - start)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    torch.manual_seed(0)
    images = torch.randint(0, 256, (given.images, 1, 48, 48), dtype=torch.uint8)
    held = ImageSet(images, torch.zeros(given.images, dtype=torch.int64), torch.arange(given.images))
    loader = image_loader(held, 64, shuffle=True)
    workers = DataLoader(PerImage(images), 64, shuffle=True, num_workers=2, persistent_workers=True)
    recipe, light = Khaireddin2021(), FlipShift()
    ways: dict[str, Callable[[], object]] = {
        "batched, the recipe": lambda: [recipe(batch.images) for batch in loader],
        "batched, mirror and shift": lambda: [light(batch.images) for batch in loader],
        "one by one in two workers, the recipe": lambda: list(workers),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, run in ways.items():
            value = rate(run, given.images)
            if repeat:  # the first pass warms up and starts the workers
                found[name].append(value)
    medians = {name: round(statistics.median(values)) for name, values in found.items()}
    by_one = medians["one by one in two workers, the recipe"]
    print(
        json.dumps(
            {"images_per_second": medians, "faster": round(medians["batched, the recipe"] / by_one, 2)}, indent=1
        )
    )


if __name__ == "__main__":
    main()

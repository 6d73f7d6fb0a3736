"""Time of the cheap alternatives, the ceiling and 2,000 random edits for `lin2` of the published VGG, on 7,178 images.

    OMP_NUM_THREADS=2 python benchmarks/ladder.py [width]

The weights are random, since the time does not depend on them. The layers before `lin2` are run once and timed
separately. CPU-s are CPU seconds over all threads, which other load on the machine affects less than s, the wall time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from emodissect.data.images import ImageSet
from emodissect.editing.effects import estimate_effects
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.models.inference import Inference
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG
from emodissect.studies.baselines import LearnedScale, RefittedHead, TemperatureAndBiases, ceiling, climb

IMAGES = 3589  # of PublicTest, and as many of PrivateTest


def main(width: float) -> None:
    torch.manual_seed(0)
    inference = Inference(Preprocess(), VGG(width=width).eval())

    def images(seed: int) -> ImageSet:
        pixels = torch.randint(0, 256, (IMAGES, 1, 48, 48), dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(IMAGES) % 7, torch.arange(IMAGES) + seed * IMAGES)

    with timed(f"before the layer, 2 x {IMAGES:,} images"):
        val, test = (EditedLogits(inference, "lin2", images(seed)) for seed in (0, 1))
    with timed("all alternatives and the ceiling"):
        for baseline in (TemperatureAndBiases(), LearnedScale(), RefittedHead()):
            with timed(baseline.name):
                climb([baseline], {"val": lambda: val}, test, test.before, test.before)
        with timed("ceiling"):
            ceiling(test, test.before, test.before)
    with timed("effects from 2,000 random edits"):
        estimate_effects(val, draws=2000)


@contextmanager
def timed(what: str) -> Iterator[None]:
    cpu, clock = time.process_time(), time.perf_counter()
    yield
    print(f"{what}: {time.process_time() - cpu:.1f} CPU-s, {time.perf_counter() - clock:.1f} s", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)

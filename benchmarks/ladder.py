"""How long the ladder, the ceiling and 2,000 random edits take behind `lin2` of the published VGG on 7,178 images.

    python benchmarks/ladder.py [width]

The weights are random: the time does not depend on them. What lies before the layer is run once and timed apart. Times
are seconds of CPU over all threads, which other work on the machine stretches less than the clock's; these follow.
"""

from __future__ import annotations

import sys
import time

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

    began = time.process_time()
    val, test = (EditedLogits(inference, "lin2", images(seed)) for seed in (0, 1))
    print(f"before the layer, 2 x {IMAGES:,} images: {time.process_time() - began:.1f} CPU-s", flush=True)
    total = 0.0
    for baseline in (TemperatureAndBiases(), LearnedScale(), RefittedHead()):
        began = time.process_time()
        (row,) = climb([baseline], {"val": lambda: val}, test, test.before, test.before).to_dict("records")
        seconds = time.process_time() - began
        total += seconds
        print(f"{baseline.name}: {seconds:.1f} CPU-s ({row['seconds']:.1f} s), {row['settled']}", flush=True)
    began = time.process_time()
    ceiling(test, test.before, test.before)
    seconds = time.process_time() - began
    print(f"ceiling: {seconds:.1f} CPU-s")
    print(f"ladder and ceiling behind the cut: {total + seconds:.1f} CPU-s", flush=True)
    began = time.process_time()
    estimate_effects(val, draws=2000)
    print(f"effects from 2,000 random edits: {time.process_time() - began:.1f} CPU-s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)

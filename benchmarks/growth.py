"""How time and memory grow with images, neurons, concepts, layers and grid cells, each over two decades.

    python benchmarks/growth.py                        # about a minute of one core
    python benchmarks/growth.py --axes images cells    # some of them
    python benchmarks/growth.py --small                # the first two points of each, as a smoke test

Each point runs in its own process, forked after the imports, since the peak memory of a process never decreases. It
labels the neurons of a small random network (``emo.dissect`` with soft-WPMI, 1,000 null draws and given concept
scores), or evaluates a grid of edits. One quantity takes the values in ``POINTS``; the others stay at those in
``BASE``. CPU seconds are those of the call, after a small warm-up call. Memory is the peak above the level after the
imports, and includes images and concept scores.
The exponent is the least-squares slope of log seconds (or log MiB) over log size, for all points and for the last
decade, where fixed costs no longer hide the growth.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

import emodissect as emo
from emodissect.data.images import ImageSet
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.rules import Scale
from emodissect.editing.selection import Tau
from emodissect.models.inference import Inference
from emodissect.studies.cells import evaluate_cells, grid

BASE = {"images": 5_000, "neurons": 256, "concepts": 100, "layers": 1, "cells": 72}
POINTS = {
    "images": [1_000, 3_000, 10_000, 30_000, 100_000],
    "neurons": [64, 200, 640, 2_000, 6_400],
    "concepts": [100, 300, 1_000, 3_000, 10_000],
    "layers": [1, 3, 10, 30, 100],
    "cells": [10, 30, 100, 300, 1_000],
}


class Network(nn.Module):
    """A stem followed by any number of parallel layers of equal width; the logits are the mean of their outputs."""

    def __init__(self, layers: int, neurons: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
        self.beside = nn.ModuleList(nn.Linear(64, neurons) for _ in range(layers))
        self.head = nn.Linear(neurons, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.stem(pixels)
        return torch.stack([self.head(layer(hidden).relu()) for layer in self.beside]).mean(0)


def pixels(images: int) -> Tensor:
    return torch.randint(0, 256, (images, 1, 16, 16), dtype=torch.uint8)


def label_neurons(images: int, neurons: int, concepts: int, layers: int) -> None:
    """Runs all of ``emo.dissect`` with given concept scores.

    Neurons and concepts read the same 64 features, so that neurons are significant. A wide layer with only a few
    significant neurons gets more null draws (``similarity.null.draws_to_pass``), and the work would grow in steps.
    """
    network, raw = Network(layers, neurons).eval(), pixels(images)
    with torch.inference_mode():
        features = network.stem(raw.float() / 255)
    scores = 0.2 + 0.03 * (features - features.mean(0)) @ torch.randn(features.shape[1], concepts)
    names = [f"word {number}" for number in range(concepts)]
    emo.dissect(network, raw, names, layers="beside.*", scorer=scores, progress=False)


def evaluate_grid(images: int, neurons: int, cells: int) -> None:
    """Evaluates a grid of thresholds and factors, all of which change the network."""
    network = Network(1, neurons).eval()
    labels = torch.randint(0, 7, (images,))
    given = ImageSet(pixels(images), labels, torch.arange(images))
    table = pd.DataFrame({"layer": "beside.0", "neuron": range(neurons), "similarity": torch.randn(neurons).numpy()})
    rows = max(cells // 10, 1)
    thresholds = [Tau(float(tau)) for tau in np.linspace(-1.5, 1.5, rows)]
    factors = [Scale(factor=1.1 + 0.2 * step) for step in range(cells // rows)]
    logits = EditedLogits(Inference(lambda raw: raw.float() / 255, network), "beside.0", given, 256)
    evaluate_cells(grid(network, ["beside.0"], table, thresholds, factors), {"beside.0": logits})


def point(axis: str, size: int) -> dict[str, float]:
    """CPU seconds, wall seconds and MiB of one point, run in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = BASE | {axis: size}
    names = ("images", "neurons", "cells") if axis == "cells" else ("images", "neurons", "concepts", "layers")
    work: Any = evaluate_grid if axis == "cells" else label_neurons
    work(**{name: min(BASE[name], 200) if name != "layers" else 1 for name in names})
    before, wall, cpu = psutil.Process(os.getpid()).memory_info().rss, time.perf_counter(), time.process_time()
    work(**{name: wanted[name] for name in names})
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"size": size, "cpu_seconds": cpu, "wall_seconds": wall, "mib": max(peak - before, 0) / 2**20}


def exponent(points: list[dict[str, float]], column: str) -> float:
    """The slope on a log-log scale."""
    size, value = (np.log([max(point[name], 1e-3) for point in points]) for name in ("size", column))
    return float(np.polyfit(size, value, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--small", action="store_true", help="the first two points of each axis")
    given = parser.parse_args()
    print("| axis | sizes | CPU seconds | exponent, last decade | peak MiB | exponent, last decade |")
    print("| -- | -- | -- | -- | -- | -- |")
    for axis in given.axes:
        points = []
        for size in POINTS[axis][: 2 if given.small else None]:
            with get_context("fork").Pool(1) as process:
                points.append(process.apply(point, (axis, size)))
            print(axis, points[-1], file=sys.stderr, flush=True)
        slopes = [
            f"{exponent(points, column):.2f}, {exponent(points[-3:], column):.2f}" for column in ("cpu_seconds", "mib")
        ]
        sizes = " · ".join(f"{point['size']:,}" for point in points)
        seconds = " · ".join(f"{point['cpu_seconds']:.2f}" for point in points)
        memory = " · ".join(f"{point['mib']:,.0f}" for point in points)
        print(f"| {axis} | {sizes} | {seconds} | {slopes[0]} | {memory} | {slopes[1]} |", flush=True)


if __name__ == "__main__":
    main()

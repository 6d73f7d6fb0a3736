"""Time and error of the similarities, compared with the operations of the original implementation of CLIP-Dissect.

    python benchmarks/similarity.py                    # full size, about ten minutes on two idle cores
    python benchmarks/similarity.py --only cubed       # only rows whose name contains this
    python benchmarks/similarity.py --small            # a smoke test of a few seconds; writes nothing

The baseline performs the same operations as CLIP-Dissect's code, in the same order, on (image, concept) features:

- soft_wpmi: one softmax over the concepts, one topk over the images, then for each neuron one gather of
  top_k x concepts and its logarithm.
- cos_similarity_cubed: centred and cubed as whole arrays, divided by their norms, one matrix product.
- rank_reorder: one topk over the images, then for each neuron a gather, two argsorts over its top images, and the
  errors of 1,500 concepts at a time.

The two run alternately in one process, baseline first; the first pair is not counted. The table gives the smallest wall
time of each, their ratio, and the ratio of CPU times, which other load on the machine affects less. Errors are measured
against float64, relative to the largest |S|. Results: the table, and benchmarks/results/similarity.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import emodissect.similarity as sim
from emodissect.similarity.rank_order import random_error

RESULTS = Path(__file__).parent / "results" / "similarity.json"
MOST_ERROR = 1e-4


def original_soft_wpmi(scores: Tensor, activations: Tensor, top_k: int = 100) -> Tensor:
    probabilities = torch.softmax(10 * scores, dim=1)
    rows = torch.topk(activations, dim=0, k=top_k)[1]
    p = (0.998 - torch.arange(top_k) / top_k * (0.998 - 0.97))[:, None]
    found = []
    for neuron in range(activations.shape[1]):
        own = probabilities.gather(0, rows[:, neuron : neuron + 1].expand(-1, scores.shape[1]))
        found.append(torch.log(1 + p * (own - 1) + 1e-7).sum(0, keepdim=True))
    likelihood = torch.cat(found)
    return likelihood - (likelihood.logsumexp(0, keepdim=True) - math.log(len(likelihood)))


def original_cubed(scores: Tensor, activations: Tensor, min_norm: float = 1e-3) -> Tensor:
    y = (scores - scores.mean(0, keepdim=True)) ** 3
    x = (activations - activations.mean(0, keepdim=True)) ** 3
    y = y / y.norm(p=2, dim=0, keepdim=True).clip(min_norm)
    x = x / x.norm(p=2, dim=0, keepdim=True).clip(min_norm)
    return x.T @ y


def original_rank_reorder(scores: Tensor, activations: Tensor, p: float = 3, batch: int = 1500) -> Tensor:
    n = int(len(activations) * 0.05)
    top, rows = torch.topk(activations, dim=0, k=n)
    found = []
    for neuron in range(activations.shape[1]):
        own = scores.gather(0, rows[:, neuron : neuron + 1].expand(-1, scores.shape[1]))
        mean = own.mean(0, keepdim=True)
        ranks = own.argsort(dim=0).argsort(dim=0)
        target = top[:, neuron : neuron + 1]
        ascending = target.flip(0)
        shuffled = torch.cat([ascending[torch.randperm(n)] for _ in range(5)], dim=1)
        baseline = ((ascending - shuffled).abs() ** p).mean()
        errors = []
        for part in ranks.split(batch, dim=1):
            reordered = ascending.expand(-1, part.shape[1]).gather(0, part)
            errors.append(((target - reordered).abs() ** p).mean(0, keepdim=True) / baseline)
        found.append(torch.cat(errors, dim=1) / mean**0.5)
    return -torch.cat(found)


def exact_soft_wpmi(scores: Tensor, activations: Tensor, concepts: Tensor) -> Tensor:
    """soft_wpmi in float64 for some concepts; the softmax is over all concepts, a thousand images at a time."""
    norms = torch.cat([(10 * part.double()).logsumexp(1, keepdim=True) for part in scores.split(1000)])
    probabilities = (10 * scores[:, concepts].double() - norms).exp()
    rows = torch.topk(activations, dim=0, k=100)[1]
    p = (0.998 - torch.arange(100, dtype=torch.float64) / 100 * (0.998 - 0.97))[:, None]
    likelihood = torch.stack([torch.log(1 + p * (probabilities[own] - 1) + 1e-7).sum(0) for own in rows.t()])
    return likelihood - (likelihood.logsumexp(0) - math.log(len(likelihood)))


def exact_cubed(scores: Tensor, activations: Tensor, concepts: Tensor) -> Tensor:
    return original_cubed(scores[:, concepts].double(), activations.double())


def exact_rank_reorder(scores: Tensor, activations: Tensor, concepts: Tensor) -> Tensor:
    """rank_reorder in float64; normalised as in this project, since the original draws new orders for each neuron."""
    top, rows = torch.topk(activations.double(), dim=0, k=int(len(activations) * 0.05))
    ascending = top.flip(0)
    baseline = random_error(ascending.t().contiguous(), 3.0)
    found = []
    for neuron, own in enumerate(rows.t()):
        ranks = scores[own][:, concepts].double().argsort(dim=0).argsort(dim=0)
        errors = (top[:, neuron, None] - ascending[:, neuron][ranks]).abs().pow(3).mean(0)
        found.append(-errors / baseline[neuron] / scores[own][:, concepts].double().mean(0).sqrt())
    return torch.stack(found)


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    neurons: int
    concepts: int
    goal: float
    original: Callable[[Tensor, Tensor], Tensor]
    ours: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]


CASES = (
    Case("soft_wpmi", 28_709, 4_096, 25, 6, original_soft_wpmi, sim.soft_wpmi, exact_soft_wpmi),
    Case("soft_wpmi", 28_709, 4_096, 3_000, 8, original_soft_wpmi, sim.soft_wpmi, exact_soft_wpmi),
    Case("soft_wpmi", 10_000, 2_048, 20_000, 18, original_soft_wpmi, sim.soft_wpmi, exact_soft_wpmi),
    Case("cos_similarity_cubed", 28_709, 4_096, 25, 5, original_cubed, sim.cos_similarity_cubed, exact_cubed),
    Case("rank_reorder", 28_709, 256, 25, 5, original_rank_reorder, sim.rank_reorder, exact_rank_reorder),
)


class PeakMemory:
    """Peak resident memory above the level at entry, sampled every two milliseconds."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(os.getpid()), threading.Event()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.mebibytes = (self._peak - self._start) / 2**20


def measured(function: Callable[[], Tensor]) -> tuple[float, float, float, Tensor]:
    """Returns wall seconds, CPU seconds, extra MiB and the result."""
    with PeakMemory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, memory.mebibytes, result


def compared(case: Case, repeats: int) -> dict[str, float | str]:
    """One row of the table: original, ours, original, ours, …; the first pair warms up and is not counted."""
    generator = torch.Generator().manual_seed(0)
    # Each neuron has a random order of distinct values; with ties, the two implementations would take different images.
    activations = torch.rand(case.neurons, case.images, generator=generator).argsort(1).t().float() / case.images
    activations = activations.contiguous()
    scores = 0.2 + 0.03 * torch.randn(case.images, case.concepts, generator=generator)
    runs: dict[str, list[tuple[float, float, float]]] = {"original": [], "ours": []}
    for repeat in range(repeats + 1):
        for name, function in (("original", case.original), ("ours", case.ours)):
            *run, found = measured(lambda function=function: function(scores, activations))  # type: ignore[misc]
            if repeat:
                runs[name].append(tuple(run))
    concepts = torch.randperm(case.concepts, generator=generator)[:200]
    exact = case.exact(scores, activations, concepts)
    error = float((found[:, concepts] - exact).abs().max() / exact.abs().max())
    assert error < MOST_ERROR, f"{case.name} is off by {error:.1e} of the largest similarity"
    row: dict[str, float | str] = {
        **{name: getattr(case, name) for name in ("images", "neurons", "concepts", "goal")},
        "similarity": case.name,
        "largest_error": error,
    }
    for name, values in runs.items():
        for column, figures in zip(("seconds", "cpu_seconds", "extra_mib"), zip(*values, strict=True), strict=True):
            row[f"{name}_{column}"] = max(figures) if column == "extra_mib" else min(figures)
        row[f"{name}_median_seconds"] = statistics.median(wall for wall, _, _ in values)
    for column in ("seconds", "cpu_seconds", "median_seconds"):
        row[f"times_{column}"] = float(row[f"original_{column}"]) / float(row[f"ours_{column}"])
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--small", action="store_true", help="a tenth of images, neurons and concepts, one repeat")
    options.add_argument("--only", default="", help="only the rows whose name and number of concepts hold this")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    load, rows = os.getloadavg()[0], []
    for case in CASES:
        if given.only not in f"{case.name} {case.concepts}":
            continue
        if given.small:
            case = Case(case.name, case.images // 10, case.neurons // 10, case.concepts // 10 or 1, case.goal,
                        case.original, case.ours, case.exact)  # fmt: skip
        rows.append(compared(case, 1 if given.small else given.repeats))
    table = Table(title=f"{given.threads} threads, smallest of {given.repeats}, load {load:.1f} before")
    headings = ("similarity", "images", "neurons", "concepts", "original s", "ours s", "faster", "less CPU", "goal",
                "original MiB", "ours MiB", "error")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "similarity" else "right")
    for row in rows:
        table.add_row(
            str(row["similarity"]),
            *(f"{row[key]:,}" for key in ("images", "neurons", "concepts")),
            *(f"{row[key]:.2f}" for key in ("original_seconds", "ours_seconds")),
            *(f"{row[key]:.1f}x" for key in ("times_seconds", "times_cpu_seconds")),
            f"{row['goal']:.0f}x",
            *(f"{row[key]:,.0f}" for key in ("original_extra_mib", "ours_extra_mib")),
            f"{row['largest_error']:.0e}",
        )
    Console(width=140).print(table)
    if not given.small:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "threads": given.threads,
            "repeats": given.repeats,
            "load_average_before": load,
            "load_average_after": os.getloadavg()[0],
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

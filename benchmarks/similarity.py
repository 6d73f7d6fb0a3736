"""Similarities against a plain loop over neurons: one process, interleaved, median; equality and memory checked.

    python benchmarks/similarity.py                    # full size: 28,709 images x 4,096 neurons, about 3 minutes
    python benchmarks/similarity.py --small            # a smoke test, seconds

The plain ways are written from the published description of the method: top images of all neurons by one sort over
the images, a softmax that copies, then for each neuron a gather of top_k x concepts and a log of it; cubes as whole
arrays. Results: a table, and benchmarks/results/similarity.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import emodissect.similarity as sim

RESULTS = Path(__file__).parent / "results" / "similarity.json"


def plain_soft_wpmi(scores: Tensor, activations: Tensor, top_k: int = 100) -> Tensor:
    probabilities = torch.softmax(10 * scores, dim=1)
    rows = activations.topk(top_k, dim=0).indices
    p = (0.998 - torch.arange(top_k) / top_k * (0.998 - 0.97))[:, None]
    found = []
    for neuron in range(activations.shape[1]):
        index = rows[:, neuron : neuron + 1].expand(-1, scores.shape[1])
        found.append(torch.log(1 + p * (probabilities.gather(0, index) - 1) + 1e-7).sum(0))
    likelihood = torch.stack(found)
    return likelihood - (likelihood.logsumexp(0) - torch.log(torch.tensor(float(len(found)))))


def plain_cubed(scores: Tensor, activations: Tensor, min_norm: float = 1e-3) -> Tensor:
    x = (activations - activations.mean(0)) ** 3
    y = (scores - scores.mean(0)) ** 3
    x = x / x.norm(dim=0, keepdim=True).clip(min_norm)
    y = y / y.norm(dim=0, keepdim=True).clip(min_norm)
    return torch.stack([x[:, neuron] @ y for neuron in range(x.shape[1])])


class PeakMemory:
    """Resident memory above that at entry, looked at every two milliseconds."""

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
    """Wall seconds, processor seconds, extra MiB, result."""
    with PeakMemory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, memory.mebibytes, result


def compared(
    plain: Callable[[Tensor, Tensor], Tensor],
    fast: Callable[[Tensor, Tensor], Tensor],
    scores: Tensor,
    activations: Tensor,
    repeats: int,
) -> dict[str, float]:
    """Interleaved: plain, fast, plain, fast, …; the first pair warms up and is not counted.

    Both are held against the plain way in double precision: of differences of sums near 400 in single precision the
    last digits are neither's to claim.
    """
    runs: dict[str, list[tuple[float, float, float]]] = {"plain": [], "fast": []}
    for repeat in range(repeats + 1):
        *plain_run, by_plain = measured(lambda: plain(scores, activations))
        *fast_run, found = measured(lambda: fast(scores, activations))
        if repeat:
            runs["plain"].append(tuple(plain_run))
            runs["fast"].append(tuple(fast_run))
    exact = plain(scores.double(), activations.double())
    scale = float(exact.abs().max())
    error, plain_error = (float((way - exact).abs().max()) / scale for way in (found, by_plain))
    assert error < 1e-3, f"the fast way is off by {error:.1e} of the largest similarity"
    assert (found.argmax(1) == exact.argmax(1)).float().mean() > 0.99  # near ties of random data
    row: dict[str, float] = {}
    for name, values in runs.items():
        row[f"{name}_seconds"] = statistics.median(wall for wall, _, _ in values)
        row[f"{name}_cpu_seconds"] = statistics.median(cpu for _, cpu, _ in values)
        row[f"{name}_extra_mib"] = max(memory for _, _, memory in values)
    row["times_faster"] = row["plain_seconds"] / row["fast_seconds"]
    row["times_less_cpu"] = row["plain_cpu_seconds"] / row["fast_cpu_seconds"]
    row["largest_error"], row["largest_error_of_plain"] = error, plain_error
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=28_709)
    options.add_argument("--neurons", type=int, default=4_096)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--small", action="store_true", help="2,000 images, 256 neurons, 1 repeat; writes nothing")
    options.add_argument("--only", default="", help="only the rows whose name holds this")
    given = options.parse_args()
    if given.small:
        given.images, given.neurons, given.repeats = 2_000, 256, 1
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    # each neuron a random order of distinct values: with ties each way would take its own images
    orders = torch.rand(given.neurons, given.images).argsort(1).t()
    activations = (orders.float() / given.images).contiguous()
    cases: list[tuple[str, int, float, Callable, Callable]] = [
        ("soft_wpmi", 25, 4.0, plain_soft_wpmi, sim.soft_wpmi),
        ("soft_wpmi", 3_000, 5.0, plain_soft_wpmi, sim.soft_wpmi),
        ("cos_similarity_cubed", 25, 4.0, plain_cubed, sim.cos_similarity_cubed),
    ]
    load = os.getloadavg()[0]
    rows = []
    for name, concepts, target, plain, fast in cases:
        if given.only not in f"{name} {concepts}":
            continue
        scores = 0.2 + 0.03 * torch.randn(given.images, concepts)
        row = compared(plain, fast, scores, activations, given.repeats)
        rows.append({"similarity": name, "concepts": concepts, "target": target, **row})
    table = Table(
        title=f"{given.images:,} images x {given.neurons:,} neurons, {given.threads} threads, "
        f"median of {given.repeats}, load {load:.1f}"
    )
    for heading in (
        "similarity",
        "concepts",
        "plain s",
        "fast s",
        "faster",
        "less CPU",
        "target",
        "plain MiB",
        "fast MiB",
    ):
        table.add_column(heading, justify="left" if heading == "similarity" else "right")
    for row in rows:
        table.add_row(
            row["similarity"],
            f"{row['concepts']:,}",
            *(f"{row[key]:.2f}" for key in ("plain_seconds", "fast_seconds")),
            *(f"{row[key]:.1f}x" for key in ("times_faster", "times_less_cpu", "target")),
            *(f"{row[key]:,.0f}" for key in ("plain_extra_mib", "fast_extra_mib")),
        )
    Console(width=120).print(table)
    if not given.small:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "images": given.images,
            "neurons": given.neurons,
            "threads": given.threads,
            "repeats": given.repeats,
            "load_average_before": load,
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

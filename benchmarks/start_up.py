"""Overhead of commands: Lightning's import, edit.py with an empty and a full cache, and jobs of a sweep.

    python benchmarks/start_up.py                            # generated faces; six minutes on two idle cores
    python benchmarks/start_up.py data.train=600 data.val=300 data.test=300 trainer.max_epochs=1    # a quick look

Each row is measured in its own process with its own cache and W&B offline: wall time, and CPU time (user and system,
including children), which other load on the machine affects least. For the jobs of a sweep: the median wall time in
their summaries, and the CPU time that each adds to the sweep. A new job has its labels in the cache, but not its edit.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from times import run as run_python

LAYERS = "conv4b,lin1,lin2"
GRID = [f"layer={LAYERS}", "tau=-0.5,0,0.5", "factor=1.25,1.5,2"]
ALIKE = 3
"""Repetitions of the short commands; their median counts."""


class Seconds(NamedTuple):
    """Wall and CPU seconds of a process."""

    wall: float
    processor: float


def measured(words: list[str], folder: Path) -> Seconds:
    """Runs Python with these arguments and a cache in the folder; a failure ends the benchmark."""
    environment, log = os.environ | {"EMODISSECT_CACHE": str(folder / "cache"), "WANDB_MODE": "offline"}, folder / "log"
    done = run_python(words, environment, log)
    if done.exit_code:
        sys.exit(f"python {' '.join(words)}\n{log.read_text()[-6000:]}")
    return Seconds(done.wall, done.processor)


def median(several: list[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(clock) for clock in zip(*several, strict=True)))


def show(what: str, seconds: Seconds) -> None:
    print(f"{what:<36} {seconds.wall:7.1f} s wall {seconds.processor:7.2f} s of processor time", flush=True)


def job_seconds(sweep: Path) -> float:
    """The median wall time of all jobs except the first, which includes the imports."""
    jobs = [json.loads((sweep / str(job) / "summary.json").read_text())["seconds"] for job in range(1, 27)]
    return statistics.median(jobs)


def main(words: list[str], folder: Path) -> None:
    def run(verb: str, name: str, *further: str) -> Seconds:
        place = f"hydra.sweep.dir={folder / name}" if "-m" in further else f"hydra.run.dir={folder / name}"
        return measured([f"{verb}.py", *further, place, *words], folder)

    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    print(f"{os.cpu_count()} cores, threads: {threads}, load {os.getloadavg()[0]:.1f} when it began")
    lightning = [measured(["-c", "import lightning.pytorch"], folder) for _ in range(ALIKE)]
    show("import lightning.pytorch", median(lightning))
    show("edit.py, cold", run("edit", "cold"))
    cached = median([run("edit", f"cached-{again}") for again in range(ALIKE)])
    show("edit.py, cached", cached)
    limit = 1.3 * median(lightning).wall + 2
    print(f"{'':<36} {limit:7.1f} s are 1.3 times Lightning's import and 2 s")
    show("dissect.py, the sweep's layers", run("dissect", "labels", f"layer=[{LAYERS}]"))
    one = run("edit", "one", "-m", "layer=lin2")
    show("a sweep of one cached job", one)
    for what in ("new edits", "cached"):
        whole = run("edit", f"sweep of {what}", "-m", *GRID)
        show(f"27 jobs, {what}", whole)
        job = Seconds(job_seconds(folder / f"sweep of {what}"), (whole.processor - one.processor) / 26)
        show(f"a job of them, {what}", job)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1:], Path(temporary))

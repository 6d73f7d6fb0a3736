"""Repeats the time measurements stated in the README and docs: wall time, CPU time and memory of each command.

    python benchmarks/times.py                       # the README's commands, ten minutes on two idle cores
    python benchmarks/times.py --long                # also label quality, FER2013 and the tests, an hour
    python benchmarks/times.py --only edit sweep     # some of them
    python benchmarks/times.py --list                # lists the commands and the files that state their times

Each command runs in its own process, as for a user. All share one new cache, so a command that runs twice is measured
first with an empty cache and then with its results in the cache. CPU time includes child processes; memory is the peak
of the largest process. Run this on an idle machine: the first lines of output describe the machine and its load.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FER2013 = "EMODISSECT_FER2013"
BUSY = 0.3
"""Load per core above which wall times are too long."""


@dataclass(frozen=True)
class Command:
    """A command whose time is stated somewhere.

    Attributes:
        name: chosen with ``--only``.
        words: the command after ``python``; ``{fer2013}`` is the file in EMODISSECT_FER2013, ``{folder}`` a
            folder shared by all commands.
        stated_in: the files that state its time.
        runs: how often it is run; in the second run, its results are in the cache.
        long: whether it needs ``--long``.
    """

    name: str
    words: str
    stated_in: str
    runs: int = 1
    long: bool = False

    @property
    def needs_fer2013(self) -> bool:
        return "{fer2013}" in self.words


COMMANDS = (
    Command("edit", "edit.py", "README.md (Start)", runs=2),
    Command("train", "train.py seed=1", "not stated", runs=2),
    Command("dissect", "dissect.py layer=all", "not stated", runs=2),
    Command("grid", "edit.py tau=[-0.5,0,0.5,1] factor=[1.25,1.5,2]", "not stated"),
    Command("sweep", "edit.py -m layer=lin1,lin2 factor=1.25,1.5,2", "docs/sweeps.md (time per job)", runs=2),
    Command(
        "seeds",
        "edit.py -m seed=2,3 hydra/launcher=processes hydra.launcher.n_jobs=2",
        "not stated",
        long=True,
    ),
    Command(
        "another-clip",
        "train.py experiment=tiny_clip seed=1 data.train=7000 data.seed=1 paths.run_dir={folder}/tiny_clip",
        "docs/label_quality.md (first paragraph)",
        long=True,
    ),
    Command(
        "label-quality",
        "dissect.py experiment=label_quality",
        "docs/label_quality.md (first paragraph)",
        long=True,
    ),
    Command("leaderboard", "dissect.py experiment=leaderboard", "docs/leaderboard.md", long=True),
    Command(
        "fer2013-train",
        "train.py experiment=fer2013_cpu data.path={fer2013}",
        "docs/fer2013.md (Train), docs/tutorials/fer2013.md",
        runs=2,
        long=True,
    ),
    Command(
        "fer2013-dissect",
        "dissect.py experiment=fer2013_cpu data.path={fer2013} scorer=annotations concepts=fer7 layer=all",
        "docs/fer2013.md (Dissect and edit)",
        long=True,
    ),
    Command("tests", "-m pytest -q -n 2 -m not_slow", "CONTRIBUTING.md", long=True),
)


@dataclass(frozen=True)
class Measured:
    """Time and memory of one run."""

    wall: float
    processor: float
    memory: int
    exit_code: int


def run(words: list[str], environment: dict[str, str], log: Path) -> Measured:
    """Runs Python with these arguments and writes its output to a file."""
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, process.returncode)


def words_of(command: Command, folder: Path) -> list[str]:
    """The command as a list of arguments."""
    filled = command.words.format(fer2013=os.environ.get(FER2013, ""), folder=folder)
    return ["not slow" if word == "not_slow" else word for word in filled.split()]


def machine() -> str:
    """A description of the machine and its load."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    text = f"{names[0] if names else platform.processor()}, {cores} cores, Python {platform.python_version()}"
    busy = "; BUSY: wall times are too long, CPU times hold" if load > BUSY * cores else ""
    return f"{text}, load {load:.2f}{busy}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[command.name for command in COMMANDS], default=None)
    parser.add_argument("--long", action="store_true", help="also the commands that take many minutes")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    arguments = parser.parse_args()
    chosen = [c for c in COMMANDS if c.name in arguments.only] if arguments.only else list(COMMANDS)
    if not arguments.only and not arguments.long:
        chosen = [command for command in chosen if not command.long]
    if arguments.list:
        for command in COMMANDS:
            print(f"{command.name:16} python {command.words}\n{'':16} stated in: {command.stated_in}")
        return 0
    print(machine(), flush=True)
    print(
        "| command | run | wall (s) | CPU (s) | memory (GiB) | stated in |\n| -- | -- | -- | -- | -- | -- |", flush=True
    )
    failed = 0
    with tempfile.TemporaryDirectory(prefix="emodissect-times-") as name:
        folder = Path(name)
        environment = os.environ | {
            "EMODISSECT_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])),
            "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
        }
        for command in chosen:
            if command.needs_fer2013 and not os.environ.get(FER2013):
                print(f"| {command.name} | – | – | – | – | {FER2013} is not set |", flush=True)
                continue
            for number in range(command.runs):
                words = words_of(command, folder)
                if not words[0].startswith("-"):
                    words.append(f"paths.log_dir={folder / 'logs'}")
                log = folder / f"{command.name}-{number}.txt"
                found = run(words, environment, log)
                state = "again" if number else "first"
                figures = f"{found.wall:.1f} | {found.processor:.1f} | {found.memory / 2**30:.2f}"
                print(f"| {command.name} | {state} | {figures} | {command.stated_in} |", flush=True)
                if found.exit_code:
                    failed += 1
                    print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

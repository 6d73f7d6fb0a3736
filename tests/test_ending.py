"""Runs that end early, or whose output, encoding or working directory fails: signals, closed pipes, full disks."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from composing import composed
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from emodissect.app.ending import HeldSignals
from emodissect.app.session import session, several_processes
from emodissect.app.streams import LoggedConsole, SteadyStream
from emodissect.core.distributed import first_rank
from emodissect.lightning.callbacks import ProgressBar

APPLICATION = """
import json, os, signal, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from emodissect.app.cli import launch, run

CONF = Path(__file__).parent / "conf"

def work(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    print("wörk ✓", flush=True)
    if cfg.vanish:
        os.rmdir(cfg.vanish)
    if cfg.seed == cfg.die:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == cfg.stop_at:
        (CONF / "waits").touch()
        time.sleep(600)
    (folder / "summary.json").write_text(json.dumps({"task": "edit", "delta_val": cfg.seed / 100}))
    return {"objective": cfg.seed}

@hydra.main(version_base="1.3", config_path=str(CONF), config_name="app")
def main(cfg):
    return run(work, cfg)

if __name__ == "__main__":
    launch(main, CONF, "train")
"""

CONFIG = """
seed: 0
stop_at: -1
die: -1
vanish: null
paths: {root_dir: .}
hydra:
  sweep: {dir: "%s/sweep"}
  run: {dir: "%s/run"}
  callbacks: {sweep: {_target_: emodissect.app.sweep.SweepTable}}
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A Hydra application with the real command line and sweep table, whose jobs do nothing."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(CONFIG % (tmp_path, tmp_path))
    (tmp_path / "app.py").write_text(APPLICATION)
    return tmp_path / "app.py"


def start(application: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(application), *words]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background jobs, of which the tests may be one, ignore Ctrl-C, and so would the application
    return subprocess.Popen(command, preexec_fn=_hears_ctrl_c, **piped, **options)


def _hears_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def signalled(application: Path, number: signal.Signals, *words: str) -> tuple[int, str]:
    """Exit code and standard error of an application that receives a signal while a job waits."""
    ignored = signal.signal(number, signal.SIG_DFL)  # nohup's children ignore SIGHUP, as they should
    begun = start(application, *words)
    signal.signal(number, ignored)
    while not (application.parent / "conf" / "waits").exists():
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.05)
    begun.send_signal(number)
    _, said = begun.communicate(timeout=300)
    return begun.returncode, " ".join(said.split())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_a_signal_is_the_exit_code_and_says_how_to_resume(application: Path, number: signal.Signals, code: int) -> None:
    ended, said = signalled(application, number, "stop_at=0")
    assert ended == code
    assert "The same command resumes" in said
    assert "Traceback" not in said


def test_a_multirun_that_is_cut_off_has_the_table_of_its_finished_jobs(application: Path) -> None:
    code, said = signalled(application, signal.SIGTERM, "-m", "seed=1,2,3,4", "stop_at=3")
    assert code == 143
    assert "Traceback" not in said
    table = pd.read_csv(application.parent / "sweep" / "sweep.csv")
    assert table["delta_val"].tolist()[:2] == [0.01, 0.02]
    assert table["error"].tolist()[2:] == ["Ended by SIGTERM."]


def test_a_working_directory_that_is_removed_ends_nothing(application: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    words = ["-m", "seed=1,2", f"vanish={tmp_path / 'here'}"]
    begun = start(application, *words, cwd=tmp_path / "here")
    _, said = begun.communicate(timeout=300)
    assert "Traceback" not in said
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["delta_val"].notna().tolist() == [True, False]  # the second finds nothing to remove
    (tmp_path / "here").mkdir()
    script = f"cd {tmp_path / 'here'} && rmdir ../here && exec {sys.executable} {application} seed=3"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "The working directory was removed" in ran.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_pipe_that_is_closed_and_an_encoding_without_our_characters_lose_nothing(application: Path) -> None:
    summary = application.parent / "run" / "summary.json"
    reader, writer = os.pipe()
    os.close(reader)
    begun = subprocess.Popen([sys.executable, str(application)], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert begun.communicate(timeout=300)[1] == ""
    assert begun.returncode == 0
    assert summary.exists()
    summary.unlink()
    begun = start(application, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert begun.communicate(timeout=300) == ("w?rk ?\n", "")
    assert summary.exists()


def test_what_cannot_be_printed_is_dropped() -> None:
    full = SteadyStream(io.TextIOWrapper(open("/dev/full", "wb"), encoding="utf-8"))  # noqa: SIM115
    Console(file=full).print("much " * 10_000)  # type: ignore[arg-type]
    full.flush()
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    Console(file=SteadyStream(stream), width=40).print("τ = 0.5 — é")  # type: ignore[arg-type]
    assert stream.buffer.getvalue() == b"? = 0.5 ? \xe9\n"  # type: ignore[attr-defined]


def test_a_single_process_is_the_first_whatever_variables_others_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads LOCAL_RANK=1 when it is imported
    cfg = composed("edit", "logger=csv", "print_config=false", f"paths.cache_dir={tmp_path}", run_dir=tmp_path / "run")
    with session(cfg) as run:
        assert first_rank()
        run.summary({"delta": 0.5})
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_killed_process_is_a_row_and_the_other_jobs_run(application: Path) -> None:
    words = ["hydra.launcher._target_=hydra_plugins.emodissect_processes.ProcessLauncher", "+hydra.launcher.n_jobs=2"]
    begun = start(application, "-m", "seed=1,2,3,4,5", "die=2", *words)
    printed, said = begun.communicate(timeout=300)
    assert begun.returncode == 1
    assert "Traceback" not in said
    table = pd.read_csv(application.parent / "sweep" / "sweep.csv")
    assert "5 jobs in" in said
    assert table["seconds"].notna().tolist() == [True, False, True, True, True]
    assert table["error"].fillna("").tolist() == ["", "killed by SIGKILL", "", "", ""]
    assert table["delta_val"].dropna().tolist() == [0.01, 0.03, 0.04, 0.05]
    assert [line for line in sorted(printed.splitlines()) if "wörk" in line] == [f"[{n}] wörk ✓" for n in range(5)]


def test_a_launcher_that_fails_leaves_the_table_and_no_traceback(application: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    words = [f"hydra.launcher._target_={launcher}", "+hydra.launcher.n_jobs=2", "die=1", "seed=1,2"]
    begun = start(application, "-m", *words)
    _, said = begun.communicate(timeout=300)
    assert begun.returncode == 1
    assert "Traceback" not in said
    assert "The launcher failed (TerminatedWorkerError" in " ".join(said.replace("│", " ").split())
    table = pd.read_csv(application.parent / "sweep" / "sweep.csv").set_index("seed")
    assert "killed" in table["error"][1]


def test_parallel_jobs_end_with_their_multirun(application: Path) -> None:
    words = ["hydra.launcher._target_=hydra_plugins.emodissect_processes.ProcessLauncher", "+hydra.launcher.n_jobs=2"]
    code, said = signalled(application, signal.SIGTERM, "-m", "seed=1,2,3", "stop_at=2", *words)
    assert code == 143
    assert "Traceback" not in said
    table = pd.read_csv(application.parent / "sweep" / "sweep.csv").set_index("seed")
    assert table["delta_val"][1] == 0.01
    assert table["error"][2] == "Ended by SIGTERM."


def test_the_log_file_holds_what_is_printed(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "edit.log", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        LoggedConsole(file=io.StringIO(), width=40).print("[bold]No gain[/]: −0.33 points on test, p = .64, 33 gained")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    text = (tmp_path / "edit.log").read_text(encoding="utf-8")
    assert text == "No gain: −0.33 points on test, p = .64, 33 gained\n"


def test_the_bar_shows_no_run_id() -> None:
    trainer = SimpleNamespace(loggers=[SimpleNamespace(version="x7f3k2")], progress_bar_metrics={"val/acc": 0.5})
    assert ProgressBar().get_metrics(trainer, None) == {"val/acc": 0.5}  # type: ignore[arg-type]


def test_held_signals_are_answered_at_the_end() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with HeldSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == []
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("trainer", "several"),
    [
        ({"devices": 1}, False),
        ({"devices": "auto", "accelerator": "cpu"}, False),
        ({"devices": [3]}, False),
        ({"devices": 2}, True),
        ({"devices": "0,1"}, True),
        ({"devices": [0, 1]}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": 1, "strategy": "ddp_find_unused_parameters_true"}, True),
    ],
)
def test_a_group_is_there_where_the_trainer_makes_one(trainer: dict[str, object], several: bool) -> None:
    assert several_processes(OmegaConf.create(trainer)) is several


COMMAND = """
import atexit, gc, sys, threading
from emodissect.app.process import OwnProcess

process = OwnProcess()
print(gc.isenabled())
cycles = []
cycles.append(cycles)
process.imported()
print(gc.isenabled(), gc.get_freeze_count() > 0)
frozen = gc.get_freeze_count()
process.imported()
print(gc.get_freeze_count() == frozen)
atexit.register(print, "handler")
threading.Timer(0.1, print, ["thread"]).start()
if "fail" in sys.argv:
    sys.exit(3)
process.end()
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_of_a_command_spin_only_briefly_and_a_users_setting_is_kept(
    given: dict[str, str], expected: str
) -> None:
    """It has to be set before torch loads OpenMP, which reads it once."""
    code = """
import os, sys
import emodissect.app.cli
assert "torch" not in sys.modules
emodissect.app.cli.OwnProcess()
print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
os._exit(0)
"""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    surroundings = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


@pytest.mark.parametrize(("words", "code"), [([], 0), (["fail"], 3)])
def test_a_command_collects_no_garbage_of_its_imports_and_ends_with_all_said_and_done(
    words: list[str], code: int
) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["False", "True True", "True", "thread", "handler", ""]
    assert (done.returncode, done.stderr) == (code, "")

"""Multiruns from the command line with each installed launcher and sweeper: two jobs, one of which fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from composing import CONF, SMALL
from wandb_file import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache shared by the multiruns, so that the network is trained only once."""
    return tmp_path_factory.mktemp("launchers")


SLURM = {
    "sbatch": """#!/bin/bash
# the last argument is the script; its tasks run here, as `#SBATCH --array=0-1%16` says
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NODELIST=here SLURM_JOB_NUM_NODES=1 \\
    SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 setsid bash "$script" > /dev/null 2>&1 &
done
echo "Submitted batch job 7"
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do
  [[ $1 == --output || $1 == --error ]] && shift
  shift
done
exec "$@"
""",
    "sacct": """#!/bin/bash
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
""",
}
"""Slurm's commands as submitit calls them, on this machine."""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with stand-ins for a cluster's programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def multirun(home: Path, folder: Path, *words: str, commands: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``python edit.py -m <words>`` on few drawn faces."""
    small = [word for word in SMALL if not word.startswith("logger=")]
    return subprocess.run(
        [
            *(sys.executable, str(CONF.parent / "edit.py"), "-m", *small, "saliency.images=0", *words),
            *(f"paths.cache_dir={home}", f"hydra.sweep.dir={folder}"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "WANDB_MODE": "offline",
            "PATH": os.pathsep.join(filter(None, [commands and str(commands), os.environ["PATH"]])),
        },
    )


def test_a_multirun_leaves_one_table_one_page_and_one_wandb_run(home: Path, tmp_path: Path) -> None:
    words = ["logger=wandb", "tags=[small]", "study.metric=accuracy,acuracy", "tau=-1,0"]
    ran = multirun(home, tmp_path / "sweep", *words)
    assert ran.returncode == 1, ran.stderr[-3000:]
    assert "2 of 4 jobs failed" in ran.stderr
    assert "incomplete" not in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["study.metric"].tolist() == ["accuracy", "accuracy", "acuracy", "acuracy"]
    assert table["tau"].tolist() == [-1, 0, -1, 0]
    assert table["error"].notna().tolist() == [False, False, True, True]
    assert "Did you mean 'accuracy'" in table["error"].iloc[2]
    assert table["delta_val"].notna().tolist() == [True, True, False, False]
    assert "2 failed" in (tmp_path / "sweep" / "sweep.html").read_text()
    for job in range(4):
        written = {path.name for path in (tmp_path / "sweep" / str(job)).rglob("*")}
        assert {"config.yaml", "overrides.yaml", "manifest.json", "edit.log"} <= written
        alone = json.loads((tmp_path / "sweep" / str(job) / "manifest.json").read_text())["command"]
        assert "-m " not in alone
        assert f"study.metric={table['study.metric'][job]} tau={table['tau'][job]:g}" in alone
    kept = read_run(tmp_path / "sweep")
    assert (kept.run.job_type, kept.run.run_group, list(kept.run.tags)) == ("sweep", "sweep", ["small"])
    assert kept.logged("sweep/jobs")[0]["nrows"] == 4
    assert kept.logged("sweep/grid_lin2")[0]["_type"] == "image-file"
    assert (kept.summary["sweep/count"], kept.summary["sweep/failed"]) == (4, 2)
    assert kept.summary["sweep/best/delta_val"] == pytest.approx(table["delta_val"].max())
    jobs = [read_run(tmp_path / "sweep" / str(job)) for job in range(4)]
    assert {job.run.run_group for job in jobs} == {"sweep"}
    assert len({job.run.run_id for job in [*jobs, kept]}) == 5
    assert [job.exit_code for job in jobs] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("hydra_plugins.emodissect_processes", ["hydra/launcher=processes", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=slurm_local", "hydra.launcher.timeout_min=10"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]),
        ("hydra_plugins.hydra_ray_launcher", ["hydra/launcher=ray_cluster"]),
    ],
)
def test_a_launcher_runs_every_job_and_a_failed_one_is_a_row(
    home: Path, tmp_path: Path, commands: Path, package: str, words: list[str]
) -> None:
    if not _installed(package):
        pytest.skip(f"{package} is not installed (an extra)")
    ran = multirun(home, tmp_path / "sweep", "logger=csv", "study.metric=accuracy,acuracy", *words, commands=commands)
    assert ran.returncode == 1, ran.stderr[-3000:]
    for script in (tmp_path / "sweep" / ".submitit").rglob("submission.sh"):
        assert "--partition=gpu" in script.read_text()
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["error"].notna().tolist() == [False, True]
    assert table["delta"].notna().tolist() == [True, False]
    alone = json.loads((tmp_path / "sweep" / "0" / "manifest.json").read_text())["command"]
    assert f"{Path(sys.executable).name} edit.py " in alone
    assert "study.metric=accuracy" in alone


def test_optuna_goes_on_after_failed_trials(home: Path, tmp_path: Path) -> None:
    if not _installed("hydra_plugins.hydra_optuna_sweeper"):
        pytest.skip("hydra-optuna-sweeper is not installed (an extra)")
    ran = multirun(
        *(home, tmp_path / "sweep", "logger=csv", "hparams_search=optuna", "hydra.sweeper.n_trials=3"),
        "study.metric=acuracy",
    )
    assert ran.returncode == 1
    assert "3 of 3 jobs failed" in ran.stderr
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["error"].notna().all()
    assert table["tau"].between(-1, 2).all()
    assert table["factor"].between(1, 3).all()


def test_optuna_continues_a_stored_study_in_new_folders(home: Path, tmp_path: Path) -> None:
    if not _installed("hydra_plugins.hydra_optuna_sweeper"):
        pytest.skip("hydra-optuna-sweeper is not installed (an extra)")
    words = ["logger=csv", "hparams_search=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.params.layer=lin2"]
    for trials in (1, 2):
        storage = f"hydra.sweeper.storage=sqlite:///{tmp_path / 'study.db'}"
        ran = multirun(home, tmp_path / "sweep", *words, "study.baselines=[]", storage)
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert f" of {trials}: " in ran.stdout.partition("Best of the whole study emodissect-edit, trial ")[2]
        table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
        assert table["job"].tolist() == list(range(trials))
        assert len(pd.read_csv(tmp_path / "sweep" / "study.csv")) == trials
    assert table["tau"].nunique() == 2


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import CONF
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emodissect.app import arguments
from emodissect.app.arguments import split_flags, with_layer_words, with_null_groups
from emodissect.app.cli import composing_mistake, run, user_error_message
from emodissect.app.manifest import command
from emodissect.core.errors import UserError, nearest


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "layer").mkdir()
    for name in ("lin1", "lin2", "all", "named"):
        (tmp_path / "layer" / f"{name}.yaml").write_text("names: x")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["layer=lin2"], ["layer=lin2"]),
        (["layer=lin1,lin2", "-m"], ["layer=lin1,lin2", "-m"]),
        (["layer=layer4.1.conv2"], ["layer=named", "layer.names=layer4.1.conv2"]),
        (["layer=conv4*"], ["layer=named", "layer.names=conv4*"]),
        (["layer=[lin1,lin2]"], ["layer=named", "layer.names=[lin1,lin2]"]),
        (["layer=lin1,layer4.0", "-m"], ["layer=named", "layer.names=lin1,layer4.0", "-m"]),
        (["layer.pool=max", "tau=0"], ["layer.pool=max", "tau=0"]),
    ],
)
def test_layer_takes_entries_paths_globs_and_lists(conf: Path, typed: list[str], given: list[str]) -> None:
    assert with_layer_words(typed, [conf]) == given


def test_null_stands_for_no_group(conf: Path) -> None:
    for group in ("logger", "augment"):
        (conf / group).mkdir()
    (conf / "augment" / "none.yaml").write_text("")
    typed = ["logger=null", "augment=null", "ckpt_path=null", "logger=csv", "logger.csv.name=null"]
    assert with_null_groups(typed, [conf]) == ["~logger", "augment=none", *typed[2:]]


def test_help_and_tab_completion_do_not_wait_for_torch() -> None:
    slow = "{'torch', 'lightning', 'pandas', 'wandb'}"
    code = f"import sys, emodissect.app.cli; print(sorted({slow} & set(sys.modules)))"
    message = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message.stdout.strip() == "[]"


def test_a_class_that_refuses_its_arguments_speaks_for_itself() -> None:
    with pytest.raises(InstantiationException) as caught:
        instantiate(OmegaConf.create({"trainer": {"_target_": "lightning.Trainer", "precision": 33}}).trainer)
    message = user_error_message(caught.value)
    assert message is not None
    assert message.startswith(
        "trainer = lightning.pytorch.trainer.trainer.Trainer cannot be instantiated as configured: Precision 33"
    )


def test_a_logger_without_its_package_names_the_extra() -> None:
    refused = InstantiationException("Error in call to target 'lightning.X':\nfull_key: logger.tensorboard")
    refused.__cause__ = ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")
    message = user_error_message(refused)
    assert message is not None
    assert message.startswith(
        "logger.tensorboard = lightning.X needs the package tensorboard. Install the extra: uv sync"
    )


def test_lightnings_own_complaints_are_reported_without_a_trace() -> None:
    assert user_error_message(MisconfigurationException("no such monitor")) == "no such monitor"


def test_a_users_mistake_is_found_behind_hydras_wrapping() -> None:
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = UserError("no such file")
    assert user_error_message(wrapped) == "no such file"
    unresolved = OmegaConfBaseException("UserError raised while resolving interpolation: no folder")
    unresolved.__cause__ = UserError("no folder")
    assert user_error_message(unresolved) == "no folder"
    assert user_error_message(ValueError("ours")) is None


def test_nearest_names_the_likely_word_and_cuts_long_lists() -> None:
    assert nearest("lin22", ["conv1a", "lin1", "lin2"]).startswith("Did you mean 'lin2'?")
    assert "(88 more)" in nearest("zzz", [f"name{i}" for i in range(100)])
    assert "Did you mean" not in nearest("zzz", ["conv1a"])


def test_what_hydra_cannot_find_is_answered_with_the_nearest_or_the_extra() -> None:
    absent = HydraException("In 'hydra/launcher/slurm': Could not load 'hydra/launcher/submitit_slurm'.")
    message = composing_mistake(absent, CONF, "edit")
    assert message.startswith(
        "hydra/launcher=submitit_slurm is not installed. It needs the package hydra-submitit-launch"
    )
    assert "pip install 'emodissect[submitit]'" in message
    misspelt = HydraException("Could not find 'data/fer213'\n\nAvailable options in 'data':\n\tfer2013\n\tsketches")
    message = composing_mistake(misspelt, CONF, "edit")
    assert message == "data has no entry 'fer213'. Did you mean 'fer2013'? Known: fer2013, sketches."
    assert composing_mistake(HydraException("no such entry\nConfig search path:\n x"), CONF, "edit") == "no such entry"


@pytest.mark.parametrize(
    ("sweeper", "worst"),
    [({"direction": "maximize"}, -math.inf), ({"direction": "minimize"}, math.inf), ({}, math.nan)],
)
def test_a_job_that_fails_is_a_row_and_the_worst_for_the_sweeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeper: dict[str, str], worst: float
) -> None:
    message = OmegaConf.create(
        {
            "mode": "MULTIRUN",
            "sweeper": sweeper,
            "runtime": {"output_dir": str(tmp_path)},
            "job": {"name": "edit"},
            "overrides": {"task": ["tau=1", "tags=[a b]"]},
        }
    )
    message.mode = RunMode.MULTIRUN
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: message)
    (tmp_path / "summary.json").write_text("{}")  # of an earlier run in the same folder

    def fails(_: DictConfig) -> dict[str, float]:
        raise UserError("no such layer")

    objective = run(fails, OmegaConf.create({}))
    assert objective is not None
    assert repr(objective) == repr(worst)
    assert json.loads((tmp_path / "error.json").read_text())["error"] == "no such layer"
    assert not (tmp_path / "summary.json").exists()
    assert command().endswith(" edit.py tau=1 'tags=[a b]'")
    assert repr(run(lambda _: {"objective": math.nan}, OmegaConf.create({}))) == repr(worst)
    assert not (tmp_path / "error.json").exists()


def interrupted_in_a_trainer(_: DictConfig) -> dict[str, float]:
    """How Lightning responds to Ctrl-C."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def interrupted(_: DictConfig) -> dict[str, float]:
    raise KeyboardInterrupt


@pytest.fixture
def without_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state in which no config has been composed, whatever tests ran before."""
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)


def ended_at_the_next_batch(_: DictConfig) -> dict[str, float]:
    """How Lightning responds to SIGTERM."""
    raise SIGTERMException


@pytest.mark.usefixtures("without_hydra")
@pytest.mark.parametrize(
    ("task", "code"), [(interrupted, 130), (interrupted_in_a_trainer, 130), (ended_at_the_next_batch, 143)]
)
def test_a_run_that_a_signal_ends_exits_with_its_number(
    task: Callable[[DictConfig], dict[str, float]], code: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(task, OmegaConf.create({}))
    assert ended.value.code == code


@pytest.mark.usefixtures("without_hydra")
def test_another_exit_passes_through() -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda _: sys.exit(3), OmegaConf.create({}))
    assert ended.value.code == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["hydra.run.dir=/proc/nowhere"], ["paths.log_dir=/proc/nowhere"], ["-m", "paths.log_dir=/proc/nowhere"]]
)
def test_a_run_folder_that_cannot_be_made_is_reported_without_a_trace(words: list[str]) -> None:
    script = Path(__file__).parents[1] / "train.py"
    ran = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Cannot create the run folder /proc/nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_flags_that_exclude_each_other_are_reported_without_a_trace() -> None:
    script = Path(__file__).parents[1] / "edit.py"
    ran = subprocess.run(
        [sys.executable, str(script), "-m", "--cfg", "job"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "Only one of --run, --multirun, --cfg" in " ".join(ran.stderr.replace("│", " ").split())
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("typed", "flags", "words"),
    [
        ("tau=0,1 -m factor=2", "-m", "tau=0,1 factor=2"),
        ("tau=0 --cfg job --multirun seed=1", "--cfg job --multirun", "tau=0 seed=1"),
        ("tau=0 --config-dir mine -i seed=1", "--config-dir mine --info=all", "tau=0 seed=1"),
        ("tau=0 --info plugins seed=1 -cn=x", "--info=plugins -cn=x", "tau=0 seed=1"),
    ],
)
def test_flags_may_stand_anywhere(typed: str, flags: str, words: str) -> None:
    assert split_flags(typed.split()) == (flags.split(), words.split())


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "offered"), [("layer=lin", "layer=lin1 layer=lin2 layer=lin3"), ("tau", "tau=")])
def test_bash_completes_groups_and_keys(typed: str, offered: str) -> None:
    script = Path(__file__).parents[1] / "edit.py"
    line = f"python edit.py {typed}"
    asked = subprocess.run(
        [sys.executable, str(script), "-sc", "query=bash"],
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(asked.stdout.split()) == set(offered.split())


@pytest.mark.parametrize("old", sorted(arguments.RENAMED))
def test_a_renamed_key_names_the_new_one(old: str) -> None:
    word = old if "=" in old else f"{old}=1"
    new = arguments.RENAMED[old].split()[0]
    for typed in (word, f"+{word}"):
        with pytest.raises(UserError, match=f"was renamed: use {re.escape(new)}"):
            arguments.refuse_renamed(["seed=1", typed])
    key = new.partition("=")[0]
    if "=" in new:
        assert (CONF / key / f"{new.partition('=')[2]}.yaml").is_file()
    else:
        assert OmegaConf.select(OmegaConf.load(CONF / "base.yaml"), key, default="absent") != "absent"

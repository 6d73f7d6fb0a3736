"""Values, keys and flags as people type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from composing import CONF, SMALL
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from emodissect.app.arguments import PATHS, in_grammar, prepared
from emodissect.app.config_keys import check_keys, shipped_keys
from emodissect.app.notebook import compose
from emodissect.app.sweep import job_folders, overrides_of
from emodissect.app.user_paths import settle_paths
from emodissect.core.errors import UserError

HOME = str(Path.home())


def value_of(word: str, sweeps: bool = False) -> object:
    """The value that Hydra parses from a command-line word."""
    return OverridesParser.create().parse_override(in_grammar(word, sweeps)).value()


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.path=~/x.csv", f"{HOME}/x.csv"),
        ("data.path=~", HOME),
        ("ckpt_path=epoch=3-step=9.ckpt", "epoch=3-step=9.ckpt"),
        ("data.path=faces (1)/x.csv", "faces (1)/x.csv"),
        ("data.path=faces#1.csv", "faces#1.csv"),
        ("data.path=my faces/x.csv", "my faces/x.csv"),
        ("data.path=Gesichter/Übung.csv", "Gesichter/Übung.csv"),
        ("data.path=/ä,ö/x.csv", "/ä,ö/x.csv"),
        ("data.path=it's.csv", "it's.csv"),
        ("data.path=a&b;c!d^e<f>.csv", "a&b;c!d^e<f>.csv"),
        ("data.path=2024", "2024"),
        ("layer.names=layer4.[01].conv2", "layer4.[01].conv2"),
        ("data.class_names=[Ärger,calm face]", ["Ärger", "calm face"]),
        ("tau=[0,0.5]", [0, 0.5]),
        ("ckpt_path=null", None),
        ("tau=0.5", 0.5),
    ],
)
def test_text_that_the_grammar_does_not_take_is_taken_literally(typed: str, value: object) -> None:
    assert value_of(typed) == value


@pytest.mark.parametrize("name", ["a,b.csv", "[old]x.csv", "2024", "x (1)#é,.csv", "true"])
def test_a_path_that_exists_is_taken_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for sweeps in (False, True):
        assert str(value_of(f"data.path={name}", sweeps)) == name
        assert value_of(f"data.path={tmp_path}/{name}", sweeps) == f"{tmp_path}/{name}"


def test_a_sweep_over_paths_is_quoted_piece_by_piece() -> None:
    swept = OverridesParser.create().parse_override(in_grammar("data.path=~/a.csv,/ö/b.csv", True))
    assert [str(getattr(item, "text", item)) for item in swept.value().list] == [f"{HOME}/a.csv", "/ö/b.csv"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "tau=[0,1",
            "tau=[0,1: the value is incomplete or not in Hydra's grammar. To pass it as text, quote it: ",
        ),
        ("tau=choice(1", "\"tau='choice(1'\""),
        ("model.arguments={a:1", "\"model.arguments='{a:1'\""),
        ("tau", "'tau' is not an override: write tau=<value>"),
    ],
)
def test_a_value_that_is_cut_off_is_an_error_with_the_quoted_form(typed: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        in_grammar(typed)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "ready"),
    [
        (["+experiment=concept_ablation"], ["experiment=concept_ablation"]),
        (["+hydra/launcher=slurm", "-m"], ["-m", "hydra/launcher=slurm"]),
        (["experiment="], ["~experiment"]),
        (["+tags=[a]"], ["+tags=[a]"]),
        (["+trainer.benchmark=true"], ["+trainer.benchmark=true"]),
    ],
)
def test_a_group_needs_no_plus(typed: list[str], ready: list[str]) -> None:
    assert prepared(typed, CONF) == ready


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.max_epoch=3", "There is no key 'trainer.max_epoch'. Did you mean 'max_epochs'?"),
        ("data.trian=5", "There is no key 'data.trian'. Did you mean 'train'?"),
        ("layer.pol=max", "There is no key 'layer.pol'. Did you mean 'pool'?"),
        ("layr.pool=max", "There is no key 'layr'. Did you mean 'layer'?"),
        ("tua=1", "There is no key 'tua'. Did you mean 'tau'?"),
        ("trainer.benchmark=true", "add it with a plus, +trainer.benchmark=…"),
        ("optimizer.betas=[0,1]", "There is no key 'optimizer.betas'."),
        ("data=fer213", "data has no entry 'fer213'. Did you mean 'fer2013'?"),
        ("hydra/launcher=proceses", "hydra/launcher has no entry 'proceses'. Did you mean 'processes'?"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose("edit", [word])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "+trainer.max_epoch=3",
            "trainer.max_epoch: lightning.Trainer has no such argument. Did you mean 'max_epochs'?",
        ),
        ("+data.trian=5", "data.trian: emodissect.demo.sketches.Sketches has no such argument. Did you mean 'train'?"),
        ("+data.batch_siz=5", "data.batch_siz: emodissect.demo.sketches.Sketches has no such argument. Did you mean"),
        ("+layer.pol=max", "layer.pol: nothing reads this key. Did you mean 'pool'?"),
        ("+tua=1", "tua: nothing reads this key. Did you mean 'tau'?"),
        ("+study.tau=1", "study.tau: nothing reads this key."),
        ("+data.difficulty.foo=1", "data.difficulty.foo: nothing reads this key."),
        ("+model.preprocess.szie=48", "Did you mean 'size'?"),
        ("+callbacks.best.mod=max", "callbacks.best.mod: lightning.pytorch.callbacks.ModelCheckpoint has no such"),
    ],
)
def test_an_added_key_that_nothing_reads_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_keys(compose("edit", [word]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["+trainer.benchmark=true", "+trainer.limit_val_batches=2"],
        ["+training.monitor=val/f1"],
        ["+mine=1", "tags=['${mine}']"],
        ["+quality.templates.mine=['{} face']"],
        ["model=custom", "model.target=a.py:B", "model.arguments={width: 2}"],
        ["optimizer=adam", "+optimizer.betas=[0.9,0.99]"],
        ["clip@quality.another_clip=vit_b_32"],
    ],
)
def test_what_something_reads_may_be_added(words: list[str]) -> None:
    check_keys(compose("edit", words))


def test_a_misspelt_key_of_an_experiment_file_is_refused(tmp_path: Path) -> None:
    cfg = compose("train", [])
    added = OmegaConf.create({"trainer": {"max_epoch": 3}})
    OmegaConf.set_struct(cfg, False)
    with pytest.raises(UserError, match="Did you mean 'max_epochs'"):
        check_keys(OmegaConf.merge(cfg, added))  # type: ignore[arg-type]


def test_home_and_numbers_are_paths_wherever_they_come_from() -> None:
    cfg = OmegaConf.create({"data": {"path": 2024, "size": 48}, "some": ["~/a", "b~"], "ref": "${data.path}", "x": "~"})
    settle_paths(cfg)
    assert OmegaConf.to_container(cfg, resolve=True) == {
        "data": {"path": "2024", "size": 48},
        "some": [f"{HOME}/a", "b~"],
        "ref": "2024",
        "x": HOME,
    }


def test_paths_are_relative_to_where_the_command_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "net.py").touch()
    message = OmegaConf.create({"job": {"chdir": True}, "runtime": {"cwd": str(tmp_path)}})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: message)
    cfg = OmegaConf.create(
        {"data": {"path": "faces"}, "ckpt_path": "absent.pt", "target": "net.py:Net", "split": "faces"}
    )
    settle_paths(cfg)
    assert cfg.data.path == str(tmp_path / "faces")
    assert cfg.target == f"{tmp_path / 'net.py'}:Net"
    assert (cfg.ckpt_path, cfg.split) == ("absent.pt", "faces")


def test_every_key_of_conf_that_is_named_like_a_path_is_one() -> None:
    keys = {key for names in shipped_keys(CONF).below.values() for key in names}
    assert {key for key in keys if key.endswith(("path", "dir")) or key in ("weights", "ferplus")} <= PATHS


def test_jobs_are_known_without_hydras_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("manifest.json", "error.json")):
        (tmp_path / str(number)).mkdir()
        text = f'{{"overrides": ["tau={number}", "+data.path=\'a b\'"], "error": "x"}}'
        (tmp_path / str(number) / name).write_text(text)
    jobs = list(job_folders(tmp_path))
    assert [overrides_of(job) for job in jobs] == [{"tau": n, "data.path": "a b"} for n in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"],
        ["hydra.output_subdir=null", "hydra.job.chdir=true"],
        ["hydra.output_subdir=null", "-m", "seed=1,2"],
    ],
)
def test_hydras_own_settings_work(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "lögs (1)"
    ran = subprocess.run(
        [
            *(sys.executable, str(CONF.parent / "train.py"), *SMALL, *words, "saliency.images=0"),
            *(f"paths.log_dir={folder}", f"paths.cache_dir={tmp_path / 'cache'}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(list(folder.rglob("summary.json"))) == (2 if "-m" in words else 1)
    if "-m" in words:
        (table,) = folder.rglob("sweep.csv")
        assert pd.read_csv(table)["seed"].tolist() == [1, 2]

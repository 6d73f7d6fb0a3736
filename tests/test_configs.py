"""Every file of every config group composes, and its target is instantiated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from composing import CONF, VERBS, composed
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from emodissect.app.config_keys import check_keys
from emodissect.app.config_values import check_values
from emodissect.recording import resolve_layers
from emodissect.studies.baselines import Baseline

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "local"))
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

NEEDS = {
    ("concepts", "file"): ["concepts.path={tmp}/concepts.txt"],
    ("data", "fer2013"): ["data.path={tmp}/fer2013.csv"],
    ("data", "image_folder"): ["data.path={tmp}/faces"],
    ("data", "image_list"): ["data.path={tmp}/faces.csv"],
    ("data", "raf_db"): ["data.path={tmp}/raf_db"],
    ("data", "affectnet"): ["data.path={tmp}/affectnet"],
    ("data", "ferplus"): ["data.path={tmp}/ferplus"],
    ("clip", "file"): ["clip.model_name=RN50", "clip.weights={tmp}/weights.pt"],
    ("model", "custom"): ["model.target=torch.nn.Identity"],
    ("module", "custom"): ["module._target_=lightning.LightningModule"],
    ("data", "custom"): ["data.datamodule._target_=lightning.LightningDataModule", "data.class_names=[a,b]"],
    ("edit", "from_checkpoint"): ["edit.path={tmp}/weights.pt"],
    ("selection", "concept"): ["selection.concepts=[Smile]"],
    ("layer", "named"): ["layer.names=lin1"],
}
"""What some entries leave to the user."""

PLUGINS = {("hparams_search", "optuna"): "hydra_plugins.hydra_optuna_sweeper"}
"""What some entries need installed."""


@pytest.fixture
def user_files(tmp_path: Path) -> Path:
    """Files that a user's own paths could point to."""
    (tmp_path / "concepts.txt").write_text("smile\nfrown\n")
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n")
    for name in ("a", "b"):
        folder = tmp_path / "faces" / name
        folder.mkdir(parents=True)
        for number in range(10):
            grey = np.full((48, 48), 10 * number, dtype=np.uint8)
            Image.fromarray(grey).save(folder / f"{number}.png")
    (tmp_path / "faces.csv").write_text("path,label\nfaces/a/0.png,a\nfaces/b/0.png,b\n")
    (tmp_path / "raf_db" / "EmoLabel").mkdir(parents=True)
    (tmp_path / "raf_db" / "EmoLabel" / "list_patition_label.txt").write_text("train_1.jpg 1\ntest_1.jpg 2\n")
    (tmp_path / "affectnet").mkdir()
    for name in ("training", "validation"):
        (tmp_path / "affectnet" / f"{name}.csv").write_text("subDirectory_filePath,expression\na.jpg,0\n")
    for name in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (tmp_path / "ferplus" / name).mkdir(parents=True)
        (tmp_path / "ferplus" / name / "label.csv").write_text('a.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n')
    torch.save({}, tmp_path / "weights.pt")
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes_and_resolves(verb: str, tmp_path: Path) -> None:
    cfg = composed(verb, run_dir=tmp_path)
    OmegaConf.to_container(cfg, resolve=True)
    assert cfg.task_name == verb


@pytest.mark.parametrize("words", [["model=timm"], ["model=custom", "model.target=a.py:B"]])
def test_a_networks_own_arguments_are_taken_from_the_command_line(words: list[str], tmp_path: Path) -> None:
    assert composed("dissect", *words, "model.arguments={size: 96}", run_dir=tmp_path).model.arguments == {"size": 96}


def verb_of(entry: str) -> str:
    """The command in a config file's first comment."""
    head = "\n".join(entry.splitlines()[:3])
    return next((verb for verb in VERBS if f"{verb}.py" in head), "edit")


@pytest.mark.parametrize(("group", "name"), FILES, ids=[f"{g}={n}" for g, n in FILES])
def test_every_entry_composes_and_is_made(group: str, name: str, user_files: Path) -> None:
    if (group, name) in PLUGINS:
        pytest.importorskip(PLUGINS[group, name], reason="the extra of this entry is not installed")
    text = (CONF / group / f"{name}.yaml").read_text()
    extra = [word.format(tmp=user_files) for word in NEEDS.get((group, name), [])]
    if group == "experiment":
        extra += [f"data.path={user_files}/fer2013.csv"] if "/data: fer2013" in text else []
    cfg = composed(verb_of(text), f"{group}={name}", *extra, run_dir=user_files)
    check_keys(cfg)
    check_values(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    node = cfg.get(group)
    if not isinstance(node, DictConfig):
        return
    if group == "model":
        plain = OmegaConf.to_container(node)
        assert isinstance(plain, dict)
        instantiate(plain["preprocess"])
        instantiate({k: v for k, v in plain.items() if k not in ("preprocess", "class_order", "output")})
    elif group == "logger":
        assert all("_target_" in entry for entry in node.values())
    elif group == "callbacks":
        assert all(instantiate(entry) is not None for entry in node.values())
    elif group == "baseline":
        assert isinstance(instantiate(node[name]), Baseline)
    elif group == "trainer":
        if node.accelerator in ("auto", "cpu") or (node.accelerator == "gpu" and torch.cuda.is_available()):
            instantiate(node, logger=False)
    elif group == "clip" and name == "file":
        assert node.weights
    elif "_target_" in node:
        assert instantiate(node) is not None


def leaves(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every plain value of a nested dictionary."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, (*path, str(name)))
    else:
        yield path, node


@pytest.mark.parametrize("name", [name for group, name in FILES if group == "experiment"])
def test_what_an_experiment_says_holds(name: str, user_files: Path) -> None:
    path = CONF / "experiment" / f"{name}.yaml"
    said = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(said, dict)
    defaults = said.pop("defaults", [])
    cfg = composed(verb_of(path.read_text()), f"experiment={name}", run_dir=user_files)
    found = dict(leaves(OmegaConf.to_container(cfg)))
    for place, value in leaves(said):
        assert found[place] == value, ".".join(place)
    chosen = compose_choices(verb_of(path.read_text()), name)
    for entry in (entry for entry in defaults if isinstance(entry, dict)):
        for group, choice in entry.items():
            assert chosen[group.removeprefix("override").strip().lstrip("/")] == choice


def compose_choices(verb: str, experiment: str) -> dict[str, str]:
    """Which entry of each config group an experiment selects."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(verb, [f"experiment={experiment}"], return_hydra_config=True)
    return dict(cfg.hydra.runtime.choices)


@pytest.mark.parametrize(("group", "name"), FILES, ids=[f"{g}={n}" for g, n in FILES])
def test_every_entry_says_what_it_is(group: str, name: str) -> None:
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    said = [line for line in lines if line.startswith("#") and "@package" not in line]
    assert said, "the first line says what the entry is"
    if group == "experiment":
        assert ".py experiment=" in said[0], "an experiment starts with its command"
    if group in ("model", "optimizer", "scheduler", "augment"):
        for before, line in pairwise(lines):
            is_said = any(text.lstrip().startswith("#") for text in (before, line))
            assert is_said or line.lstrip().startswith("_target_:"), f"no comment on {line}"


def test_layer_entries_name_layers_of_the_study(tmp_path: Path) -> None:
    network = instantiate({"_target_": "emodissect.models.vgg.VGG", "width": 0.02})
    for path in sorted((CONF / "layer").glob("*.yaml")):
        if path.stem == "named":
            continue
        entry = OmegaConf.load(path)
        assert resolve_layers(network, entry.names)


@pytest.mark.parametrize("path", sorted((CONF / "hydra" / "launcher").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_launcher_composes_and_is_made(path: Path, tmp_path: Path) -> None:
    for below in OmegaConf.load(path).get("defaults", []):
        pytest.importorskip(f"hydra_plugins.hydra_{below.split('_')[0]}_launcher", reason="an extra is not installed")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"hydra/launcher={path.stem}", f"hydra.sweep.dir={tmp_path}"]
        launcher = compose("edit", words, return_hydra_config=True).hydra.launcher
    made = instantiate(launcher)
    assert type(made).__name__ == launcher._target_.rpartition(".")[2]

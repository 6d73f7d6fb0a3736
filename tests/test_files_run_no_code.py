"""Files that try to decide what code runs: a marker file would show that they could."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hydra.errors import InstantiationException
from torch import nn

from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.models.file_arguments import filled_from_file
from emodissect.models.vgg import VGG
from emodissect.models.zoo import custom_model, require_network_maker, timm_model

TARGET = "emodissect.models.vgg.VGG"


def attacks(marker: Path) -> dict[str, Any]:
    """Values for `width`, each of which ran a shell command or would, if it were handed to `instantiate`."""
    command = f"touch {marker}"
    return {
        "target": {"_target_": "os.system", "command": command},
        "custom model": {
            "_target_": "emodissect.models.zoo.custom_model",
            "target": "os.system",
            "arguments": {"command": command},
        },
        "partial": {"_partial_": True, "_target_": "os.system", "_args_": [command]},
        "nested in a list": [[{"_target_": "os.system", "command": command}]],
        "nested in a mapping": {"a": {"b": {"_target_": "os.system", "command": command}}},
        "config of a factory": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system"}},
    }


@pytest.mark.parametrize("attack", attacks(Path()))
def test_a_checkpoint_whose_arguments_would_run_a_command_is_refused(
    attack: str, verb: Callable[..., Any], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "hostile.ckpt"
    torch.save(
        {
            "state_dict": VGG(7, 0.05).state_dict(),
            "hyper_parameters": {
                "class_names": ["Happy"],
                "model": {"_target_": TARGET, "width": attacks(marker)[attack]},
            },
        },
        path,
    )
    with pytest.raises(UserError, match=r"is refused: for model\.width it holds .*_target_.*what code runs"):
        verb("train", f"ckpt_path={path}", "model.width=null", "fit=false")
    assert not marker.exists()


def test_a_shared_cache_whose_checkpoint_would_run_a_command_is_refused(
    home: Path, verb: Callable[..., Any], tmp_path: Path
) -> None:
    """Its seal fits: whoever can write into the cache can seal."""
    words = ("train", "model.width=null", "data.train=14", "data.val=7", "data.test=7")
    verb(*words)
    (path,) = (home / "training").glob("*/classifier.ckpt")
    held = torch.load(path, weights_only=True)
    held["hyper_parameters"]["model"]["width"] = attacks(tmp_path / "marker")["custom model"]

    def forge(folder: Path) -> None:
        torch.save(torch.load(path.with_name("metrics.pt")), folder / "metrics.pt")
        torch.save(held, folder / "classifier.ckpt")

    Cache(home).entry("training", json.loads((path.parent / "entry.json").read_text())["key"], forge, anew=True)
    with pytest.raises(UserError, match=r"is refused: for model\.width"):
        verb(*words)
    assert not (tmp_path / "marker").exists()


class Net(nn.Module):
    def __init__(self, width: float, depth: int | None = None, sizes: tuple[int, int] = (1, 1), untyped: Any = None):
        super().__init__()


def filled(name: str, value: Any) -> Any:
    return filled_from_file({"_target_": "x", name: None}, {name: value}, Net, "some.ckpt")[name]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("width", 0.5, 0.5),
        ("width", 2, 2.0),
        ("depth", 3, 3),
        ("sizes", [3, 5], (3, 5)),
        ("untyped", [True, 2, 0.5], [True, 2, 0.5]),
        ("class_order", ["Happy", "Sad"], ["Happy", "Sad"]),
        ("width", None, None),
    ],
)
def test_numbers_that_the_network_takes_come_from_a_file(name: str, value: Any, expected: Any) -> None:
    assert filled(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", "${oc.env:HOME}", "holds str .*HOME.* for model.width. From a file only a number"),
        ("width", {"a": 1}, "holds dict"),
        ("width", float("nan"), "holds float nan"),
        ("width", torch.ones(1), "holds Tensor"),
        ("width", [[1, 2]], "flat list"),
        ("depth", 0.5, r"what Net declares \(Input should be a valid integer"),
        ("sizes", [1, 2, 3], "what Net declares"),
        ("dpeth", 3, "which Net does not take. It takes: width, depth, sizes, untyped"),
        ("class_order", [{"_target_": "os.system"}], "_target_, which would decide what code runs"),
        ("class_order", "Happy", "a list of class names"),
        ("preprocess", {"_TARGET_": "x"}, "holds dict"),
    ],
)
def test_nothing_else_comes_from_a_file(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filled(name, value)


def test_what_is_set_is_never_looked_up_in_the_file() -> None:
    config = {"_target_": "x", "width": 0.5, "depth": 2}
    assert filled_from_file(config, {"width": {"_target_": "os.system"}, "extra": "x"}, Net, "some.ckpt") == config
    assert filled_from_file(config, ["no mapping"], Net, "some.ckpt") == config


def made_without_annotation(**arguments: Any):  # type: ignore[no-untyped-def]
    return Net(1.0)


@pytest.mark.parametrize(
    "found", [Net, nn.Linear, torchvision.models.resnet18, timm.create_model, timm_model, custom_model]
)
def test_networks_and_functions_that_declare_them_are_called(found: Any) -> None:
    require_network_maker(found, "model.target=x")


def test_a_function_of_the_users_needs_no_annotation() -> None:
    require_network_maker(made_without_annotation, "model.target=x")


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.run", "subprocess.Popen", "shutil.rmtree", "builtins.eval", "builtins.exec",
     "torch.load", "torch.hub.load", "numpy.save", "hydra.utils.instantiate", "pathlib.Path", "pickle.loads"],
)  # fmt: skip
def test_what_makes_no_network_is_refused_before_it_is_called(target: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(UserError, match=r"A torch\.nn\.Module class is accepted|is not a torch\.nn\.Module"):
        custom_model(target, {"command": f"touch {marker}", "args": ["touch", str(marker)]})
    assert not marker.exists()


@pytest.mark.parametrize("word", ["model.target=os.system", "model._target_=shutil.rmtree"])
def test_the_command_line_runs_no_function_that_makes_no_network(
    word: str, verb: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    arguments = "{command: touch " + str(tmp_path / "marker") + ", path: " + str(tmp_path / "kept") + "}"
    with pytest.raises((UserError, InstantiationException), match=r"A torch\.nn\.Module class is accepted"):
        verb("train", "model=custom", "model.target=torch.nn.Identity", word, f"model.arguments={arguments}")
    assert (tmp_path / "kept").exists()
    assert not (tmp_path / "marker").exists()

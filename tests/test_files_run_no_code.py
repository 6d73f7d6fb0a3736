"""Malicious files cannot run code: a marker file would show that they did."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from hydra.errors import InstantiationException
from torch import nn

import emodissect
from emodissect.app.stages.classifier import require_resumable
from emodissect.concepts import AnnotationScorer
from emodissect.concepts.concept_set import ConceptSet
from emodissect.concepts.open_clip_model import OpenClip
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.fer2013_files import read_npz
from emodissect.data.images import ImageSet
from emodissect.models.checkpoints import read_state_dict
from emodissect.models.file_arguments import filled_from_file
from emodissect.models.vgg import VGG
from emodissect.models.weights import load_weights
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
    """Its hashes are right: whoever can write into the cache can also write the hashes."""
    words = ("train", "model.width=null", "data.train=14", "data.val=7", "data.test=7")
    verb(*words)
    (path,) = (home / "training").glob("*/classifier.ckpt")
    held = torch.load(path, weights_only=True)
    held["hyper_parameters"]["model"]["width"] = attacks(tmp_path / "marker")["custom model"]

    def forge(folder: Path) -> None:
        torch.save(torch.load(path.with_name("metrics.pt")), folder / "metrics.pt")
        torch.save(held, folder / "classifier.ckpt")

    Cache(home).entry("training", json.loads((path.parent / "entry.json").read_text())["key"], forge, recompute=True)
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
    with pytest.raises((UserError, InstantiationException), match=r"A torch\.nn\.Module class is|has no such argument"):
        verb("train", "model=custom", "model.target=torch.nn.Identity", word, f"model.arguments={arguments}")
    assert (tmp_path / "kept").exists()
    assert not (tmp_path / "marker").exists()


def training_state(folder: Path, **state: Any) -> dict[str, Any]:
    """The content of a Lightning checkpoint, with a ModelCheckpoint's state."""
    paths = {
        "dirpath": str(folder),
        "best_model_path": str(folder / "best.ckpt"),
        "best_model_score": torch.tensor(0.0),
    }
    empty = {name: {} for name in ("state_dict", "loops")} | {
        name: [] for name in ("optimizer_states", "lr_schedulers")
    }
    return {"epoch": 0, "global_step": 1, **empty, "callbacks": {"ModelCheckpoint{}": {**paths, **state}}}


@pytest.mark.parametrize(
    "state",
    [
        {"kth_best_model_path": "{folder}/../../kept"},
        {"last_model_path": "/home"},
        {"best_model_path": "s3://bucket/best.ckpt"},
        {"best_k_models": {"{folder}/../kept": torch.tensor(0.0)}},
        {"best_k_models": ["{folder}/../kept"]},
        {"best_model_path": "{folder}"},
        {"best_model_path": 3},
        {"dirpath": None},
    ],
    ids=str,
)
def test_a_resumed_checkpoint_names_no_files_outside_its_folder(state: dict[str, Any], tmp_path: Path) -> None:
    """Lightning would delete them, including whole folders, when a better checkpoint is saved."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): item for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value

    path = tmp_path / "last.ckpt"
    torch.save(training_state(tmp_path, **{name: filled(value) for name, value in state.items()}), path)
    with pytest.raises(UserError, match=r"is refused: the state of its callback ModelCheckpoint.* is not in"):
        require_resumable(path, 10)


def test_a_resumed_checkpoint_of_ones_own_passes(tmp_path: Path) -> None:
    own = {"best_k_models": {str(tmp_path / "best.ckpt"): torch.tensor(1.0)}, "kth_best_model_path": "", "kth_value": 1}
    torch.save(training_state(tmp_path, **own), tmp_path / "last.ckpt")
    require_resumable(tmp_path / "last.ckpt", 10)


@pytest.mark.parametrize(
    "content",
    [
        3, [1], torch.ones(2), {"a": torch.ones(2)},
        {"epoch": "x"}, {"epoch": None}, {"epoch": -1}, {"lr_schedulers": 3}, {"lr_schedulers": [{"T_max": "x"}]},
        {"lr_schedulers": [3]}, {"global_step": []}, {"callbacks": 3}, {"callbacks": {"ModelCheckpoint": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_a_resume_file_with_a_broken_header_is_reported(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    whole = {**training_state(tmp_path), **content} if isinstance(content, dict) and "a" not in content else content
    torch.save(whole, path)
    if isinstance(whole, dict) and "callbacks" in content:
        require_resumable(path, 10)  # Lightning has nothing to restore
    else:
        with pytest.raises(UserError, match="resume=true"):
            require_resumable(path, 10)


def test_a_hostile_resume_pointer_in_a_shared_cache_starts_the_training_anew(
    verb: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    shared = tmp_path / "shared"
    small = (f"paths.cache_dir={shared}", "data.train=28", "data.val=14", "data.test=14", "trainer.max_epochs=2")
    folder, _ = verb("train", *small, "saliency.images=0")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for held in state["callbacks"].values():
        if "kth_best_model_path" in held:
            held |= {"kth_best_model_path": f"{held['dirpath']}/../../kept", "kth_value": torch.tensor(-1.0)}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    (entry,) = (path.parent for path in (shared / "training").glob("*/entry.json"))
    shutil.rmtree(entry)
    for content in (str(folder / "checkpoints" / "last.ckpt"), "\0", "x" * 10_000, "/dev/null", str(tmp_path)):
        entry.with_suffix(".resume").write_text(content)
        verb("train", *small, "saliency.images=0")
        shutil.rmtree(next((shared / "training").glob("*/entry.json")).parent)
    assert "is refused: the state of its callback" in caplog.text
    assert kept.exists()


@pytest.mark.parametrize("arguments", [{"trust_remote_code": True}, {"bpe_path": "/etc/passwd"}])
def test_a_clip_that_brings_its_config_brings_no_code(arguments: dict[str, Any], tmp_path: Path) -> None:
    config = {"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": arguments}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    clip = OpenClip(f"local-dir:{tmp_path}")
    for part in ("tokenizer", "model"):
        with pytest.raises(
            UserError, match=f"is refused, because its config passes {next(iter(arguments))} to the tokenizer"
        ):
            getattr(clip, part)


def test_a_tokenizer_of_the_hub_runs_no_code_of_its_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "x/y"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("open_clip.get_tokenizer", lambda name, **given: asked.append(given))
    OpenClip(f"local-dir:{tmp_path}").tokenizer  # noqa: B018
    assert asked == [{"trust_remote_code": False}]


def test_no_call_in_the_source_runs_what_a_file_says() -> None:
    """docs/security.md lists the remaining calls; add a new one to its table, with the check that makes it safe."""
    allowed = {
        "torch.load": {"app/stages/classifier.py", "models/checkpoints.py", "concepts/open_clip_model.py"},
        "np.load": {
            "data/fer2013_files.py",
            "data/published_sets.py",
            "data/image_files.py",
            "recording/store.py",
            "demo/sketches/faces.py",
        },
        "yaml.load": {"concepts/concept_files.py", "app/config_keys.py"},
        "spec.loader.exec_module": {"models/zoo.py"},
        "subprocess.run": {"app/manifest.py", "core/table_files.py"},
        "subprocess.Popen": {"demo/sketches/faces.py"},
    }
    refused = (
        *("eval", "exec", "os.system", "torch.jit.load", "torch.hub.load", "pickle.load", "pickle.loads"),
        *("pd.read_pickle", "joblib.load", "yaml.unsafe_load", "yaml.full_load"),
    )
    root = Path(emodissect.__file__).parent
    found: dict[str, set[str]] = {}
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                found.setdefault(ast.unparse(node.func), set()).add(file.relative_to(root).as_posix())
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if ast.unparse(node.func) == "torch.load":
                    assert given["weights_only"] == "True", file
                if ast.unparse(node.func) == "yaml.load":
                    assert given["Loader"] in ("yaml.BaseLoader", "_LOADER"), file  # the second is SafeLoader in C
                assert given.get("allow_pickle", "False") == "False", file
                assert given.get("shell", "False") == "False", file
    assert {name: found[name] for name in refused if name in found} == {}
    for name, files in allowed.items():
        assert found.get(name, set()) <= files, f"{name}: add it to docs/security.md with what guards it"


TERMINAL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\x9b31m"
"""A window's title, a cleared screen, a colour, letters from right to left, and a colour in eight bits."""


def _checkpoint_of_names(path: Path) -> None:
    torch.save({f"{TERMINAL}key": 3}, path)
    read_state_dict(path)


def _weights_of_names(path: Path) -> None:
    torch.save({f"{TERMINAL}key": torch.ones(1)}, path)
    load_weights(nn.Linear(1, 1), path)


def _arrays_of_names(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), **{f"{TERMINAL}key": np.ones(1)})
    read_npz(path.with_suffix(".npz"))


def _columns_of_names(path: Path) -> None:
    path.write_text(f"{TERMINAL}key,b\n1,2\n")
    AnnotationScorer(str(path.rename(path.with_suffix(".csv")))).score(_one_image(), ConceptSet(("a",)), ("x",))


def _one_image() -> ImageSet:
    return ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.arange(1))


@pytest.mark.parametrize("quote", [_checkpoint_of_names, _weights_of_names, _arrays_of_names, _columns_of_names])
def test_a_message_that_quotes_a_file_does_nothing_to_a_terminal(quote: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="key") as raised:
        quote(tmp_path / "hostile")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(str(raised.value))

"""Checkpoints from elsewhere: every format loads, none runs code, and mismatches are reported in a short table."""

from __future__ import annotations

import collections
import functools
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.models.deep_emotion import DeepEmotion
from emodissect.models.file_formats import objects_in
from emodissect.models.vgg import VGG
from emodissect.models.weights import architecture_of, checkpoint_arguments, load_weights, read_state_dict

WIDTH = 0.03125


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return VGG(width=WIDTH).state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def assert_loaded(network: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


FORMS = {
    "plain": lambda s: s,
    "ordered": collections.OrderedDict,
    "released": lambda s: {
        "params": s,
        "logs": {"loss_train": [1.5, 1.2], "acc_val": [np.float64(0.7), np.float32(1)]},
    },
    "array logs": lambda s: {"params": s, "logs": np.arange(3.0)},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
    "data parallel": lambda s: prefixed(s, "module."),
    "net": lambda s: {"net": prefixed(s, "net.")},
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2.0", "callbacks": {}},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "ours, compiled": lambda s: {"state_dict": prefixed(s, "network._orig_mod.")},
    "ours, parallel": lambda s: {"state_dict": prefixed(s, "module.network.")},
    "among others": lambda s: {
        "state_dict": prefixed(s, "net.backbone.") | {"criterion.weight": torch.ones(7), "net.head.bias": torch.ones(1)}
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads(form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(FORMS[form](state), tmp_path / "w.pt")
    network = VGG(width=WIDTH)
    report = load_weights(network, tmp_path / "w.pt")
    assert_loaded(network, state)
    assert set(report.loaded) == set(state)
    if form == "among others":
        assert report.prefix == "net.backbone."
        assert set(report.ignored) == {"criterion.weight", "net.head.bias"}
    else:
        assert report.ignored == ()


def test_safetensors_and_the_old_torch_format_load(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "w.safetensors", tmp_path / "old.pth"):
        network = VGG(width=WIDTH)
        load_weights(network, path)
        assert_loaded(network, state)


def test_counters_that_old_files_lack_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({n: v for n, v in state.items() if "num_batches" not in n}, tmp_path / "w.pt")
    load_weights(VGG(width=WIDTH), tmp_path / "w.pt")


class Wrapped(nn.Module):
    """A user's network with name prefixes that reading removes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"net": nn.Linear(3, 2)})


@pytest.mark.parametrize("outer", ["", "module.", "network."])
def test_a_network_with_a_prefix_of_its_own(outer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, network = Wrapped(), Wrapped()
    torch.save(prefixed(source.state_dict(), outer), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert_loaded(network, source.state_dict())


def test_another_width_is_reported_with_the_key_to_set(tmp_path: Path) -> None:
    torch.save({"params": VGG(width=0.0625).state_dict()}, tmp_path / "w.pt")
    network = VGG(width=WIDTH)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError) as raised:
        load_weights(network, tmp_path / "w.pt")
    message = str(raised.value)
    assert "do not fit VGG" in message
    assert "conv1a.weight: file 4x1x3x3, network 2x1x3x3" in message
    assert "… and " in message
    assert "a VGG of width 0.0625: model=vgg model.width=0.0625 model.num_classes=7 model.channels=1" in message
    assert len(message.splitlines()) == 12
    assert_loaded(network, before)


def test_another_architecture_is_reported_in_a_short_table(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(DeepEmotion().state_dict(), tmp_path / "deep.pt")
    with pytest.raises(UserError) as raised:
        load_weights(VGG(width=WIDTH), tmp_path / "deep.pt")
    message = str(raised.value)
    assert "missing in the file: " in message
    assert "unexpected in the file: " in message
    assert "This checkpoint is a DeepEmotion: model=deep_emotion" in message
    assert len(message.splitlines()) < 32
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="Choose the network it was trained with"):
        load_weights(VGG(width=WIDTH), tmp_path / "other.pt")
    assert architecture_of(state) == ("vgg", {"width": WIDTH, "num_classes": 7, "channels": 1})
    assert architecture_of({"other.weight": torch.ones(2)}) is None


class Trap:
    """Would leave a marker file if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(old: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"params": state, "logs": Trap(mark)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"(?s)run code.*refused.*model\.state_dict\(\)"):
        read_state_dict(tmp_path / "w.pt")
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear.*refused"):
        read_state_dict(tmp_path / "w.pt")
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": functools.partial(int)}, tmp_path / "p.pt")
    with pytest.raises(UserError, match="refused"):
        checkpoint_arguments(tmp_path / "p.pt")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["new", "old", "safetensors"])
def test_a_file_cut_off_is_one_clear_message(kept: float, kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "new")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_state_dict(path)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("some notes, no weights\n" * 20)
    with pytest.raises(UserError, match="not a checkpoint, or is truncated"):
        read_state_dict(tmp_path / "notes.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match="is empty"):
        read_state_dict(tmp_path / "empty.pt")
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder"):
        read_state_dict(tmp_path)
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "log.pt")
    with pytest.raises(UserError, match=r"has no state dict \(it has: epoch, best\)"):
        read_state_dict(tmp_path / "log.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="it has: Tensor"):
        read_state_dict(tmp_path / "tensor.pt")


def test_arguments_of_foreign_files_are_none(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}}, tmp_path / "lightning.ckpt")
    for name in ("w.pt", "w.safetensors", "lightning.ckpt"):
        assert checkpoint_arguments(tmp_path / name) == {}


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE html>\n<html>Not found</html>", "version https://git-lfs.github.com/spec/v1"]
)
def test_a_text_in_place_of_weights_is_no_bomb(text: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text(text)
    with pytest.raises(UserError, match=f"is not a checkpoint.*a text: '{text[:15]}") as caught:
        read_state_dict(tmp_path / "weights.pt")
    assert "run code" not in str(caught.value)


# -- files of other programs, and of several parts ------------------------------------------------------------------


class Options:
    """Objects that a training stores next to the weights."""

    def __init__(self) -> None:
        self.lr = 0.1


class Net(nn.Module):
    """A user's small network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)


def other_programs(folder: Path) -> dict[str, tuple[bytes | None, str]]:
    np.save(folder / "array.npy", np.ones(3))
    np.savez(folder / "arrays.npz", w=np.ones(3))
    for name in ("model.weights.h5", "weights.pt"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(name, b"x" * 100)
    return {
        "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5 file, as Keras writes them.*layer by layer"),
        "model.weights.h5.zip": (None, "Keras 3 model"),
        "weights.pt.zip": (None, r"an archive that holds weights\.pt\. Unpack it"),
        "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
        "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.1", "ONNX model"),
        "array.npy": (None, "one NumPy array"),
        "arrays.npz": (None, r"NumPy archive \(\.npz\)"),
        "weights.tar.gz": (b"\x1f\x8b\x08" + bytes(100), "compressed archive"),
    }


@pytest.mark.parametrize("name", ["keras.h5", "model.weights.h5.zip", "weights.pt.zip", "model.tflite", "model.onnx",
                                  "array.npy", "arrays.npz", "weights.tar.gz"])  # fmt: skip
def test_files_of_other_programs_are_recognised_by_content(name: str, tmp_path: Path) -> None:
    content, said = other_programs(tmp_path)[name]
    path = tmp_path / "renamed.pt"
    path.write_bytes(content if content is not None else (tmp_path / name).read_bytes())
    with pytest.raises(UserError, match=f"has no torch weights.*{said}"):
        read_state_dict(path)


@pytest.mark.parametrize("old", [False, True])
def test_objects_beside_the_weights_are_named_with_the_command_that_fits(old: bool, tmp_path: Path) -> None:
    def refused(content: Any) -> str:
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(UserError, match="refused") as caught:
            read_state_dict(tmp_path / "w.pt")
        return str(caught.value)

    network = Net()
    said = refused({"epoch": 3, "net": network.state_dict(), "args": Options()})
    assert "It has epoch, net, args; args (test_weights.Options) besides the weights." in said
    assert "torch.save(torch.load('w.pt', weights_only=False)['net'], 'weights.pt')" in said
    assert "whole pickled network (test_weights.Net)" in refused(network)
    assert "torch.load('w.pt', weights_only=False)['model'].state_dict()" in refused({"model": network, "epoch": 1})


def test_a_pickle_of_arrays_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps([Options()]))
    with pytest.raises(UserError, match=r"a pickled list\. Save the weights alone"):
        read_state_dict(tmp_path / "w.pkl")


def test_describing_a_pickle_runs_nothing(tmp_path: Path) -> None:
    for old in (False, True):
        mark = tmp_path / f"mark{old}"
        torch.save({"w": Trap(mark)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": Trap(mark)}))
        for name in ("w.pt", "plain.pkl"):
            assert objects_in(tmp_path / name) is None  # and nobody is advised to load it
        assert not mark.exists()


def test_names_that_belong_to_no_layer_are_ignored_and_reported(tmp_path: Path, caplog: Any) -> None:
    network = Net()
    state = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items()}
    foreign = {"aux_head.weight": torch.ones(2), "total_ops": torch.ones(1), "fc.total_params": torch.ones(1)}
    torch.save(state | foreign, tmp_path / "w.pt")
    assert set(load_weights(network, tmp_path / "w.pt").ignored) == set(foreign)
    assert "3 names that belong to none of its layers are ignored (aux_head.weight, " in caplog.text
    assert float(network.fc.weight.detach().mean()) == 0.5


def test_a_deeper_network_is_another_network(tmp_path: Path) -> None:
    deep, shallow = (nn.ModuleDict({"layer1": nn.Sequential(*(nn.Linear(2, 2) for _ in range(n)))}) for n in (3, 2))
    torch.save(deep.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"(?s)unexpected in the file: 2\n    layer1\.2\.weight"):
        load_weights(shallow, tmp_path / "w.pt")


PARTS = ("student", "teacher")


@pytest.mark.parametrize("form", ["keys", "prefixes", "lightning"])
def test_of_student_and_teacher_the_user_chooses(form: str, tmp_path: Path) -> None:
    network = Net()
    parts = {
        n: {k: torch.full_like(v, i) for k, v in network.state_dict().items()}
        for i, n in enumerate(("student", "teacher"))
    }
    flat = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
    torch.save(
        {"keys": parts, "prefixes": flat, "lightning": {"state_dict": flat, "epoch": 3}}[form], tmp_path / "w.pt"
    )
    with pytest.raises(UserError, match=r"holds 2 sets of weights that fit Net: student, teacher\..*ckpt_part=student"):
        load_weights(network, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", part="teacher")
    assert float(network.fc.weight.detach().mean()) == 1
    with pytest.raises(UserError, match="Did you mean 'teacher'"):
        load_weights(network, tmp_path / "w.pt", part="techer")
    torch.save({"model": parts["student"], "model_ema": dict(parts["student"])}, tmp_path / "same.pt")
    load_weights(network, tmp_path / "same.pt")  # two copies of one are no question
    assert float(network.fc.weight.detach().mean()) == 0


def test_weights_that_are_not_finite_are_refused_and_masks_are_not(tmp_path: Path) -> None:
    network = Net()
    network.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    with torch.no_grad():
        network.fc.weight[0, 1] = torch.nan
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"NaN or infinite weights in 1 of 3 tensors: fc\.weight \(1 of 6\).*earlier"):
        load_weights(network, tmp_path / "nan.pt")


def test_of_a_lightning_checkpoint_the_state_dict_counts_whatever_callbacks_keep(tmp_path: Path) -> None:
    network = Net()
    state = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items()}
    before_averaging = {name: value + 1 for name, value in state.items()}
    content = {"pytorch-lightning_version": "2.5", "state_dict": state, "current_model_state": before_averaging}
    torch.save(content, tmp_path / "w.ckpt")
    load_weights(network, tmp_path / "w.ckpt")
    assert float(network.fc.weight.detach().mean()) == 0.5

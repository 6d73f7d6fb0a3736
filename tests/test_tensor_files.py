"""Archives of tensors: damage is detected, and a program in them is not run."""

from __future__ import annotations

import os
import pickle
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import emodissect
from emodissect.core.errors import UserError
from emodissect.core.tensor_files import (
    DamagedArchiveError,
    check_archive,
    is_torchscript,
    save_tensors,
    torchscript_tensors,
)
from emodissect.models.checkpoints import read_state_dict
from emodissect.models.weights import load_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.shared = self.conv
        self.half_ = nn.Parameter(torch.randn(3).half())
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(tmp_path / "scripted.pt"))
    return network, tmp_path / "scripted.pt"


def test_weights_of_a_torchscript_archive_equal_the_networks(scripted: tuple[nn.Module, Path]) -> None:
    network, path = scripted
    assert is_torchscript(path)
    held = torchscript_tensors(path)
    for name, value in network.state_dict().items():
        assert torch.equal(held[name], value), name
    other = Small()
    load_weights(other, path)
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_the_program_of_an_archive_is_never_loaded(
    scripted: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("torch.jit.load was called"))
    read_state_dict(scripted[1])


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_an_archive_that_would_build_something_else_is_refused(
    scripted: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.pt"
    with zipfile.ZipFile(scripted[1]) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            content = pickle.dumps(_Touch(tmp_path / "marker"), 2) if name == "scripted/data.pkl" else old.read(name)
            new.writestr(name.replace("scripted", "hostile"), content)
    assert is_torchscript(hostile)
    with pytest.raises(UserError, match=r"it refers to __builtin__\.getattr"):
        read_state_dict(hostile)
    assert not (tmp_path / "marker").exists()


def test_any_flipped_byte_of_the_weights_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.randn(1000)}, path)
    check_archive(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("weights/data/0").header_offset
    for position in torch.randint(start + 200, start + 4000, (20,)).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match="the checksum of its record 'weights/data/0' is wrong"):
            read_state_dict(path)


def test_archives_without_checksums_load(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_state_dict(tmp_path / "weights.pt")["weight"], torch.ones(3))


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "weights.pt")
    with (
        zipfile.ZipFile(tmp_path / "weights.pt") as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="is compressed, which torch never writes"):
        read_state_dict(tmp_path / "bomb.pt")
    with pytest.raises(DamagedArchiveError):
        check_archive(tmp_path / "bomb.pt")


def test_files_of_tensors_carry_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"b": "c"})
    finally:
        os.umask(before)
    assert oct(stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode)) == "0o640"
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert (file.metadata(), file.get_tensor("a").tolist()) == ({"b": "c"}, [1, 1, 1])


def test_every_file_of_tensors_is_written_so() -> None:
    root = Path(emodissect.__file__).parent
    own = [file.name for file in root.rglob("*.py") if "save_file" in file.read_text()]
    assert own == ["tensor_files.py"]

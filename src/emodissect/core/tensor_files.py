"""Tensor files: safetensors; archives of torch.save and TorchScript, verified and read without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


class DamagedArchiveError(Exception):
    """A damaged archive, or one that unpacks to more than it declares."""


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the umask's permissions; safetensors would make it readable by its owner only."""
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    path.chmod(mode)


def is_zip(path: str | Path) -> bool:
    """Whether a file is a zip archive, damaged or not (`zipfile.is_zipfile` raises an error for some damaged ones)."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def check_archive(path: str | Path) -> None:
    """Verify the CRC-32 of every record of a torch archive (5 GB/s); other files are ignored.

    torch.load does not verify checksums. Archives written without them (`torch.serialization.set_crc32_options(False)`)
    pass.

    Raises:
        DamagedArchiveError: a record is damaged, or compressed, which torch never does with tensors but zip bombs do.
    """
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            for record in records:
                # TorchScript's program is compressed, and is never unpacked here
                if record.compress_type != zipfile.ZIP_STORED and "/code/" not in record.filename:
                    raise DamagedArchiveError(f"its record {record.filename!r} is compressed, which torch never writes")
            if any(record.CRC for record in records) and (damaged := archive.testzip()) is not None:
                raise DamagedArchiveError(f"the checksum of its record {damaged!r} is wrong")
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedArchiveError(str(error)) from error


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, i.e. has a program besides the weights."""
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return False


def torchscript_tensors(path: str | Path) -> dict[str, Tensor]:
    """The parameters, buffers and other tensors of a TorchScript archive, by their path in the module.

    `torch.jit.load` would also load the archive's program. Here its objects become plain attribute holders, and only
    tensors, lists and numbers are built. Other tensors cannot be distinguished from parameters and buffers: keep the
    names that the network has.

    Raises:
        DamagedArchiveError: a damaged archive, or one with other kinds of objects.
    """
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            (tree,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            with archive.open(tree) as stream:
                root = _TreeReader(stream, archive, tree.removesuffix("data.pkl")).load()
    except Exception as error:  # a damaged pickle fails in many ways
        raise DamagedArchiveError(str(error) or type(error).__name__) from error
    return dict(_tensors(root, ""))


class _Module:
    """A module of the archive: its attributes without code."""

    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


class _TreeReader(pickle.Unpickler):
    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            whole = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self.storages[key] = whole
        if len(self.storages[key]) < count:
            raise pickle.UnpicklingError(f"the tensor {key} is truncated")
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()  # as_strided checks the bounds


def _tensors(value: Any, path: str, outer: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, _Module) and id(value) not in outer:  # a tree that contains itself would recurse forever
        for name, part in getattr(value, "attributes", {}).items():
            yield from _tensors(part, f"{path}.{name}" if path else str(name), (*outer, id(value)))

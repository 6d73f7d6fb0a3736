"""Detection of a weights file's format by its content, with advice for formats that cannot be loaded."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emodissect.core.tensor_files import is_zip

_SAVE = "torch.save(model.state_dict(), 'weights.pt')"
_TRUST = "Only where you trust the file, since loading it runs code from it"


def advice_for(path: Path) -> str | None:
    """Advice for a file of a known format without torch weights; None for an unknown format.

    Detected by content, not by extension: Keras (HDF5 and .keras), TensorFlow Lite, ONNX, NumPy, GGUF, archives.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return (
            "It is an HDF5 file, as Keras writes them. Rebuild the network in torch, copy the weights layer by layer "
            "(Keras convolutions are (height, width, in, out), torch's (out, in, height, width)), and save them: "
            f"{_SAVE}."
        )
    if start[4:8] == b"TFL3":
        return f"It is a TensorFlow Lite model. Rebuild the network in torch and save its weights: {_SAVE}."
    if start.startswith(b"\x93NUMPY"):
        return (
            "It is one NumPy array. Name the arrays as the network's state dict does, and save them: "
            "torch.save({'fc.weight': torch.from_numpy(array), ...}, 'weights.pt')."
        )
    if start.startswith(b"GGUF"):
        return f"It is a GGUF model. Load it where it came from, and save its weights: {_SAVE}."
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "It is a compressed archive. Unpack it and name the weights file inside."
    if is_zip(path):
        return _of_zip(path)
    if b"onnx" in start.lower() or b"pytorch" in start[:40]:
        return f"It is an ONNX model. Save the weights of the torch network that it was exported from: {_SAVE}."
    return None


def objects_in(path: Path) -> str | None:
    """Describes a pickle that has objects besides weights, and how to save only the weights; None if unreadable.

    The pickle is read with every class replaced by an inert stand-in, so that no code of it runs.
    """
    try:
        with _pickle_of(path) as stream:
            held = _Outline(stream).load()
    except Exception:  # a pickle of any kind and state
        return None
    if isinstance(held, _Stand):
        if held.is_network:
            return (
                f"It is a whole pickled network ({held.name}). Where its class can be imported: {_SAVE}. {_TRUST}: "
                f"torch.save(torch.load('{path.name}', weights_only=False).state_dict(), 'weights.pt')."
            )
        return f"It is a pickled {held.name}. Save the weights alone, as tensors by name: {_SAVE}."
    if not isinstance(held, Mapping):
        return f"It is a pickled {type(held).__name__}. Save the weights alone, as tensors by name: {_SAVE}."
    kinds = {str(key): value.name for key, value in held.items() if isinstance(value, _Stand)}
    if any(not kind.rpartition(".")[2][:1].isupper() for kind in kinds.values()):
        return None  # the result of a function call: never advise running it
    modules = [key for key, value in held.items() if isinstance(value, _Stand) and value.is_network]
    plain = [key for key, value in held.items() if isinstance(value, Mapping) and _tensors_in(value)]
    objects = ", ".join(f"{key} ({kind})" for key, kind in kinds.items()) or "objects"
    weights = f"{plain[0]!r}]" if plain else f"{modules[0]!r}].state_dict()" if modules else "...]"
    return (
        f"It has {', '.join(map(str, list(held)[:8]))}; {objects} besides the weights. {_TRUST}: "
        f"torch.save(torch.load('{path.name}', weights_only=False)[{weights}, 'weights.pt')."
    )


def _of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # damaged: reading it says so
        return None
    if "model.weights.h5" in names:
        return f"It is a Keras 3 model. Rebuild the network in torch, copy the weights, and save them: {_SAVE}."
    if any(name.endswith(".npy") for name in names):
        return (
            "It is a NumPy archive (.npz). Where its arrays are named as the network's state dict: "
            "torch.save({n: torch.from_numpy(a) for n, a in numpy.load('file.npz').items()}, 'weights.pt')."
        )
    inside = [name for name in names if name.lower().endswith((".pt", ".pth", ".ckpt", ".safetensors"))]
    if inside:
        return f"It is an archive that holds {', '.join(inside[:3])}. Unpack it and name that file."
    return None


def _pickle_of(path: Path) -> Any:
    if is_zip(path):
        archive = zipfile.ZipFile(path)
        (tree,) = (name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1)
        return archive.open(tree)
    stream = open(path, "rb")  # noqa: SIM115 - closed by the caller
    try:
        if isinstance(_Outline(stream).load(), int):  # the magic number of torch's old format
            _ = [_Outline(stream).load() for _ in range(2)]  # its protocol and the machine it was made on
            return stream
    except Exception:  # any other pickle
        pass
    stream.seek(0)
    return stream


class _Stand:
    """Stand-in for an object of a class that is not loaded."""

    name = ""
    state: Any = None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    @property
    def is_network(self) -> bool:
        """Whether the object's state is that of a torch module."""
        return isinstance(self.state, Mapping) and "_modules" in self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state[0] if isinstance(state, tuple) and state else state

    def __call__(self, *_: Any, **__: Any) -> _Stand:
        return _Stand()

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...


class _Tensor(_Stand):
    """Stand-in for a tensor."""


class _Outline(pickle.Unpickler):
    """Unpickles only plain containers; classes become stand-ins, storages None."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        base = _Tensor if module.startswith("torch._utils") or name == "_reconstruct" else _Stand
        return type(name, (base,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid[1] if isinstance(pid, tuple) and pid and pid[0] == "module" else None  # torch's old format


def _tensors_in(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, _Tensor) for item in value.values())

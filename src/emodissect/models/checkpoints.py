"""Safe reading of checkpoint files: only data is loaded, never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emodissect.core.errors import UserError, nearest, reason
from emodissect.core.tensor_files import check_archive, is_torchscript, torchscript_tensors
from emodissect.models.file_formats import advice_for, objects_in

_CONTAINERS = ("params", "state_dict", "model_state_dict", "model", "network", "net", "weights")
_PREFIXES = ("module.", "net.", "model.", "network.", "_orig_mod.")


def read_state_dict(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The weights in a file, by name.

    Accepted: safetensors; torch files with a plain state dict, or one under `params`, `state_dict`,
    `model_state_dict`, `model`, `network`, `net` or `weights`; Lightning checkpoints; TorchScript archives, whose
    program is not loaded. The prefixes `module.`, `net.`, `model.`, `network.` and `_orig_mod.` are removed if every
    name has them.

    Args:
        part: the name of one of several state dicts in the file, e.g. `student`; None for the default one.

    Raises:
        UserError: a missing or damaged file, one without weights, or one that would run code.
    """
    parts = state_dicts(path)
    if part is None:
        return next(iter(parts.values()))
    if part not in parts:
        raise UserError(f"{path} has no weights under '{part}'. {nearest(part, [name for name in parts if name])}")
    return parts[part]


def state_dicts(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """All state dicts in a file, by their key ("" if the file itself is the state dict); the default one first.

    Raises:
        UserError: as :func:`read_state_dict`.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content and "state_dict" in content:
        # ignore callback states, which include the weights that a moving average was computed from
        content = {"state_dict": content["state_dict"]}
    found = _state_dicts_in(content)
    if not found:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path} has no state dict (it has: {held or 'nothing'}). Accepted: a dict of tensors, or one under "
            f"{', '.join(_CONTAINERS)}."
        )
    return {name: without_prefixes(state) for name, state in found.items()}


def checkpoint_arguments(path: str | Path) -> dict[str, Any]:
    """The hyperparameters in a checkpoint of this project (class_names, model, ...), {} for any other file.

    Raises:
        UserError: a missing or damaged file, or one that would run code.
    """
    content = read_checkpoint(Path(path))
    held = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return dict(held) if isinstance(held, Mapping) and "class_names" in held else {}


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that wrappers (DataParallel, Lightning, compile) add to all names."""
    plain = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
    while prefix := next((p for p in _PREFIXES if plain and all(name.startswith(p) for name in plain)), None):
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain


def _state_dicts_in(content: Any) -> dict[str, dict[str, Tensor]]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {"": dict(content)}
    found: dict[str, dict[str, Tensor]] = {}
    for name in sorted(content, key=lambda name: _CONTAINERS.index(name) if name in _CONTAINERS else len(_CONTAINERS)):
        for inner, state in _state_dicts_in(content[name]).items():
            if name in _CONTAINERS or len(state) > 1:  # a single tensor is a logged metric
                found[".".join(filter(None, (name, inner)))] = state
    return found


def read_checkpoint(path: Path) -> Any:
    """The content of a checkpoint file: a state dict, or a dict with more than that.

    Raises:
        UserError: a missing or damaged file, or one that would run code.
    """
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"ckpt_path={path} {fault}. Give a .ckpt, .pt, .pth or .safetensors file.")
    if path.stat().st_size == 0:
        raise UserError(f"ckpt_path={path} is empty: writing or copying it was interrupted. Copy it again.")
    try:
        advice = advice_for(path)
    except OSError as error:
        raise UserError(f"ckpt_path={path} cannot be read: {error.strerror}.") from error
    if advice is not None:
        raise UserError(f"{path} has no torch weights. {advice}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise _damaged(path, error) from error
    try:
        check_archive(path)
        if is_torchscript(path):
            return torchscript_tensors(path)
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if begins := _text_at_the_start(path):
            raise _damaged(path, ValueError(f"a text: {begins!r}")) from error
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise _code(path, error) from error
        raise _damaged(path, error) from error
    except (
        Exception
    ) as error:  # a truncated file fails in many ways: EOFError, KeyError, RuntimeError, struct.error ...
        raise _damaged(path, error) from error


def _text_at_the_start(path: Path) -> str:
    """The start of a text file (a web page, a git-lfs pointer); empty for other files."""
    with open(path, "rb") as file:
        start = file.read(40).partition(b"\n")[0].rstrip()
    return start.decode() if start.isascii() and start.decode().isprintable() else ""


def _code(path: Path, error: Exception) -> UserError:
    said = str(error)
    name = said.split("GLOBAL ", 1)[1].split()[0] if "GLOBAL " in said else ""
    advice = objects_in(path) or "Where you trust it, save its weights alone: torch.save(model.state_dict(), 'w.pt')."
    return UserError(
        f"{path} holds Python objects{f' ({name})' if name else ''}, not only weights; loading them would run code "
        f"from the file, so it is refused. {advice}"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a checkpoint, or is truncated or damaged ({reason(error, 160)}). Accepted: "
        "torch files with a state dict, Lightning checkpoints, safetensors. "
        "If it was downloaded or copied, do that again."
    )


def _numbers() -> list[Any]:
    """NumPy's scalars and arrays, by current and old names: they occur in training logs in checkpoints."""
    scalar, rebuilt = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [
        scalar,
        rebuilt,
        (scalar, "numpy.core.multiarray.scalar"),
        (rebuilt, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *kinds,
    ]

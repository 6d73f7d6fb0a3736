"""Fingerprints of values, source code and weights, for cache keys."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import math
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_OURS = __name__.partition(".")[0]
_INSTALLED = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib"))


def fingerprint(value: Any) -> Any:
    """A value as plain JSON values, which change whenever its behaviour may change.

    Numbers, strings, lists and mappings are themselves; tensors and arrays are the hash of their content. Any other
    object is its class's module and name, the hash of the class's source (:func:`source_hash`), and its parameters:
    the result of its own ``fingerprint()``, the fields of a dataclass, the weights and structure of a network, else all
    attributes. A function is its source with the values in its closure. Nothing is imported, and nothing is called
    except an object's own ``fingerprint()``.

    Example:
        >>> from fractions import Fraction
        >>> fingerprint({"a": (1, 2.5), "b": None})
        {'a': [1, 2.5], 'b': None}
        >>> fingerprint(Fraction)["module"], fingerprint(Fraction)["name"]
        ('fractions', 'Fraction')
    """
    return _plain(value, ())


def content_key(key: Mapping[str, Any]) -> str:
    """The first 24 hex digits of the SHA-256 of the key's fingerprint as JSON with sorted names."""
    return hashlib.sha256(json.dumps(fingerprint(key), sort_keys=True).encode()).hexdigest()[:24]


def source_hash(code: type | Callable[..., Any]) -> str:
    """SHA-256 of the source of a class or function; comments, docstrings and formatting do not count.

    It covers the defining file, the files of a class's bases, and the files in the same folder that any of them
    import. Installed libraries count by name and version; code without a file (in a notebook) by its own text.
    """
    parts: set[str] = set()
    files: set[Path] = set()
    for part in _parts_of(code):
        file, library = _file_of(part), (part.__module__ or "").partition(".")[0]
        if file is None:
            parts.add(_unfiled(part))
        elif library != _OURS and any(file.is_relative_to(folder) for folder in _INSTALLED):
            parts.add(f"{library} {getattr(sys.modules.get(library), '__version__', sys.version)}")
        else:
            files |= _with_imported(file)
    parts |= {f"{file.name} {_parsed(file)[0]}" for file in files}
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's state dict: names, shapes, types and values."""
    import torch  # a slow import, not for --help and tab completion

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture_hash(network: nn.Module) -> str:
    """SHA-256 of a network's structure: its modules as printed, and their source."""
    digest = hashlib.sha256(repr(network).encode())
    kinds = {type(module) for module in network.modules()}
    for source in sorted({source_hash(kind) for kind in kinds if not kind.__module__.startswith("torch.")}):
        digest.update(source.encode())
    return digest.hexdigest()


def _plain(value: Any, outer: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if id(value) in outer:
        return "itself"
    outer = (*outer, id(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(item, outer) for name, item in value.items()}
    if isinstance(value, list | tuple | range) or _is_list_config(value):
        return [_plain(item, outer) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, outer) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if _is(value, "numpy", "generic"):
        return _plain(value.item(), outer)
    if _is(value, "numpy", "ndarray") or _is(value, "torch", "Tensor"):
        return {"sha256": _content_hash(value), "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, functools.partial):
        return {"partial": _plain(value.func, outer), "arguments": _plain([value.args, value.keywords], outer)}
    if isinstance(value, MethodType):
        return {"method": value.__func__.__qualname__, "of": _plain(value.__self__, outer)}
    if isinstance(value, type | FunctionType):
        cells = {} if isinstance(value, type) else _closed_over(value)
        return {**_named(value), **({"closure": _plain(cells, outer)} if cells else {})}
    return {**_named(type(value)), "parameters": _parameters(value, outer)}


def _parameters(value: Any, outer: tuple[int, ...]) -> Any:
    if callable(own := getattr(value, "fingerprint", None)):
        return _plain(own(), outer)
    if _is(value, "torch.nn", "Module"):
        return {"architecture": architecture_hash(value), "weights": weights_hash(value)}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), outer) for field in fields(value)}
    if isinstance(value, Enum):
        return value.name
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    held = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    if not held and type(value).__repr__ is not object.__repr__:  # a C type: torch.float32, a regex
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    computed = {name for kind in type(value).__mro__ for name, part in vars(kind).items() if _is_cached(part)}
    return _plain({name: part for name, part in held.items() if name not in computed}, outer)


def _is_cached(part: Any) -> bool:
    """Whether a class's attribute is a cached property, which is derived from other attributes."""
    return isinstance(part, functools.cached_property)


def _named(code: Any) -> dict[str, str]:
    return {"module": str(code.__module__), "name": code.__qualname__, "source": source_hash(code)}


def _content_hash(values: Any) -> str:
    if _is(values, "torch", "Tensor"):
        import torch

        values = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
    return hashlib.sha256(content).hexdigest()


def _is(value: Any, module: str, name: str) -> bool:
    """Whether a value is an instance of a library's class; the library is not imported for this."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _is_list_config(value: Any) -> bool:
    return type(value).__name__ == "ListConfig" and type(value).__module__.startswith("omegaconf.")


def _closed_over(function: Any) -> dict[str, Any]:
    names = function.__code__.co_freevars
    return {name: cell.cell_contents for name, cell in zip(names, function.__closure__ or (), strict=True)}


def _parts_of(code: Any) -> Iterator[Any]:
    if isinstance(code, type):
        yield from (kind for kind in code.__mro__ if kind.__module__ not in ("builtins", "abc", "typing"))
    else:
        yield inspect.unwrap(code)


def _file_of(code: Any) -> Path | None:
    """The file that defines a class or function; from its code, since two modules may have had the same name."""
    held = list(vars(code).values()) if isinstance(code, type) else [code]
    for function in map(inspect.unwrap, filter(callable, held)):
        if isinstance(function, FunctionType) and function.__module__ == code.__module__:
            file = Path(function.__code__.co_filename)
            if file.is_file():
                return file.resolve()
    try:
        file = Path(inspect.getfile(code))
    except (TypeError, OSError):
        return None
    return file.resolve() if file.is_file() else None


def _with_imported(file: Path) -> set[Path]:
    """A file and those in its folder that it imports, directly or indirectly."""
    found: set[Path] = set()
    left = {file}
    while left:
        found |= left
        siblings = {path.stem: path for path in file.parent.glob("*.py")}
        left = {siblings[name] for path in left for name in _parsed(path)[1] if name in siblings} - found
    return found


def _parsed(file: Path) -> tuple[str, frozenset[str]]:
    about = file.stat()
    return _parse(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1024)
def _parse(file: Path, changed: int, size: int) -> tuple[str, frozenset[str]]:
    """The hash of a file's code, and all names in its import statements."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # not Python source
        return hashlib.sha256(content).hexdigest(), frozenset()
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(part for name in node.names for part in name.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            imported.update([*(node.module or "").split("."), *(name.name for name in node.names)])
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imported)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _unfiled(code: Any) -> str:
    """The code of a class or function without a file: defined in a notebook or at runtime."""
    if isinstance(code, type):
        own = {name: part for name, part in sorted(vars(code).items()) if not name.startswith("__") or callable(part)}
        return " ".join([code.__qualname__, *(f"{name} {_unfiled(part)}" for name, part in own.items())])
    if isinstance(code, staticmethod | classmethod):
        code = code.__func__
    if not isinstance(code, FunctionType):
        return repr(code) if isinstance(code, bool | int | float | str) else type(code).__qualname__
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return f"{code.__code__.co_code.hex()} {code.__code__.co_names} {_constants(code.__code__.co_consts)}"


def _constants(values: tuple[Any, ...]) -> str:
    return " ".join(
        f"{value.co_code.hex()} {_constants(value.co_consts)}" if hasattr(value, "co_code")
        else repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
        for value in values
    )  # fmt: skip

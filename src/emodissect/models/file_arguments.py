"""Network arguments that may be read from a checkpoint: numbers, checked against the network's signature."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from emodissect.core.errors import UserError

_HYDRA_KEYWORD = re.compile(r"_[a-z]+_")

CLASS_ORDER = "class_order"
"""The only argument that may be a list of names: they are only compared with the data's classes."""

NEVER = ("output", "forward")
"""Arguments of the forward pass; they are strings and never read from a file."""


def filled_from_file(
    model: Mapping[str, Any], stored: Any, constructor: Callable[..., Any], path: str | Path
) -> dict[str, Any]:
    """The model's config with its null arguments filled from the values stored in a checkpoint.

    Only finite numbers, booleans and flat lists of them are accepted, for arguments that the constructor has and of the
    type it declares. Strings are not: they may name code, a file or an address. `class_order` may be a list of names.
    Arguments that are not null are never read from the file.

    Args:
        model: the config of the network, e.g. `{"_target_": ..., "width": None}`.
        stored: the network's arguments in the checkpoint; untrusted.

    Raises:
        UserError: the file has anything else for an argument that is null in the config.
    """
    filled = dict(model)
    if not isinstance(stored, Mapping):
        return filled
    for name, value in model.items():
        if value is None and name not in NEVER and stored.get(name) is not None:
            filled[name] = _accepted(name, stored[name], constructor, path)
    return filled


def _accepted(name: str, value: Any, constructor: Callable[..., Any], path: str | Path) -> Any:
    keywords = sorted({key for key in _keys(value) if _HYDRA_KEYWORD.fullmatch(key)})
    if keywords:
        raise UserError(
            f"{path} is refused: for model.{name} it holds {', '.join(keywords)}, which would decide what code runs. "
            f"Load its weights alone, and set model.{name} yourself. Where did this file come from?"
        )
    if name == CLASS_ORDER:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return [str(item) for item in value]
        raise _refused(name, value, "a list of class names", path)
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(type(item) in (bool, int, float) and math.isfinite(item) for item in numbers):
        raise _refused(name, value, "a number, true, false, or a flat list of them", path)
    declared = _declared_types(constructor)
    if name not in declared:
        raise UserError(
            f"{path} holds a value for model.{name}, which {_called(constructor)} does not take. It takes: "
            f"{', '.join(declared) or 'nothing'}."
        )
    try:
        kind = TypeAdapter(declared[name], config=ConfigDict(arbitrary_types_allowed=True))
        return kind.validate_python(value)
    except PydanticSchemaGenerationError:
        return value  # pydantic does not support this type; the value is a plain number in any case
    except ValidationError as error:
        wanted = "; ".join(str(fault["msg"]) for fault in error.errors())
        raise _refused(name, value, f"what {_called(constructor)} declares ({wanted})", path) from error


def _refused(name: str, value: Any, accepted: str, path: str | Path) -> UserError:
    return UserError(
        f"{path} holds {type(value).__name__} {value!r:.80} for model.{name}. From a file only {accepted} is taken. "
        f"Set model.{name} yourself."
    )


def _keys(value: Any) -> Iterator[str]:
    """Every key at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _keys(item)


def _declared_types(constructor: Callable[..., Any]) -> dict[str, Any]:
    """A constructor's argument names -> declared types (Any if undeclared)."""
    function = vars(constructor).get("__init__", constructor) if isinstance(constructor, type) else constructor
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        hints = {}
    return {
        parameter.name: hints.get(parameter.name, Any)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _called(constructor: Callable[..., Any]) -> str:
    return getattr(constructor, "__qualname__", type(constructor).__name__)

"""Every ``key=`` in a message of the package exists, in conf/ or as an argument of a function in the same module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import CONF

from emodissect.app.arguments import RENAMED
from emodissect.app.config_keys import shipped_keys

SOURCE = CONF.parent / "src" / "emodissect"
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
ADVICE = re.compile(r"(?<![\w.$@{/<-])([a-z]\w*(?:[./]\w+)*)=(?!=)([\w./-]*)")


def messages(tree: ast.Module) -> Iterator[str]:
    """The strings of a module that are not docstrings, markup or code; formatted values become §."""
    passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "§" for part in node.values)
            passed |= {id(part) for part in node.values}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            text = node.value
        else:
            continue
        if not re.search(r"</\w+>|\w=\"|^\s*(import|from) ", text, re.MULTILINE):
            yield text


def unknown_advice(text: str, arguments: set[str]) -> list[str]:
    """The keys and choices in a text that do not exist.

    Args:
        text: the message.
        arguments: of the functions in the same module, since library messages may name them.
    """
    shipped = shipped_keys(CONF)
    unknown = []
    for key, value in ADVICE.findall(
        re.sub(r"\w\([^()]*(\([^()]*\)[^()]*)?\)", "", text)
    ):  # without calls of other packages
        place, _, name = key.rpartition(".")
        if key.startswith("hydra"):
            continue
        if key in GROUPS:
            choice = re.fullmatch(r"[a-z]\w*", value)
            if choice and value != "null" and not (CONF / key / f"{value}.yaml").exists() and key != "layer":
                unknown.append(f"{key}={value}")
        elif name not in shipped.below.get(place, ()) and not (not place and key in arguments):
            unknown.append(f"{key}=")
    return unknown


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Give another folder: paths.log_dir=<folder>.", []),
        ("Give another folder: paths.output_dir=<folder>.", ["paths.output_dir="]),
        ("trainer=cpu runs everywhere, trainer=tpu nowhere.", ["trainer=tpu"]),
        ("torch.save(state, weights_only=True) is not ours.", []),
        ("size=48 is an argument, siez=48 is not.", ["siez="]),
    ],
)
def test_a_key_that_does_not_exist_is_found(text: str, unknown: list[str]) -> None:
    assert unknown_advice(text, {"size"}) == unknown


ARGUMENTS = {
    node.arg
    for path in SOURCE.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.arg)
}
"""The names of all arguments in the package."""


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_every_key_in_a_message_exists(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {"key"}
    arguments |= shipped_keys(CONF).below["callbacks.best"]  # a message names the callback beside its argument
    if "app" not in path.parts:  # a library names the arguments of its callers
        arguments |= ARGUMENTS
    unknown = [key for text in messages(tree) for key in unknown_advice(text, arguments)]
    assert [
        key for key in unknown if not {key, key.rstrip("=")} & RENAMED.keys() and not key.startswith("experiment=")
    ] == []

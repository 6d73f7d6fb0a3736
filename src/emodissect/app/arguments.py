"""Preprocessing of command-line arguments for Hydra: quoting, shorthands, and errors for renamed keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from emodissect.core.errors import UserError

RENAMED = {
    "evaluate": "label_quality",
    "labels": "labels_dir",
    "pictures.maps": "saliency.maps",
    "pictures.saliency": "saliency.images",
    "pictures.ids": "saliency.ids",
    "pictures.samples": "saliency.samples",
    "study.choose_on": "study.selection_split",
    "study.judge_on": "study.test_split",
    "study.select_on": "study.select_on_test (true or false)",
    "model=yours": "model=custom",
    **{
        f"experiment=seed_{name}": f"experiment=published_{name}"
        for name in ("edit", "sweep", "proportional", "layer_table", "concept_shares", "weight_norm")
    },
}
"""Renamed keys and choices -> their current names."""


PATHS = frozenset(
    (
        *("path", "ckpt_path", "labels_dir", "data_dir", "images_dir", "root_dir", "log_dir", "cache_dir", "run_dir"),
        *("save_dir", "dirpath", "default_root_dir", "weights", "ferplus", "dir"),
    )
)
"""Keys (last part) whose values are files or folders."""

VALUED_FLAGS = frozenset(
    (
        *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
        "--experimental-rerun",
    )
)
"""Hydra's flags that take a value."""

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""Values of Hydra's flag --info; the value is optional."""

FUNCTIONS = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\s*\(")
"""The start of a sweep or cast function of Hydra's grammar."""


def prepared(arguments: Sequence[str], conf: Path) -> list[str]:
    """The arguments in the form that Hydra accepts: flags first, then overrides in its grammar.

    Args:
        conf: the folder of config groups; folders of ``--config-dir`` are included.

    Raises:
        UserError: a renamed key, an argument that is not an override, or a value with a syntax error.
    """
    flags, words = split_flags(arguments)
    refuse_renamed(words)
    groups = [conf, *config_dirs(flags)]
    sweeps = any(flag in ("-m", "--multirun") for flag in flags)
    words = with_null_groups(with_layer_words(without_plus(words, conf), groups), groups)
    return [*flags, *(in_grammar(word, sweeps) for word in words)]


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags (with their values) from overrides: argparse rejects overrides that follow a flag.

    >>> split_flags(["tau=0,1", "-m", "factor=2", "--config-dir", "mine"])
    (['-m', '--config-dir', 'mine'], ['tau=0,1', 'factor=2'])
    """
    flags: list[str] = []
    words: list[str] = []
    rest = iter(range(len(arguments)))
    for place in rest:
        word = arguments[place]
        following = arguments[place + 1] if place + 1 < len(arguments) else None
        if not word.startswith("-"):
            words.append(word)
        elif word in ("--info", "-i"):
            flags.append(f"--info={following if following in INFO else 'all'}")
            if following in INFO:
                next(rest)
        else:
            flags.append(word)
            if word in VALUED_FLAGS and following is not None:
                flags.append(following)
                next(rest)
    return flags, words


def config_dirs(flags: Sequence[str]) -> list[Path]:
    """The folders given with ``--config-dir``."""
    found: list[Path] = []
    for place, word in enumerate(flags):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            found += [Path(name) for name in ([value] if equals else flags[place + 1 : place + 2])]
    return found


def without_plus(words: Sequence[str], conf: Path) -> list[str]:
    """``+experiment=published_edit`` as ``experiment=published_edit``: every group is in the defaults list.

    User-defined groups keep the plus.
    """
    return [
        word[1:] if word.startswith("+") and "=" in word and _is_group(word[1:].partition("=")[0], conf) else word
        for word in words
    ]


def _is_group(name: str, conf: Path) -> bool:
    return name.startswith("hydra/") or (name.replace("_", "").isalnum() and (conf / name).is_dir())


def in_grammar(word: str, sweeps: bool = False) -> str:
    """The override in Hydra's grammar: text that the grammar does not accept is quoted, ``~`` is the home folder.

    >>> in_grammar("ckpt_path=epoch=3.ckpt")
    "ckpt_path='epoch=3.ckpt'"
    >>> in_grammar("data.path=a,b.csv")  # two choices, unless a file has this name
    'data.path=a,b.csv'

    Args:
        sweeps: whether commas separate jobs of a multirun; else text with a comma that needs quotes is one value.

    Raises:
        UserError: an argument without a value, or an incomplete list, mapping or function.
    """
    if word.startswith("~"):
        return word
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"'{word}' is not an override: write {word}=<value>. Flags start with a dash (--help).")
    is_path = key.rpartition(".")[2] in PATHS
    if is_path and _exists(value):
        return word if _as_text(value) else f"{key}={quoted(str(Path(value).expanduser()))}"
    given = _parsed(value)
    if given is not None:
        number = is_path and isinstance(given.value(), int | float) and not isinstance(given.value(), bool)
        return f"{key}={quoted(value)}" if number else word
    if value.startswith("[") and value.endswith("]") and not re.search(r"[\[\]{}'\"]", value[1:-1]):
        return f"{key}=[{','.join(_piece(piece) for piece in value[1:-1].split(','))}]"
    if value[:1] in "[{'\"" or FUNCTIONS.match(value):
        raise UserError(
            f"{word}: the value is incomplete or not in Hydra's grammar. To pass it as text, quote it: "
            f'"{key}={quoted(value)}"'
        )
    pieces = value.split(",") if sweeps else [value]
    return f"{key}={','.join(_piece(piece) for piece in pieces)}"


def _piece(text: str) -> str:
    home = str(Path(text).expanduser()) if text.startswith("~") else text
    return home if _parsed(home) else quoted(home)


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _as_text(value: str) -> bool:
    """Whether the grammar parses a value as exactly this text."""
    given = _parsed(value)
    return given is not None and given.value() == value


def quoted(text: str) -> str:
    """The text quoted for Hydra's grammar."""
    return str(QuotedString(text, Quote.single).with_quotes())


def _parsed(value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def with_layer_words(arguments: Sequence[str], groups: Sequence[Path]) -> list[str]:
    """The arguments with ``layer=`` extended to any module path, glob or list, besides the group's entries.

    ``layer=layer4.1.conv2``, ``layer=conv4*`` and ``layer=[lin1,lin2]`` become ``layer=named layer.names=...``; a
    sweep (``layer=a,b`` with ``-m``) becomes one over ``layer.names`` if any of its values is not an entry.
    """
    entries = {path.stem for conf in groups for path in (conf / "layer").glob("*.yaml")}
    words: list[str] = []
    for word in arguments:
        value = word.removeprefix("layer=")
        if value == word:
            words.append(word)
        elif value.startswith("["):
            words += ["layer=named", f"layer.names={value}"]
        elif all(choice.strip() in entries for choice in value.split(",")):
            words.append(word)
        else:
            words += ["layer=named", f"layer.names={value}"]
    return words


def with_null_groups(arguments: Sequence[str], groups: Sequence[Path]) -> list[str]:
    """The arguments with ``group=null`` replaced: by the group's entry ``none`` if there is one, else by ``~group``.

    Hydra accepts null for a group in a defaults list, but not on the command line.
    """
    words: list[str] = []
    for word in arguments:
        group = word.removesuffix("=null").removesuffix("=")
        if group == word or not any((conf / group).is_dir() for conf in groups):
            words.append(word)
        else:
            has_none = any((conf / group / "none.yaml").exists() for conf in groups)
            words.append(f"{group}=none" if has_none else f"~{group}")
    return words


def refuse_renamed(arguments: Sequence[str]) -> None:
    """Raise UserError for a renamed key or choice; the message gives the new name."""
    for word in arguments:
        plain = word.lstrip("+~")
        new = RENAMED.get(plain) or RENAMED.get(plain.partition("=")[0])
        if new:
            raise UserError(f"'{word}' was renamed: use {new}. CHANGELOG.md lists every renamed key.")

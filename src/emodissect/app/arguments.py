"""The words of a command line, made ready for Hydra: what its grammar lacks, and what was renamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
"""Keys and choices of the first edition, and what they are called now."""


def prepared(arguments: Sequence[str], conf: Path) -> list[str]:
    """The words as Hydra takes them.

    Args:
        arguments: as typed, without the program's name.
        conf: the folder of config groups; those of ``--config-dir`` are looked at as well.

    Raises:
        UserError: a key that was renamed.
    """
    refuse_renamed(arguments)
    groups = [conf, *config_dirs(arguments)]
    return with_flags_first(with_null_groups(with_layer_words(arguments, groups), groups))


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """The folder of a user's own groups, as ``--config-dir`` names it."""
    found: list[Path] = []
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            found += [Path(value if equals else word) for word in ([value] if equals else arguments[place + 1 :][:1])]
    return found


def with_layer_words(arguments: Sequence[str], groups: Sequence[Path]) -> list[str]:
    """Command-line words with ``layer=`` made free: beside the group's entries any module path, glob or list works.

    ``layer=layer4.1.conv2``, ``layer=conv4*`` and ``layer=[lin1,lin2]`` become ``layer=named layer.names=...``; a
    sweep over several (``layer=a,b`` with ``-m``) becomes one over ``layer.names`` where any of them is no entry.

    Args:
        arguments: as typed, without the program's name.
        groups: the folders of config groups.
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
    """Command-line words with ``group=null`` made legal: the group's entry ``none`` where it has one, else no group.

    Hydra takes null for a group in a file's defaults, and refuses it on the command line.

    Args:
        arguments: as typed, without the program's name.
        groups: the folders of config groups.
    """
    words: list[str] = []
    for word in arguments:
        group = word.removesuffix("=null")
        if group == word or not any((conf / group).is_dir() for conf in groups):
            words.append(word)
        else:
            has_none = any((conf / group / "none.yaml").exists() for conf in groups)
            words.append(f"{group}=none" if has_none else f"~{group}")
    return words


def with_flags_first(arguments: Sequence[str]) -> list[str]:
    """The same with ``-m`` in front: between overrides Python's parser of arguments would refuse those behind it."""
    flags = ("-m", "--multirun")
    return [word for word in arguments if word in flags] + [word for word in arguments if word not in flags]


def refuse_renamed(arguments: Sequence[str]) -> None:
    """Raises UserError for a key or a choice that has another name now; the message gives it."""
    for word in arguments:
        plain = word.lstrip("+~")
        new = RENAMED.get(plain) or RENAMED.get(plain.partition("=")[0])
        if new:
            raise UserError(f"'{word}' was renamed: use {new}. CHANGELOG.md lists every renamed key.")

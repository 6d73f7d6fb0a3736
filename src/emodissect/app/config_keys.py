"""Validation of config keys: unused keys are rejected, misspelt ones with the nearest match."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from emodissect.core.errors import UserError, nearest
from emodissect.core.places import config_groups

OPEN = (
    *("callbacks", "logger", "published", "quality.similarities", "quality.templates"),
    *("model.arguments", "concepts.concepts", "data.class_names"),
)
"""Mappings whose keys are names chosen by the user."""

OF_NO_FILE = {"training": {"monitor"}, "model": {"preprocess", "class_order"}}
"""Mapping -> keys that are read although conf/ does not list them."""

HYDRAS = frozenset(("_target_", "_partial_", "_convert_", "_recursive_", "_args_"))


@dataclass(frozen=True)
class ShippedKeys:
    """The keys of conf/.

    Attributes:
        below: dotted path of a mapping ("" is the top level) -> the keys that any file has there.
        of_target: ``_target_`` -> the keys that files give next to it.
    """

    below: dict[str, set[str]] = field(default_factory=dict)
    of_target: dict[str, set[str]] = field(default_factory=dict)

    def note(self, place: str, node: Mapping[str, Any]) -> None:
        """Add the keys of a mapping and of those inside it."""
        names = {str(name) for name in node} - {"defaults", "hydra"}
        self.below.setdefault(place, set()).update(names)
        if "_target_" in node:
            self.of_target.setdefault(str(node["_target_"]), set()).update(names)
        for name in names:
            if isinstance(node[name], Mapping):
                self.note(f"{place}.{name}".lstrip("."), node[name])


@cache
def shipped_keys(conf: Path) -> ShippedKeys:
    """The keys of all files in conf/; takes a tenth of a second."""
    found = ShippedKeys()
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        if group.startswith(("hydra", "local")):
            continue
        text = path.read_text(encoding="utf-8")
        at_top = group == "." or "@package _global_" in text.partition("\n")[0]
        found.note("" if at_top else group, yaml.load(text, Loader=_LOADER) or {})
        if not at_top:
            found.note("", {group: None})
    return found


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_keys(cfg: DictConfig) -> None:
    """Raise UserError for a key that nothing reads, whether from the command line or a file.

    A key counts as read if conf/ has it, the class of its group accepts it as an argument, or an interpolation refers
    to it.
    """
    shipped = shipped_keys(config_groups())
    named, named_relative = _interpolated(cfg)
    for place, node in _mappings(cfg):
        target = OmegaConf.select(node, "_target_", throw_on_missing=False)
        for key in map(str, node):
            full = f"{place}.{key}".lstrip(".")
            if key in HYDRAS or key in OF_NO_FILE.get(place, ()) or full in named or key in named_relative:
                continue
            if target is not None:
                if key not in shipped.of_target.get(str(target), ()) and not takes(target, key):
                    raise UserError(f"{full}: {target} has no such argument. {nearest(key, arguments(target))}")
            elif place and isinstance(node._get_node(key), DictConfig) and "_target_" in node[key]:
                continue  # an entry with a user-chosen name, such as a baseline
            elif place in shipped.below and place not in OPEN and key not in shipped.below[place]:
                raise UserError(f"{full}: nothing reads this key. {nearest(key, sorted(shipped.below[place]))}")


def misspelt_key(verb: str, words: Sequence[str], full: str, conf: Path) -> str:
    """Advice for an override whose key the config does not have."""
    place, _, key = full.rpartition(".")
    node = _composed(verb, words, conf)
    node = OmegaConf.select(node, place) if node is not None and place else node
    if not isinstance(node, DictConfig):
        return nearest(full, sorted(shipped_keys(conf).below[""]))
    target = node.get("_target_")
    known = {str(name) for name in node} - HYDRAS
    if target is not None:
        if takes(target, key) and key in arguments(target):
            return f"It is an argument of {target} that the config does not list: add it with a plus, +{full}=…."
        known |= set(arguments(target))
    return nearest(key, sorted(known))


def takes(target: Any, key: str) -> bool:
    """Whether a class or function accepts an argument of this name; True where that cannot be determined."""
    names, is_open = _signature(target)
    return is_open or key in names


def arguments(target: Any) -> list[str]:
    """The names of the arguments of a class or function."""
    return _signature(target)[0]


def _signature(target: Any) -> tuple[list[str], bool]:
    """The names of a target's arguments, and whether it may accept others.

    Classes of this package pass ``**kwargs`` to their base class; what other code does with them is unknown.
    """
    names: list[str] = []
    try:
        found = get_object(str(target))
        own = inspect.isclass(found) and found.__module__.partition(".")[0] == __package__.partition(".")[0]
        for callee in [base for base in found.__mro__ if "__init__" in vars(base)] if own else [found]:
            parameters = inspect.signature(callee).parameters.values()
            names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                return names, False
    except Exception:  # importing a user's module may raise anything; instantiating it reports the error
        return [], True
    return names, True


def _composed(verb: str, words: Sequence[str], conf: Path) -> DictConfig | None:
    """The config with only the group choices among the overrides; None where they do not compose."""
    groups = [word for word in words if (conf / re.split("[=@]", word.lstrip("+~"))[0]).is_dir()]
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose(verb, groups)
    except Exception:  # the advice is then given without the config
        return None


def _mappings(node: DictConfig, place: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every mapping of a config with its dotted path; interpolations are not followed."""
    yield place, node
    for key in map(str, node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            yield from _mappings(value, f"{place}.{key}".lstrip("."))


def _interpolated(cfg: DictConfig) -> tuple[set[str], set[str]]:
    """The keys that absolute and that relative interpolations refer to; ``${a.b}`` refers to a and a.b."""
    named: set[str] = set()
    relative: set[str] = set()
    for dots, path in re.findall(r"\$\{(?:\w+:)?(\.*)([\w.]+)", str(OmegaConf.to_container(cfg))):
        parts = path.split(".")
        (relative if dots else named).update(".".join(parts[: end + 1]) for end in range(len(parts)))
    return named, relative

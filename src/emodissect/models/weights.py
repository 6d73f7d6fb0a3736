"""Foreign weights into a network, or a short table of why they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.models.checkpoints import checkpoint_arguments, read_state_dict
from emodissect.models.deep_emotion import DeepEmotion
from emodissect.models.vgg import VGG

__all__ = ["LoadReport", "architecture_of", "checkpoint_arguments", "load_weights", "read_state_dict"]

_SHOWN = 8
_KNOWN: dict[str, type[VGG] | type[DeepEmotion]] = {"vgg": VGG, "deep_emotion": DeepEmotion}


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        path: the file.
        loaded: names of the weights taken.
        ignored: names in the file that belong to something else (a loss, a metric, another part).
        prefix: what was taken off the names to fit the network, beyond the usual prefixes.
    """

    path: str
    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    prefix: str


def load_weights(network: nn.Module, path: str | Path) -> LoadReport:
    """Loads a file's weights into a network, all of them or none.

    Forms and prefixes as in `read_state_dict`; beyond them, the one prefix that makes the names fit is found
    (`backbone.` in a file of several parts). Counters that old files lack (`num_batches_tracked`) may be missing.

    Raises:
        UserError: a file that cannot be read safely, or weights that do not fit: a table of the missing, the unexpected
            and those of another shape, and what the file seems to be.
    """
    state = read_state_dict(path)
    wanted = network.state_dict()
    fitting, prefix, ignored = _best_fit(state, wanted)
    missing = [name for name in wanted if name not in fitting and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in fitting if name not in wanted]
    different = [
        (name, fitting[name], wanted[name])
        for name in wanted
        if name in fitting and fitting[name].shape != wanted[name].shape
    ]
    if missing or unexpected or different:
        raise UserError(_misfit(network, path, fitting, missing, unexpected, different))
    network.load_state_dict(fitting, strict=False)
    return LoadReport(str(path), tuple(fitting), tuple(ignored), prefix)


def architecture_of(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The entry of the `model` group that a state dict belongs to, and its arguments; None where it is not ours."""
    for entry, network in _KNOWN.items():
        if arguments := network.arguments_of(state):
            return entry, arguments
    return None


def _best_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """The part of the file that fits best: without a prefix, or behind one of those that its names carry."""

    def hits(names: Iterable[str]) -> int:
        return sum(name in wanted for name in names)

    best, best_prefix = dict(state), ""
    # A user's network may itself keep everything under `model.`, which reading took off.
    first = next(iter(wanted), "")
    roots = [first[: end + 1] for end, letter in enumerate(first) if letter == "."]
    for root in roots:
        restored = {root + name: value for name, value in state.items()}
        if hits(restored) > hits(best):
            best = restored
    prefixes = {name[: end + 1] for name in state for end, letter in enumerate(name) if letter == "."}
    for prefix in sorted(prefixes, key=lambda p: (p.count("."), p)):
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if hits(inside) > hits(best):
            best, best_prefix = inside, prefix
    ignored = [name for name in state if not name.startswith(best_prefix)] if best_prefix else []
    return best, best_prefix, ignored


def _misfit(
    network: nn.Module,
    path: str | Path,
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    different: list[tuple[str, Tensor, Tensor]],
) -> str:
    lines = [f"the weights in {path} do not fit {type(network).__name__}:"]
    lines += _block("missing in the file", missing)
    lines += _block("unexpected in the file", unexpected)
    lines += _block(
        "of another shape",
        [f"{name}: file {_shape(given)}, network {_shape(own)}" for name, given, own in different],
    )
    found = architecture_of(state)
    if found:
        entry, arguments = found
        keys = " ".join(f"model.{key}={_value(value)}" for key, value in arguments.items())
        width = f" of width {_value(arguments['width'])}" if "width" in arguments else ""
        lines.append(f"This checkpoint is a {_KNOWN[entry].__name__}{width}: model={entry} {keys}")
    else:
        lines.append("Choose the network it was trained with by model=, model.name= or model.target=.")
    return "\n".join(lines)


def _block(title: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    more = [f"    … and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return [f"  {title}: {len(rows)}", *(f"    {row}" for row in rows[:_SHOWN]), *more]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

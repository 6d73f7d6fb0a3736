"""Loading of weights from any source into a network, or a short table of why they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from emodissect.core.errors import UserError, listed, nearest
from emodissect.models.checkpoints import checkpoint_arguments, read_state_dict, state_dicts
from emodissect.models.deep_emotion import DeepEmotion
from emodissect.models.vgg import VGG

__all__ = ["LoadReport", "architecture_of", "checkpoint_arguments", "load_weights", "read_state_dict"]

log = logging.getLogger(__name__)

_SHOWN = 8
_COUNTERS = ("total_ops", "total_params", "num_batches_tracked")  # of thop and of norms that keep no statistics
_KNOWN: dict[str, type[VGG] | type[DeepEmotion]] = {"vgg": VGG, "deep_emotion": DeepEmotion}


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        path: the file.
        loaded: names of the loaded weights.
        ignored: names in the file that belong to something else (a loss, a metric, another part).
        prefix: prefix that was removed from the names, beyond the usual ones.
        part: the key of the state dict, if the file has several.
    """

    path: str
    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    prefix: str
    part: str = ""


def load_weights(network: nn.Module, path: str | Path, part: str | None = None) -> LoadReport:
    """Load a file's weights into a network, all of them or none.

    Formats and prefixes as in `read_state_dict`; beyond these, a prefix that makes the names fit is detected
    (`backbone.` in a file of several parts). Counters that old files lack (`num_batches_tracked`) may be missing.
    If all of the network's weights are found, names outside its layers (an auxiliary head, counters of a profiler) are
    ignored with a warning; an extra layer inside one of its blocks is an error.

    Args:
        part: which weights, if the file has several that fit: their key, or the prefix of their names (`student`,
            `teacher`, `ema`).

    Raises:
        UserError: a file that cannot be read safely, weights that are not finite, several sets that fit and no `part`,
            or weights that do not fit: lists missing and unexpected names and other shapes, and suggests the
            architecture.
    """
    wanted = network.state_dict()
    fits = _fits(state_dicts(path), wanted, network)
    if part is not None:
        named = [fit for fit in fits if part in (fit.part, fit.name)]
        if not named:
            known = [fit.name for fit in fits if fit.name]
            raise UserError(f"{path} has no weights called '{part}'. {nearest(part, known)}")
        fits = named
    whole = [fit for fit in fits if fit.complete]
    if len(whole) > 1 and any(_differ(whole[0].state, other.state) for other in whole[1:]):
        names = ", ".join(fit.name or "the file itself" for fit in whole)
        raise UserError(
            f"{path} holds {len(whole)} sets of weights that fit {type(network).__name__}: {names}. Say which one: "
            f"ckpt_part={whole[0].name or whole[1].name}."
        )
    fit = max(fits, key=lambda fit: (fit.complete, fit.hits))
    if not fit.complete:
        raise UserError(_misfit(network, path, fit))
    ignored = (*fit.ignored, *fit.foreign)
    _require_finite(fit.state, wanted, network, path)
    if fit.foreign:
        log.warning(
            "%s: all weights of %s are found; %d names that belong to none of its layers are ignored (%s).",
            *(path, type(network).__name__, len(fit.foreign), listed(fit.foreign, 3)),
        )
    loaded = {name: value for name, value in fit.state.items() if name in wanted}
    network.load_state_dict(loaded, strict=False)
    return LoadReport(str(path), tuple(loaded), ignored, fit.prefix, fit.part)


def architecture_of(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The choice of the `model` group and its arguments that fit a state dict; None if it is not one of ours."""
    for entry, network in _KNOWN.items():
        if arguments := network.arguments_of(state):
            return entry, arguments
    return None


@dataclass(frozen=True)
class _Fit:
    """A set of weights compared with the names and shapes of a network's weights."""

    part: str
    prefix: str
    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    foreign: tuple[str, ...]
    different: tuple[tuple[str, Tensor, Tensor], ...]
    hits: int

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.different)

    @property
    def name(self) -> str:
        """Its name for the user: the prefix of its weights' names, or its key."""
        return self.prefix.rstrip(".") or self.part


def _fits(parts: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Tensor], network: nn.Module) -> list[_Fit]:
    """The candidate sets of weights in the file: each part, with or without a prefix of its names.

    Per part, all complete candidates, else the one that fits best.
    """
    fits: list[_Fit] = []
    for part, state in parts.items():
        candidates = [("", dict(state))]
        # a user's network may itself have everything under `model.`, which reading removed
        first = next(iter(wanted), "")
        candidates += [("", {root + name: value for name, value in state.items()}) for root in _prefixes(first)]
        prefixes = sorted({prefix for name in state for prefix in _prefixes(name)}, key=lambda p: (p.count("."), p))
        for prefix in prefixes:
            inside = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
            candidates.append((prefix, inside))
        compared = [_compared(part, prefix, found, state, wanted, network) for prefix, found in candidates]
        complete = [fit for fit in compared if fit.complete]
        fits += complete or [max(compared, key=lambda fit: fit.hits)]
    return fits


def _compared(
    part: str,
    prefix: str,
    state: dict[str, Tensor],
    whole: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    network: nn.Module,
) -> _Fit:
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in wanted]
    foreign = [name for name in surplus if not missing and _foreign(name, network)]
    return _Fit(
        part,
        prefix,
        state,
        ignored=tuple(name for name in whole if not name.startswith(prefix)),
        missing=tuple(missing),
        unexpected=tuple(name for name in surplus if name not in foreign),
        foreign=tuple(foreign),
        different=tuple(
            (name, state[name], wanted[name])
            for name in wanted
            if name in state and not is_lazy(wanted[name]) and state[name].shape != wanted[name].shape
        ),
        hits=sum(name in wanted for name in state),
    )


def _foreign(name: str, network: nn.Module) -> bool:
    """Whether a name is outside the network's layers: of a child it does not have, or a profiler's counter."""
    return name.split(".")[0] not in dict(network.named_children()) or name.rpartition(".")[2] in _COUNTERS


def _prefixes(name: str) -> list[str]:
    return [name[: end + 1] for end, letter in enumerate(name) if letter == "."]


def _differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() != other.keys() or any(not torch.equal(one[name], other[name]) for name in one)


def _require_finite(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: nn.Module, path: str | Path
) -> None:
    """Raise UserError for NaN anywhere, and for infinite parameters; buffers may have infinities, e.g. in masks."""
    parameters = dict(network.named_parameters())
    bad = {
        name: int((~value.isfinite()).sum()) if name in parameters else int(value.isnan().sum())
        for name, value in state.items()
        if name in wanted and value.is_floating_point()
    }
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        worst = listed([f"{name} ({count:,} of {state[name].numel():,})" for name, count in bad.items()], 3)
        raise UserError(
            f"{path} holds NaN or infinite weights in {len(bad)} of {len(state)} tensors: {worst}. The training it "
            "comes from diverged: take an earlier checkpoint."
        )


def _misfit(network: nn.Module, path: str | Path, fit: _Fit) -> str:
    lines = [f"the weights in {path} do not fit {type(network).__name__}:"]
    lines += _block("missing in the file", fit.missing)
    lines += _block("unexpected in the file", (*fit.unexpected, *fit.foreign))
    lines += _block(
        "of another shape",
        [f"{name}: file {_shape(given)}, network {_shape(own)}" for name, given, own in fit.different],
    )
    found = architecture_of(fit.state)
    if found:
        entry, arguments = found
        keys = " ".join(f"model.{key}={_value(value)}" for key, value in arguments.items())
        width = f" of width {_value(arguments['width'])}" if "width" in arguments else ""
        lines.append(f"This checkpoint is a {_KNOWN[entry].__name__}{width}: model={entry} {keys}")
    else:
        lines.append("Choose the network it was trained with by model=, model.name= or model.target=.")
    return "\n".join(lines)


def _block(title: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    more = [f"    … and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return [f"  {title}: {len(rows)}", *(f"    {row}" for row in rows[:_SHOWN]), *more]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

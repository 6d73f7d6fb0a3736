"""Resolving of layer names to modules of a network."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from emodissect.core.errors import UserError, nearest

_GLOB = frozenset("*?[")


def resolve_layers(network: nn.Module, spec: str | Sequence[str]) -> list[str]:
    """The module paths for ``spec``, without duplicates, in the given order (globs and ``all``: in module order).

    - ``all``: all convolution and linear layers, including the one that gives the logits. The output projection in
      ``nn.MultiheadAttention`` is excluded: torch reads its weights but never calls it, so it has no output.
    - a module path as in ``network.named_modules()``, e.g. ``conv4b`` or ``layer4.1.conv2``; any module with a forward,
      including containers such as ``nn.Sequential``.
    - a glob over these paths, as in :mod:`fnmatch` (``*`` also matches dots): the matching modules without children
      (``layer4.*``: convolutions, norms, activations) or, if there are none, the matching composite ones (``layer4.?``:
      the blocks).
    - a list of any of these.

    Args:
        network: the network, which may be wrapped for distributed training or compiled.

    Raises:
        UserError: an unknown path, a glob that matches nothing, or an empty list; the message names the nearest path.
    """
    base = unwrapped(network)
    entries = [spec] if isinstance(spec, str) else list(spec)
    if not entries:
        raise UserError("layer: the list is empty. Give a module path, a glob, a list of these, or 'all'.")
    names: dict[str, None] = {}
    for entry in entries:
        names.update(dict.fromkeys(_resolve(base, str(entry))))
    return list(names)


def conv_and_linear(network: nn.Module) -> list[str]:
    """Paths of all convolution and linear layers that are called, in module order: the meaning of ``all``."""
    uncalled = _uncalled(network)
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and name and id(module) not in uncalled
    ]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel's and ``torch.compile``'s wrappers, whose paths users know.

    Raises:
        UserError: a ``nn.DataParallel``, whose replicas would overwrite each other's activations.
    """
    if isinstance(network, nn.DataParallel):
        raise UserError(
            "nn.DataParallel cannot be recorded: its replicas share their hooks. "
            "Record the network inside (.module), or use DistributedDataParallel (trainer=ddp)."
        )
    if isinstance(network, nn.parallel.DistributedDataParallel):
        return unwrapped(network.module)
    if isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
        return unwrapped(inner)
    return network


def _resolve(network: nn.Module, entry: str) -> list[str]:
    if entry == "all":
        if found := conv_and_linear(network):
            return found
        raise UserError(
            f"layer=all: {type(network).__name__} has no convolution and no linear layer. "
            f"Name a module. {nearest('', _known(network))}"
        )
    if _GLOB.intersection(entry):
        return _glob(network, entry)
    try:
        module = network.get_submodule(entry)
    except AttributeError:
        module = None
    if module is None or not entry:
        raise UserError(
            f"layer={entry!r}: {type(network).__name__} has no module of that path. {nearest(entry, _known(network))} "
            "Give a module path, a glob such as 'conv4*', a list of these, or 'all' (every convolution and linear)."
        )
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        inside = [f"{entry}.{name}" for name, _ in module.named_children()]
        raise UserError(
            f"layer={entry!r} is a {type(module).__name__}: it only contains modules and has no output of its own. "
            f"Name one inside. {nearest(entry, inside)}"
        )
    return [entry]


def _glob(network: nn.Module, pattern: str) -> list[str]:
    uncalled = _uncalled(network)
    matched = {
        name: module
        for name, module in network.named_modules()
        if name
        and fnmatchcase(name, pattern)
        and id(module) not in uncalled
        and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    }
    leaves = [name for name, module in matched.items() if next(module.children(), None) is None]
    if found := leaves or list(matched):
        return found
    stem = pattern.translate({ord(sign): None for sign in "*?[]!"})
    raise UserError(
        f"layer={pattern!r}: no module of {type(network).__name__} matches this glob. "
        f"{nearest(stem, _known(network))} '*' matches any characters, dots included; '?' matches one."
    )


def _uncalled(network: nn.Module) -> set[int]:
    return {
        id(module.out_proj) for module in network.modules() if isinstance(module, nn.MultiheadAttention)
    }  # read as plain weights by F.multi_head_attention_forward


def _known(network: nn.Module) -> list[str]:
    """All paths, convolutions and linear layers first, since messages only show the first few."""
    first = conv_and_linear(network)
    return list(dict.fromkeys([*first, *(name for name, _ in network.named_modules() if name)]))

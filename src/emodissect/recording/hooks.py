"""Forward hooks that record the pooled outputs of several modules in one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.errors import UserError, nearest
from emodissect.core.evaluation_mode import evaluating
from emodissect.recording.layers import resolve_layers, unwrapped
from emodissect.recording.pooling import (
    ChannelsLast,
    check_pool,
    first_tensor,
    neuron_axis,
    pooled,
    prefix_tokens,
)

log = logging.getLogger(__name__)


class Recording(Mapping[str, Tensor]):
    """The pooled output of each layer in the latest forward pass: ``recorded[layer]`` is Float["image neuron"]."""

    def __init__(self, network: nn.Module, layers: Sequence[str], pool: str, channels_last: ChannelsLast) -> None:
        check_pool(pool, channels_last)
        self.layers = tuple(layers)
        self._network, self._pool, self._channels_last = network, pool, channels_last
        self._prefix = prefix_tokens(network)
        self._values: dict[str, Tensor] = {}
        self._axes: dict[tuple[str, int], Literal[1, -1]] = {}
        self._calls: dict[str, int] = {}
        self._images: int | None = None
        self._warned: set[str] = set()

    def __getitem__(self, layer: str) -> Float[Tensor, "image neuron"]:
        if layer not in self.layers:
            raise UserError(f"Layer {layer!r} is not recorded. {nearest(layer, self.layers)}")
        if layer not in self._values:
            raise UserError(f"Layer {layer!r} has produced no output yet: run a forward pass of the network first.")
        return self._values[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Discard the latest forward pass."""
        self._values.clear()
        self._calls.clear()
        self._images = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole network: start a new pass and note its number of images."""
        self.clear()
        images = first_tensor([*args, *kwargs.values()])
        self._images = len(images) if images is not None and images.ndim else None

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the whole network: check that every layer was called, and warn of repeated calls."""
        if missing := [layer for layer in self.layers if layer not in self._values]:
            raise UserError(
                f"The forward pass never called {', '.join(map(repr, missing))}, so there is nothing to record. Its "
                "weights may be read by a function (as in fused attention), it may be unused in evaluation (an "
                "auxiliary head), or the network may be compiled as part of a larger module. Name the module around "
                "it, or omit it; for layer=all, emodissect.recording.reached_layers keeps the called layers."
            )
        for layer, calls in self._calls.items():
            if calls > 1 and layer not in self._warned:
                self._warned.add(layer)
                log.warning("Layer %s is called %d times in a forward pass; its last call is kept.", layer, calls)

    def keep(self, layer: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of one layer: pool at once, into new memory, safe from later in-place operations."""
        # outside inference mode, so that the values are ordinary tensors
        with torch.inference_mode(False), torch.no_grad():
            self._values[layer] = self._pooled(layer, module, output)
        self._calls[layer] = self._calls.get(layer, 0) + 1

    def _pooled(self, layer: str, module: nn.Module, output: Any) -> Tensor:
        tensor = first_tensor(output)
        if tensor is None:
            raise UserError(f"Layer {layer!r} gives {type(output).__name__} without a tensor in it; record another.")
        tensor = tensor.detach()
        if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) and not _batch_first(module):
            tensor = tensor.transpose(0, 1)
        if self._images is not None and tensor.ndim and len(tensor) != self._images:
            raise UserError(
                f"Layer {layer!r} gives {len(tensor)} rows {tuple(tensor.shape)} for {self._images} images: images and "
                "positions share its first axis (window attention, crops) or tokens come first. "
                "Record the block around it."
            )
        try:
            key = (layer, tensor.ndim)
            if key not in self._axes:
                self._axes[key] = neuron_axis(self._network, layer, tensor.shape, self._channels_last)
            return pooled(tensor, self._axes[key], self._pool, self._prefix)
        except UserError as error:
            raise UserError(f"Layer {layer!r} {error}.") from None


@contextmanager
def record(
    network: nn.Module, layers: str | Sequence[str], pool: str = "avg", channels_last: ChannelsLast = "auto"
) -> Iterator[Recording]:
    """Within the block, ``recorded[layer]`` holds the pooled output of the latest forward pass of ``network``.

    Outputs are recorded after any hooks that already exist, and pooled inside the hook, so that later in-place
    operations do not change them. For a tuple, list or mapping the first tensor is used. For a module that is called
    several times in one pass (a shared ReLU) the last call is kept, with a warning. Training mode, gradients and the
    network's output are not affected; values have no gradient. A compiled network runs uncompiled within the block,
    since compiled code skips hooks. Hooks are removed afterwards, also after an exception.

    Args:
        network: any module, also one wrapped in DistributedDataParallel.
        pool: ``avg``, ``max``, ``class_token`` or ``token_mean``; see :func:`emodissect.recording.pooling.pooled`.
        channels_last: whether 4-D outputs are (image height width neuron); ``auto`` compares with the sizes that
            modules declare, see :func:`emodissect.recording.pooling.neuron_axis`.

    Raises:
        UserError: an unknown layer or pooling; from the forward pass: a layer that is never called, an output that is
            not a tensor, does not have 1 to 4 axes, or has another number of rows than images.
    """
    base = unwrapped(network)
    recording = Recording(base, resolve_layers(base, layers), pool, channels_last)
    if pool == "class_token" and not recording._prefix:
        log.warning("pool=class_token, but no class token was found in the network: the first token is used.")
    with _hooked(network, recording, recording.keep) as stack:
        stack.callback(base.register_forward_hook(recording.end).remove)
        yield recording


def reached_layers(
    network: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    pool: str = "avg",
    channels_last: ChannelsLast = "auto",
) -> list[str]:
    """Those of ``layers`` that a forward pass of ``images`` calls and whose outputs can be recorded.

    For ``layer=all`` and globs on networks that read some weights by a function (fused attention), have parts unused
    in evaluation (auxiliary heads) or mix images and windows. Runs in eval mode, and restores every module's mode.
    """
    base = unwrapped(network)
    recording = Recording(base, layers, pool, channels_last)
    kept: set[str] = set()
    refused: dict[str, UserError] = {}

    def attempt(layer: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        try:
            recording.keep(layer, module, args, output)
            kept.add(layer)
        except UserError as error:
            refused[layer] = error

    with evaluating(base), _hooked(network, recording, attempt), torch.inference_mode():
        base(images)
    refused = {layer: error for layer, error in refused.items() if layer not in kept}
    if refused:
        why = next(iter(refused.values()))
        log.warning("Skipped, since they cannot be recorded: %s. The first: %s", ", ".join(refused), why)
    if uncalled := [layer for layer in layers if layer not in kept and layer not in refused]:
        log.warning("Skipped, since a forward pass never calls them: %s.", ", ".join(uncalled))
    return [layer for layer in layers if layer in kept]


@contextmanager
def _hooked(network: nn.Module, recording: Recording, keep: Callable[..., None]) -> Iterator[ExitStack]:
    """Context manager: ``keep(layer, module, args, output)`` is called with each layer's output, uncompiled."""
    base = unwrapped(network)
    with ExitStack() as stack:
        if _compiled(network):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(base.register_forward_pre_hook(recording.begin, with_kwargs=True).remove)
        for layer in recording.layers:
            stack.callback(base.get_submodule(layer).register_forward_hook(partial(keep, layer)).remove)
        yield stack


def _batch_first(module: nn.Module) -> bool:
    attention = module if isinstance(module, nn.MultiheadAttention) else module.self_attn
    return bool(getattr(attention, "batch_first", True))


def _compiled(network: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in network.modules()
    )

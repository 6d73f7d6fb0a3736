"""Pooling of a module's output to one number per image and neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from emodissect.core.errors import UserError, nearest

POOLS = ("avg", "max", "class_token", "token_mean")
ChannelsLast = bool | Literal["auto"]

# modules whose neurons are on the last axis if sizes are ambiguous; not for subclasses, e.g. the LayerNorm2d of
# torchvision and timm is a LayerNorm with neurons on axis 1
_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.Embedding)
_COUNTS = ("out_channels", "out_features", "num_features", "num_channels", "embed_dim")
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


def check_pool(pool: str, channels_last: ChannelsLast) -> None:
    """Raise UserError for an unknown pooling method or value of channels_last."""
    if pool not in POOLS:
        raise UserError(
            f"layer.pool={pool!r} is not a pooling method (avg: the mean over positions). {nearest(pool, POOLS)}"
        )
    if channels_last not in ("auto", True, False):
        raise UserError(f"layer.channels_last={channels_last!r}: must be auto, true or false.")


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or mapping, depth first; None if there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for part in output if (found := first_tensor(part)) is not None), None)
    return None


def neuron_axis(
    network: nn.Module, layer: str, shape: Sequence[int], channels_last: ChannelsLast = "auto"
) -> Literal[1, -1]:
    """The neuron axis of a module's output: 1 or -1.

    Two axes: the second. Four axes: 1 (image neuron height width) or -1 (image height width neuron), according to
    ``channels_last``. Three axes: -1 (image token neuron), or 1 for a 1-D convolution. For four and three axes,
    ``auto`` compares both axes with the number of neurons that the module declares (out_channels, out_features,
    num_features, num_channels, embed_dim, normalized_shape); for a module that declares none (an activation, a block)
    with those of the modules inside it, last first, then of those defined before it, nearest first. The first count
    that fits only one of the axes decides. If a count fits both, it is the last axis for a Linear or LayerNorm, else
    axis 1; if nothing fits, 1 for four axes and -1 for three.

    This is about the order of axes, not torch's memory format: a tensor in ``torch.channels_last`` keeps its axes.
    """
    if len(shape) <= 2:
        return 1
    if len(shape) == 4 and channels_last != "auto":
        return -1 if channels_last else 1
    for module, count in _declared(network, layer):
        first, last = shape[1] == count, shape[-1] == count
        if first != last:
            return 1 if first else -1
        if first:
            return -1 if type(module) in _LAST or (len(shape) == 3 and not _over_channels(module)) else 1
    return 1 if len(shape) == 4 else -1


def prefix_tokens(network: nn.Module) -> int:
    """Number of tokens before the patches: timm's ``num_prefix_tokens``, else 1 if there is a class token."""
    for module in network.modules():
        if isinstance(count := getattr(module, "num_prefix_tokens", None), int):
            return count
    return int(any(name.rsplit(".", 1)[-1] in _CLASS_TOKENS for name, _ in network.named_parameters()))


def pooled(output: Tensor, axis: Literal[1, -1], pool: str, prefix: int = 0) -> Float[Tensor, "image neuron"]:
    """One float32 number per image and neuron, in new memory.

    | pool        | space (4-D, 1-D convolutions)   | tokens (image token neuron)                       | 2-D   |
    |-------------|---------------------------------|---------------------------------------------------|-------|
    | avg         | mean over positions             | mean over all tokens                              | as is |
    | max         | largest over positions          | largest over all tokens                           | as is |
    | class_token | mean over positions             | the first token                                   | as is |
    | token_mean  | mean over positions             | mean over the tokens after the first ``prefix``   | as is |

    Half precision is averaged in float32. A 1-D output (one number per image) is one neuron.

    Args:
        axis: the neuron axis; see :func:`neuron_axis`.
        prefix: number of tokens that are not patches; see :func:`prefix_tokens`.

    Raises:
        UserError: an output without image axis, with more than four axes, or not floating-point.
    """
    if not output.is_floating_point():
        raise UserError(f"gives {output.dtype}, not floating-point activations")
    if output.ndim not in (1, 2, 3, 4):
        raise UserError(
            f"gives {output.ndim} axes {tuple(output.shape)}; 1 to 4 can be recorded: (image), (image neuron), "
            "(image token neuron), (image neuron height width) and (image height width neuron)"
        )
    wide = torch.float32 if output.dtype in (torch.float16, torch.bfloat16) else output.dtype
    if output.ndim <= 2:
        return (output[:, None] if output.ndim == 1 else output).to(torch.float32, copy=True)
    if output.ndim == 3:
        positions: tuple[int, ...] = (1,) if axis == -1 else (2,)
    else:
        positions = (2, 3) if axis == 1 else (1, 2)
    if positions == (1,) and pool == "class_token":
        return output[:, 0].to(torch.float32, copy=True)
    if pool == "max":
        return output.amax(positions).to(torch.float32)
    if positions == (1,) and pool == "token_mean" and output.shape[1] > prefix:
        output = output[:, prefix:]
    return output.mean(positions, dtype=wide).to(torch.float32)


def _declared(network: nn.Module, layer: str) -> Iterator[tuple[nn.Module, int]]:
    """Modules that declare their number of neurons: the layer, those inside it, last first, those before it."""
    target = network.get_submodule(layer)
    if (count := _count(target)) is not None:
        yield target, count
    for module in reversed(list(target.modules())[1:]):
        if (count := _count(module)) is not None:
            yield module, count
    order = list(network.modules())
    for module in reversed(order[: next(i for i, module in enumerate(order) if module is target)]):
        if (count := _count(module)) is not None:
            yield module, count


def _count(module: nn.Module) -> int | None:
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and len(shape) == 1:
        return int(shape[0])
    return next((n for name in _COUNTS if isinstance(n := getattr(module, name, None), int)), None)


def _over_channels(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm))

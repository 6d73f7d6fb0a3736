"""The top images of each neuron, exact, in image order where activations tie."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError

_GROUP = 8  # images a group: N/8 maxima and 8k members a neuron are looked at instead of N
_COLUMNS = 256  # neurons whose group maxima are held at a time
_BLOCK = 128  # neurons sorted at a time; stays in cache


def top_rows(activations: Float[Tensor, "image neuron"], k: int) -> Int64[Tensor, "rank neuron"]:
    """The ``min(k, N)`` most activating images of each neuron, most activating first.

    Exact, by levels: the images are cut into groups of eight, one streaming pass takes each group's maximum, and the
    maxima are cut into groups again while many are left. From the top level down the k groups with the largest maxima
    are kept, and the k best sought among their members. Every top image lies in a kept group: each kept group holds a
    value at least as large as anything outside. Equal activations rank by image row, the earlier first, so the answer
    depends neither on the machine nor on the block size.

    Shapes: activations ``[image neuron]`` (any float type, compared as float32; may be a memory map) -> rows
    ``[rank neuron]``. Extra memory: 256 · N/7 floats and 128 · 8k keys, whatever the number of neurons.

    Raises:
        UserError: an activation is NaN or +infinite, which would be no top image or all of them.
    """
    images, neurons = activations.shape
    k = min(k, images)
    activations = activations.contiguous()
    found = torch.empty(k, neurons, dtype=torch.int64, device=activations.device)
    for left in range(0, neurons, _COLUMNS):
        levels = [activations[:, left : left + _COLUMNS]]
        while len(levels[-1]) > 2 * _GROUP * k:
            levels.append(_group_maxima(levels[-1]))
        if not (levels[-1] < torch.inf).all():  # a maximum is NaN where any of its values is
            raise UserError(
                "The activations hold NaN or infinite values; each must be a finite number. Did the training go astray?"
            )
        for start in range(0, levels[0].shape[1], _BLOCK):
            columns = slice(start, start + _BLOCK)
            top = levels[-1][:, columns].t()
            keys = _keys(top, torch.arange(top.shape[1], device=top.device))
            kept = keys.topk(k, dim=1, sorted=len(levels) == 1).indices
            for level in levels[-2::-1]:
                kept = _best_members(level[:, columns], kept, k)
            found[:, left + start : left + start + len(kept)] = kept.t()
    return found


def _group_maxima(values: Float[Tensor, "row neuron"]) -> Float[Tensor, "group neuron"]:
    """The largest of each eight rows; the last group may be short."""
    groups, rest = divmod(len(values), _GROUP)
    whole = groups * _GROUP
    maxima = values.new_empty(groups + (rest > 0), values.shape[1])
    torch.amax(values[:whole].unflatten(0, (-1, _GROUP)), 1, out=maxima[:groups])
    if rest:
        torch.amax(values[whole:], 0, out=maxima[groups])
    return maxima


def _best_members(
    values: Float[Tensor, "row neuron"], groups: Int64[Tensor, "neuron kept"], k: int
) -> Int64[Tensor, "neuron rank"]:
    """The rows of the k largest values among the groups' members, largest first."""
    device = values.device
    rows = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=device)).flatten(1)
    beyond = rows >= len(values)  # the last group may be short
    rows.clamp_(max=len(values) - 1)
    neuron = torch.arange(values.shape[1], device=device)[:, None]
    flat = values.as_strided((values.stride(0) * (len(values) - 1) + values.shape[1],), (1,))
    keys = _keys(torch.take(flat, rows * values.stride(0) + neuron), rows)
    if len(values) % _GROUP:
        keys.masked_fill_(beyond, torch.iinfo(torch.int64).min)
    return rows.gather(1, keys.topk(k, dim=1).indices)


def constant_neurons(activations: Float[Tensor, "image neuron"]) -> Bool[Tensor, " neuron"]:
    """Neurons with one and the same activation on every image: they order no images.

    Only neurons that are constant over the first 64 images are looked at in full.
    """
    constant = (activations[:64] == activations[0]).all(0)
    suspects = constant.nonzero()[:, 0]
    for part in suspects.split(_COLUMNS):
        constant[part] = (activations[:, part] == activations[0, part]).all(0)
    return constant


def _keys(values: Tensor, order: Tensor) -> Tensor:
    """int64 keys that sort as (value, earlier first): float32 bits made monotone, less the image's row.

    Sorting one integer is as fast as sorting a float and, unlike it, leaves no tie to chance.
    """
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # + 0.0: one zero, not two
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.long() << 32).sub_(order)

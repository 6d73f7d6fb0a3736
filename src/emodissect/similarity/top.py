"""The top images of each neuron, exact, in image order where activations tie."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_GROUP = 8  # images a group: N/8 maxima and 8k members a neuron are looked at instead of N
_COLUMNS = 512  # neurons whose group maxima are held at a time
_BLOCK = 64  # neurons sorted at a time; stays in cache


def top_rows(activations: Float[Tensor, "image neuron"], k: int) -> Int64[Tensor, "rank neuron"]:
    """The ``min(k, N)`` most activating images of each neuron, most activating first.

    Exact, in two levels: the images are cut into groups of eight, one streaming pass takes each group's maximum, the
    k groups with the largest maxima are kept, and the k best are sought among their members. Every top image lies in
    a kept group: each kept group holds a value at least as large as anything outside. Equal activations rank by image
    row, the earlier first, so the answer depends neither on the machine nor on the block size.

    Shapes: activations ``[image neuron]`` (any float type, compared as float32; may be a memory map) -> rows
    ``[rank neuron]``. Extra memory: 512 · N/8 floats and 64 · 8k keys, whatever the number of neurons.
    """
    images, neurons = activations.shape
    k = min(k, images)
    activations = activations.contiguous()
    device = activations.device
    group = _GROUP if images > 2 * _GROUP * k else 1
    whole = images // group * group
    groups = -(-images // group)
    flat = activations.view(-1)
    group_order = torch.arange(groups, device=device)
    member_order = torch.arange(k * group, device=device)
    found = torch.empty(k, neurons, dtype=torch.int64, device=device)
    for left in range(0, neurons, _COLUMNS):
        columns = activations[:, left : left + _COLUMNS]
        maxima = columns[:whole].unflatten(0, (whole // group, group)).amax(1) if group > 1 else columns
        if whole < images:
            maxima = torch.cat([maxima, columns[whole:].amax(0, keepdim=True)])
        for start in range(0, columns.shape[1], _BLOCK):
            block = maxima[:, start : start + _BLOCK].t()
            kept = _keys(block, group_order).topk(k, dim=1, sorted=group == 1).indices
            if group > 1:
                kept = kept.sort(dim=1).values  # members in image order, so that ties fall to the earlier image
                rows = (kept[:, :, None] * group + torch.arange(group, device=device)).flatten(1)
                beyond = rows >= images  # the last group may be short
                rows.clamp_(max=images - 1)
                neuron = torch.arange(left + start, left + start + len(rows), device=device)
                keys = _keys(torch.take(flat, rows * neurons + neuron[:, None]), member_order)
                if images % group:
                    keys.masked_fill_(beyond, torch.iinfo(torch.int64).min)
                kept = rows.gather(1, keys.topk(k, dim=1).indices)
            found[:, left + start : left + start + len(kept)] = kept.t()
    return found


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
    """int64 keys that sort as (value, earlier first): float32 bits made monotone, then the place in the row.

    Sorting one integer is as fast as sorting a float and, unlike it, leaves no tie to chance.
    """
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # + 0.0: one zero, not two
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.long() << 32).sub_(order)

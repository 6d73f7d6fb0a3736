"""Exact top images of each neuron from all activations, with one rule for ties."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core import ranking
from emodissect.core.errors import UserError

_GROUP = 8  # images per group: N/8 maxima and 8k members per neuron are ranked instead of N
_BLOCK = 128  # neurons ranked at a time
_COLUMNS = 256  # constant neurons checked in full at a time


def top_rows(
    activations: Float[Tensor, "image neuron"], k: int, ids: Int64[Tensor, " image"] | None = None
) -> Int64[Tensor, "rank neuron"]:
    """The ``min(k, N)`` most activating images of each neuron, most activating first.

    Among equal activations the image whose id has the lower ticket (:func:`emodissect.core.ranking.tickets`) ranks
    first, as in recorded layers: the result depends on neither the order of the rows nor the machine. Without ``ids``
    an image's id is its row.

    Exact, by levels: a block of neurons is copied in the order of the tickets and divided into groups of eight images,
    whose maxima are computed; these are grouped again while there are many. From the top level down, the k groups with
    the largest maxima are kept, and the k best are searched among their members. Every top image is in a kept group:
    each kept group has a value at least as large as anything outside, and among equal ones the earlier.

    Shapes: activations ``[image neuron]`` (any float type, compared as float32; may be a memory map) -> rows
    ``[rank neuron]``. Extra memory: 128 · N · 8/7 floats and 128 · 8k keys, regardless of the number of neurons.

    Raises:
        UserError: an activation is NaN or +infinite; an id is below 0 or has more than 32 bits.

    Example:
        >>> top_rows(torch.tensor([[0.0], [2.0], [0.0], [3.0]]), k=3, ids=torch.tensor([10, 11, 12, 13]))[:, 0].tolist()
        [3, 1, 2]
    """
    images, neurons = activations.shape
    k = min(k, images)
    order = by_ticket(images, ids).to(activations.device)
    found = torch.empty(k, neurons, dtype=torch.int64, device=activations.device)
    buffer = activations.new_empty(
        images * min(_BLOCK, neurons)
    )  # one buffer for all blocks: allocating new memory is as slow as the copy
    for start in range(0, neurons, _BLOCK):
        columns = activations[:, start : start + _BLOCK]
        levels = [torch.index_select(columns, 0, order, out=buffer[: columns.numel()].view(columns.shape))]
        while len(levels[-1]) > 2 * _GROUP * k:
            levels.append(_group_maxima(levels[-1]))
        if not (levels[-1] < torch.inf).all():  # a maximum is NaN if any of its values is
            raise UserError(
                "The activations have NaN or infinite values; all must be finite. Check whether the training diverged."
            )
        rows = torch.arange(len(levels[-1]), device=order.device).expand(levels[-1].shape[1], -1)
        best = _best(levels[-1], rows, k)
        for level in levels[-2::-1]:
            members = ranking.tickets_of(best)[:, :, None] * _GROUP + torch.arange(_GROUP, device=order.device)
            best = _best(level, members.flatten(1), k)
        found[:, start : start + len(best)] = order[ranking.tickets_of(ranking.ascending(best).flip(1))].t()
    return found


def by_ticket(images: int, ids: Int64[Tensor, " image"] | None = None) -> Int64[Tensor, " image"]:
    """The rows in the order of their images' tickets, which is the order of ties."""
    if ids is None:
        ids = torch.arange(images)
    if len(ids) != images:
        raise UserError(f"{len(ids)} ids for {images} images: each image needs one.")
    ranking.require_rankable(ids)
    return ranking.tickets(ids).argsort(stable=True)


def images_ordered(
    top_values: Float[Tensor, "rank neuron"], minimum: Float[Tensor, " neuron"]
) -> Int64[Tensor, " neuron"]:
    """Number of a neuron's top images with activations above its minimum; the following ranks are in ticket order.

    A ReLU that is active on 30 of 3,000 images ranks only 30; the other 70 of its top 100 are nearly the same for all
    such neurons. Rounded up to a multiple of an eighth of the next lower power of two.
    """
    ordered = (top_values > minimum).sum(0)
    unit = 2 ** (ordered.clamp(min=1).double().log2().floor().long() - 3).clamp(min=0)
    return (-(-ordered // unit) * unit).clamp(max=len(top_values))


def alike(ordered: Int64[Tensor, " neuron"]) -> dict[int, Int64[Tensor, " member"]]:
    """Number of ordered images -> the neurons with that number."""
    return {int(count): (ordered == count).nonzero()[:, 0] for count in ordered.unique()}


def filled(
    sets: Int64[Tensor, "rank draw"], ordered: int, order: Int64[Tensor, " image"]
) -> Int64[Tensor, "rank draw"]:
    """Random sets whose first ``ordered`` ranks are kept; the others are the images of lowest ticket, as for a neuron.

    Args:
        sets: different rows in each column.
        ordered: number of ranks that keep the set's images.
        order: the rows by ticket.
    """
    size, draws = sets.shape
    if ordered == size:
        return sets
    kept = sets[:ordered]
    place = order.argsort()[kept]
    taken = torch.zeros(size, draws, dtype=torch.uint8, device=sets.device)
    early = (place < size).nonzero(as_tuple=True)
    taken[place[early], early[1]] = 1
    free = taken.argsort(dim=0, stable=True)[: size - ordered]
    return torch.cat([kept, order[free]])


def _group_maxima(values: Float[Tensor, "row neuron"]) -> Float[Tensor, "group neuron"]:
    """The maximum of each group of eight rows; the last group may be smaller."""
    groups, rest = divmod(len(values), _GROUP)
    whole = groups * _GROUP
    maxima = values.new_empty(groups + (rest > 0), values.shape[1])
    torch.amax(values[:whole].unflatten(0, (-1, _GROUP)), 1, out=maxima[:groups])
    if rest:
        torch.amax(values[whole:], 0, out=maxima[groups])
    return maxima


def _best(
    values: Float[Tensor, "row neuron"], rows: Int64[Tensor, "neuron candidate"], k: int
) -> Int64[Tensor, "neuron kept"]:
    """The ranking keys of the k candidate rows with the largest values, ties by the earlier row; unordered.

    A row is its own ticket. Rows beyond the last, from an incomplete group, are ignored.
    """
    beyond = rows >= len(values)
    rows = rows.clamp(max=len(values) - 1)
    neuron = torch.arange(values.shape[1], device=values.device)[:, None]
    keys = ranking.keys(torch.take(values, rows * values.shape[1] + neuron), rows)
    if beyond.any():
        keys.masked_fill_(beyond, torch.iinfo(torch.int64).min)
    return ranking.largest(keys, k)


def constant_neurons(activations: Float[Tensor, "image neuron"]) -> Bool[Tensor, " neuron"]:
    """Mask of neurons with the same activation on every image.

    Only neurons that are constant over the first 64 images are checked in full.
    """
    constant = (activations[:64] == activations[0]).all(0)
    suspects = constant.nonzero()[:, 0]
    for part in suspects.split(_COLUMNS):
        constant[part] = (activations[:, part] == activations[0, part]).all(0)
    return constant

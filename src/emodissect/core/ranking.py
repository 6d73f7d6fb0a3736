"""The ranking of images by activation: larger activations first, ties by the lower ticket (a hash of the id)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError

MOST = 0xFFFFFFFF
"""The largest id, and the largest ticket."""

_MIX = (0x85EBCA6B, 0xC2B2AE35)
_UNMIX = tuple(pow(factor, -1, MOST + 1) for factor in _MIX)


def tickets(ids: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """A unique pseudo-random number in [0, 2^32) for each id, used to break ties.

    Ids often follow the classes (one folder after another), and a ReLU leaves most neurons many zeros: if ties were
    broken by id, the top images of every sparse neuron would be of the first class.

    Source: the final mix of MurmurHash3 (32 bits), which is invertible.

    Example:
        >>> import torch
        >>> tickets(torch.arange(3)).tolist()
        [0, 1364076727, 821347078]
    """
    mixed = ids ^ (ids >> 16)
    mixed = (mixed * _MIX[0]) & MOST
    mixed = mixed ^ (mixed >> 13)
    mixed = (mixed * _MIX[1]) & MOST
    return mixed ^ (mixed >> 16)


def ids_of(drawn: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """The ids for tickets: the inverse of :func:`tickets`."""
    ids = drawn ^ (drawn >> 16)
    ids = (ids * _UNMIX[1]) & MOST
    ids = ids ^ (ids >> 13) ^ (ids >> 26)
    ids = (ids * _UNMIX[0]) & MOST
    return ids ^ (ids >> 16)


def require_rankable(ids: Int64[Tensor, " image"]) -> None:
    """Raise UserError for an id below 0 or of more than 32 bits."""
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > MOST):
        raise UserError(f"Image ids range from {int(ids.min())} to {int(ids.max())}; each must be from 0 to {MOST}.")


def keys(values: Float[Tensor, "*any"], drawn: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """One integer for an activation and its image's ticket; larger keys rank first.

    The upper half is the float32's bits, made monotone, the lower half the ticket's complement.
    """
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # + 0.0: -0 ranks as 0
    monotone = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    return monotone.long().bitwise_left_shift_(32).add_(MOST).sub_(drawn)


def stable_order(scores: Float[Tensor, "*any place"]) -> Int64[Tensor, "*any place"]:
    """The positions by ascending score, ties by position: ``argsort(dim=-1, stable=True)``, but faster on a CPU."""
    if scores.device.type != "cpu":
        return scores.argsort(dim=-1, stable=True)
    places = torch.arange(scores.shape[-1])
    ranked = keys(scores, MOST - places)  # among equal scores, later positions have larger keys
    return ascending(ranked).bitwise_and_(MOST)


def values_of(ranked: Int64[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The activations in keys from :func:`keys`."""
    monotone = (ranked >> 32).to(torch.int32)
    return (monotone ^ ((monotone >> 31) & 0x7FFFFFFF)).view(torch.float32)


def tickets_of(ranked: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """The tickets in keys from :func:`keys`."""
    return MOST - (ranked & MOST)


def largest(ranked: Int64[Tensor, "neuron slot"], k: int) -> Int64[Tensor, "neuron kept"]:
    """The k largest keys of each row, unordered."""
    if ranked.device.type == "cpu":  # numpy's partition and sort are ten times faster than torch's on short rows
        return torch.from_numpy(np.partition(ranked.numpy(), ranked.shape[1] - k, axis=1)[:, -k:])
    return ranked.topk(k, dim=1, sorted=False).values


def ascending(ranked: Int64[Tensor, "*any slot"]) -> Int64[Tensor, "*any slot"]:
    """Each row sorted."""
    if ranked.device.type == "cpu":
        return torch.from_numpy(np.sort(ranked.numpy(), axis=-1))
    return ranked.sort(dim=-1).values

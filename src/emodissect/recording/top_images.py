"""Running top images of each neuron."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core import ranking
from emodissect.core.errors import UserError
from emodissect.core.ranking import MOST, ids_of, largest, require_rankable, tickets, tickets_of, values_of

_EMPTY = torch.iinfo(torch.int64).min


class TopImages:
    """Each neuron's ``k`` largest activations and the ids of their images, without the image x neuron matrix.

    Exact, and independent of the order and size of batches: images are ranked by activation, descending, ties by the
    :func:`~emodissect.core.ranking.tickets` of their ids; a repeated id counts once, with its largest activation. Of a
    batch, only images that beat a neuron's current k-th image are kept; they wait in a buffer that is merged when it is
    full. State: (k + buffer) x neurons integers of 8 bytes.

    Args:
        buffer: number of images that may wait per neuron; by default the larger of k and 256.
    """

    def __init__(self, k: int, buffer: int | None = None) -> None:
        if k < 1:
            raise UserError(f"top_k={k}: must be an integer >= 1; the published study used 100.")
        self.k = k
        self.buffer = buffer or max(k, 256)
        # a row of keys per neuron: the best so far in [0, k), unordered, and the waiting ones in [k, k + buffer)
        self._keys = torch.empty(0, 0, dtype=torch.int64)
        self._waiting = torch.empty(0, dtype=torch.int64)
        # the current k-th image, which a new image has to beat
        self._worst = torch.empty(0)
        self._worst_ticket = torch.empty(0, dtype=torch.int64)

    @property
    def values(self) -> Float[Tensor, "rank neuron"]:
        """Activations, descending; min(k, images so far) ranks."""
        return values_of(self._ranked())

    @property
    def ids(self) -> Int64[Tensor, "rank neuron"]:
        """The images' ids, in the order of :attr:`values`."""
        return ids_of(tickets_of(self._ranked()))

    def update(self, values: Float[Tensor, "image neuron"], ids: Int64[Tensor, " image"]) -> None:
        """Add images; their activations must be finite.

        Raises:
            ValueError: the numbers of ids and images differ, or the number of neurons has changed.
            UserError: an id below 0 or of more than 32 bits.
        """
        if values.ndim != 2 or len(values) != len(ids):
            raise ValueError(f"activations {tuple(values.shape)} for {len(ids)} ids")
        require_rankable(ids)
        with torch.inference_mode(False), torch.no_grad():
            self._prepare(values.shape[1], values.device)
            values, drawn = values.to(torch.float32), tickets(ids.to(values.device))
            for start in range(0, len(values), self.buffer):
                self._offer(values[start : start + self.buffer], drawn[start : start + self.buffer])

    def merge(self, other: TopImages) -> None:
        """Merge another one with the same k, e.g. of another process."""
        if other.k != self.k:
            raise ValueError(f"the top {other.k} cannot be merged into the top {self.k}")
        with torch.inference_mode(False), torch.no_grad():
            theirs = other._ranked().T
            if theirs.numel():
                self._prepare(len(theirs), theirs.device)
                self._merge_waiting()
                self._keep_best(torch.cat([self._keys[:, : self.k], theirs.to(self._keys.device)], 1))

    @classmethod
    def of_ranked(cls, k: int, values: Float[Tensor, "rank neuron"], ids: Int64[Tensor, "rank neuron"]) -> TopImages:
        """Create from ranked values and ids."""
        top = cls(k)
        top._prepare(values.shape[1], values.device)
        top._keep_best(torch.cat([top._keys[:, :k], ranking.keys(values.float(), tickets(ids)).T], 1))
        return top

    def cpu(self) -> TopImages:
        """A merged copy on the CPU, to be sent between processes."""
        copy = TopImages(self.k, self.buffer)
        copy.merge(self)
        for name in ("_keys", "_waiting", "_worst", "_worst_ticket"):
            setattr(copy, name, getattr(copy, name).cpu())
        return copy

    def _prepare(self, neurons: int, device: torch.device) -> None:
        if not len(self._keys):
            self._keys = torch.full((neurons, self.k + self.buffer), _EMPTY, device=device)
            self._waiting = torch.zeros(neurons, dtype=torch.int64, device=device)
            self._worst = torch.full((neurons,), -torch.inf, device=device)
            self._worst_ticket = torch.full((neurons,), -1, device=device)
        elif neurons != len(self._keys):
            raise ValueError(f"{neurons} neurons after {len(self._keys)}")

    def _offer(self, values: Tensor, drawn: Tensor) -> None:
        beats = values > self._worst
        if bool((self._worst_ticket > drawn.min()).any()):  # an equal activation wins by its lower ticket
            beats |= (values == self._worst) & (drawn[:, None] < self._worst_ticket)
        neuron, row = beats.T.contiguous().nonzero(as_tuple=True)
        counts = torch.bincount(neuron, minlength=len(self._waiting))
        if int((self._waiting + counts).max()) > self.buffer:
            self._merge_waiting()
            self._offer(values, drawn)  # against the new k-th; a batch always fits an empty buffer
            return
        before = counts.cumsum(0) - counts
        slot = torch.arange(len(neuron), device=neuron.device) + (self.k + self._waiting - before)[neuron]
        self._keys[neuron, slot] = ranking.keys(values[row, neuron], drawn[row])
        self._waiting += counts

    def _merge_waiting(self) -> None:
        if len(self._waiting) and (longest := int(self._waiting.max())):
            self._keep_best(self._keys[:, : self.k + longest])
            self._keys[:, self.k :] = _EMPTY
            self._waiting.zero_()

    def _keep_best(self, keys: Int64[Tensor, "neuron slot"]) -> None:
        best = largest(keys, self.k)
        twice = _repeats(best)
        if bool(twice.any()):
            # each image once, with its larger key: sorted by ticket and then by key, the last of a run is kept
            rows = keys[twice].sort(dim=1).values
            rows = rows.gather(1, tickets_of(rows).sort(dim=1, stable=True).indices)
            rows[:, :-1][(tickets_of(rows)[:, :-1] == tickets_of(rows)[:, 1:]) & (rows[:, 1:] != _EMPTY)] = _EMPTY
            best[twice] = largest(rows, self.k)
        self._keys[:, : self.k] = best
        worst = best.amin(1)
        self._worst = torch.where(worst == _EMPTY, -torch.inf, values_of(worst))
        self._worst_ticket = torch.where(worst == _EMPTY, -1, tickets_of(worst))

    def _ranked(self) -> Int64[Tensor, "rank neuron"]:
        with torch.inference_mode(False), torch.no_grad():
            self._merge_waiting()
            keys = self._keys[:, : self.k].sort(dim=1, descending=True).values
            # all neurons have seen the same images, so each has the same number of empty slots
            ranks = int((keys[0] != _EMPTY).sum()) if len(keys) else 0
            return keys[:, :ranks].T.contiguous()


def _repeats(keys: Int64[Tensor, "neuron slot"]) -> Tensor:
    """Mask of neurons that have an image twice."""
    if keys.device.type == "cpu":
        low = np.sort((keys & MOST).numpy().astype(np.uint32), axis=1)
        # empty slots have the complement 0, like the largest ticket, so they are recognised by the whole key
        empty = (keys == _EMPTY).sum(1).numpy()
        same = (low[:, 1:] == low[:, :-1]).sum(1)
        return torch.from_numpy(same > np.maximum(empty - 1, 0))
    drawn = torch.where(keys == _EMPTY, -torch.arange(1, keys.shape[1] + 1, device=keys.device), tickets_of(keys))
    drawn = drawn.sort(dim=1).values
    return (drawn[:, 1:] == drawn[:, :-1]).any(1)

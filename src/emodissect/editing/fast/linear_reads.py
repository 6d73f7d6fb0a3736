"""Computes the output of the linear layer that reads an edited layer, under many edits at once.

The operations between the two layers treat neurons independently: the columns of a neuron in ``between(s z)``, with one
scale per neuron, equal those in ``between(v z)``, with v that neuron's scale for all. So ``between`` needs to run only
once per distinct scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

Between = Callable[[float], Float[Tensor, "image column"]]
"""Maps a scale v to ``between(v z)``, with all neurons scaled by v."""


class BatchedProduct:
    """The reader's outputs for all cells, with one matrix product per distinct scale v::

        reader(between(z_cell)) = bias + sum_v between(v z) (W * [s_cell = v])^T

    Args:
        columns: the scale of each reader input under each edit.
    """

    def __init__(self, reader: nn.Linear, columns: Float[Tensor, "cell column"]) -> None:
        self._reader, self._cells = reader, len(columns)
        self._parts: list[tuple[float, Tensor, Tensor]] = []
        for value in columns.unique():
            at_value = columns == value
            having = at_value.any(1).nonzero().flatten()
            self._parts.append((float(value), having, reader.weight.detach() * at_value[having][:, None]))

    def __call__(self, between: Between, images: int) -> Float[Tensor, "image cell output"]:
        """The outputs of all cells for a batch of `images` images."""
        read = self._reader.weight.new_zeros(images, self._cells, self._reader.out_features)
        for value, having, weights in self._parts:
            product = between(value) @ weights.flatten(0, 1).T
            read.index_add_(1, having, product.unflatten(1, (len(having), -1)))
        return read if self._reader.bias is None else read.add_(self._reader.bias)


class _Plan(NamedTuple):
    """An edit as its most common scale, and the columns that have other scales."""

    common: float
    others: Sequence[tuple[float, Int64[Tensor, " column"]]]


class Differences:
    """The reader's outputs, cell by cell, as a difference from a uniform scaling::

        reader(between(z_cell)) = reader(between(v0 z)) + sum_v (between(v z) - between(v0 z))[:, s = v] W[:, s = v]^T

    with v0 the most common scale of the cell, so that the product runs over the remaining neurons: at most half of them
    where a cell has two scales.

    Args:
        columns: as for `BatchedProduct`.
    """

    def __init__(self, reader: nn.Linear, columns: Float[Tensor, "cell column"]) -> None:
        self._reader = reader
        self._by_column = reader.weight.detach().T.contiguous()
        self._plans = [_planned(row) for row in columns]

    def __call__(self, between: Between) -> Iterator[Float[Tensor, "image output"]]:
        """Yields each cell's outputs for a batch, as a new tensor."""
        inputs: dict[float, Tensor] = {}
        reads: dict[float, Tensor] = {}
        steps: dict[tuple[float, float], Tensor] = {}  # transposed, because gathering rows is fastest

        def at(value: float) -> Tensor:
            if value not in inputs:
                inputs[value] = between(value)
            return inputs[value]

        for common, others in self._plans:
            if common not in reads:
                reads[common] = self._reader(at(common))
            read = reads[common].clone()
            for value, columns in others:
                if (value, common) not in steps:
                    steps[value, common] = (at(value) - at(common)).T.contiguous()
                read.addmm_(steps[value, common][columns].T, self._by_column[columns])
            yield read


def _planned(columns: Float[Tensor, " column"]) -> _Plan:
    values, counts = columns.unique(return_counts=True)
    common = values[counts.argmax()]
    return _Plan(
        float(common), [(float(value), (columns == value).nonzero().flatten()) for value in values if value != common]
    )

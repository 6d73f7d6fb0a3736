"""Similarities of neurons and concepts: six pure functions, classes that call them, and their null distributions."""

from collections.abc import Mapping

from emodissect.core.errors import UserError, nearest
from emodissect.similarity.cosines import cos_similarity, cos_similarity_cubed, pearson
from emodissect.similarity.information import soft_wpmi, soft_wpmi_from_top, wpmi, wpmi_from_top
from emodissect.similarity.measures import Layer, Similarity
from emodissect.similarity.null import (
    best_similarity_null,
    draws_to_pass,
    permutation_p,
    reached,
    standardised,
)
from emodissect.similarity.rank_order import rank_reorder
from emodissect.similarity.top import constant_neurons, top_rows
from emodissect.similarity.top_measures import WPMI, SoftWPMI
from emodissect.similarity.value_measures import (
    CosSimilarity,
    CosSimilarityCubed,
    Pearson,
    RankReorder,
    ValueSimilarity,
)

SIMILARITIES: Mapping[str, type[Similarity]] = {
    "soft_wpmi": SoftWPMI,
    "wpmi": WPMI,
    "rank_reorder": RankReorder,
    "cos_similarity": CosSimilarity,
    "cos_similarity_cubed": CosSimilarityCubed,
    "pearson": Pearson,
}
"""Name of the file in conf/similarity -> class."""


def similarity_named(similarity: str | Similarity) -> Similarity:
    """The similarity of a name, with default parameters; an object is returned unchanged.

    Raises:
        UserError: an unknown name.

    Example:
        >>> similarity_named("pearson")
        Pearson()
    """
    if not isinstance(similarity, str):
        return similarity
    if similarity not in SIMILARITIES:
        raise UserError(f"similarity={similarity!r} is unknown. {nearest(similarity, SIMILARITIES)}")
    return SIMILARITIES[similarity]()


__all__ = [
    "SIMILARITIES",
    "WPMI",
    "CosSimilarity",
    "CosSimilarityCubed",
    "Layer",
    "Pearson",
    "RankReorder",
    "Similarity",
    "SoftWPMI",
    "ValueSimilarity",
    "best_similarity_null",
    "constant_neurons",
    "cos_similarity",
    "cos_similarity_cubed",
    "draws_to_pass",
    "pearson",
    "permutation_p",
    "rank_reorder",
    "reached",
    "similarity_named",
    "soft_wpmi",
    "soft_wpmi_from_top",
    "standardised",
    "top_rows",
    "wpmi",
    "wpmi_from_top",
]

"""How alike neurons and concepts are: six pure measures, their callable shells, and the null behind a label."""

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
from emodissect.similarity.value_measures import CosSimilarity, CosSimilarityCubed, Pearson, RankReorder

__all__ = [
    "WPMI",
    "CosSimilarity",
    "CosSimilarityCubed",
    "Layer",
    "Pearson",
    "RankReorder",
    "Similarity",
    "SoftWPMI",
    "best_similarity_null",
    "constant_neurons",
    "cos_similarity",
    "cos_similarity_cubed",
    "draws_to_pass",
    "pearson",
    "permutation_p",
    "rank_reorder",
    "reached",
    "soft_wpmi",
    "soft_wpmi_from_top",
    "standardised",
    "top_rows",
    "wpmi",
    "wpmi_from_top",
]

"""Figures: one function per figure, each returning a matplotlib ``Figure`` for a PNG, a logger or an inline SVG."""

from emodissect.report.figures.dissection import (
    ImageRow,
    concept_shares,
    image_rows,
    label_quality,
    layer_proportions,
    layer_table,
    similarity_histogram,
)
from emodissect.report.figures.editing import (
    concept_ablation,
    concept_classes,
    confusion,
    confusion_change,
    control_distribution,
    full_colour,
    grid_heatmap,
    nll_heatmap,
    noise_band,
    recall_bars,
)
from emodissect.report.figures.style import save_png, svg
from emodissect.report.figures.training import concepts_over_epochs, deltas, training_curves

__all__ = [
    "ImageRow",
    "concept_ablation",
    "concept_classes",
    "concept_shares",
    "concepts_over_epochs",
    "confusion",
    "confusion_change",
    "control_distribution",
    "deltas",
    "full_colour",
    "grid_heatmap",
    "image_rows",
    "label_quality",
    "layer_proportions",
    "layer_table",
    "nll_heatmap",
    "noise_band",
    "recall_bars",
    "save_png",
    "similarity_histogram",
    "svg",
    "training_curves",
]

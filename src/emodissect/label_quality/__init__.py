"""Are the labels right? Held-out scores, sanity tests, simulation, planted truth, stability and composition; pure."""

from emodissect.label_quality.composition import CompositeLabel, clarity, composite_labels, random_clarity
from emodissect.label_quality.metrics import COMPARISON_ONLY, METRICS, of_labels
from emodissect.label_quality.planted import Planted, planted_network, planted_neurons
from emodissect.label_quality.recovery import Recovery, Share, best_concepts, recovery
from emodissect.label_quality.sanity import extra_labels, missing_labels, sanity_table
from emodissect.label_quality.simulation import Calibration, calibrate, simulation_score
from emodissect.label_quality.stability import Agreement, agreement, halves, stability_table
from emodissect.label_quality.uncertainty import (
    Interval,
    bootstrap_interval,
    pearson_interval,
    pearson_p,
    permutation_p_value,
)

__all__ = [
    "COMPARISON_ONLY",
    "METRICS",
    "Agreement",
    "Calibration",
    "CompositeLabel",
    "Interval",
    "Planted",
    "Recovery",
    "Share",
    "agreement",
    "best_concepts",
    "bootstrap_interval",
    "calibrate",
    "clarity",
    "composite_labels",
    "extra_labels",
    "halves",
    "missing_labels",
    "of_labels",
    "pearson_interval",
    "pearson_p",
    "permutation_p_value",
    "planted_network",
    "planted_neurons",
    "random_clarity",
    "recovery",
    "sanity_table",
    "simulation_score",
    "stability_table",
]

"""Are the labels right? Held-out scores, sanity tests, simulation, planted truth, stability and composition; pure."""

from emodissect.dissection.quality.composition import CompositeLabel, Part, clarity, composite_labels, random_clarity
from emodissect.dissection.quality.metrics import COMPARISON_ONLY, METRICS, of_labels
from emodissect.dissection.quality.planted import KINDS, Planted, PlantedNetwork, planted_network, planted_neurons
from emodissect.dissection.quality.presence import Calibration, calibrated_presence
from emodissect.dissection.quality.recovery import Recovery, Share, best_concepts, recovery
from emodissect.dissection.quality.sanity import extra_labels, missing_labels, sanity_metrics, sanity_table
from emodissect.dissection.quality.simulation import calibrate, simulation_score
from emodissect.dissection.quality.stability import Agreement, agreement, halves, stability_table
from emodissect.dissection.quality.uncertainty import Interval, p_values, pearson_interval, pearson_p

__all__ = [
    "COMPARISON_ONLY",
    "KINDS",
    "METRICS",
    "Agreement",
    "Calibration",
    "CompositeLabel",
    "Interval",
    "Part",
    "Planted",
    "PlantedNetwork",
    "Recovery",
    "Share",
    "agreement",
    "best_concepts",
    "calibrate",
    "calibrated_presence",
    "clarity",
    "composite_labels",
    "extra_labels",
    "halves",
    "missing_labels",
    "of_labels",
    "p_values",
    "pearson_interval",
    "pearson_p",
    "planted_network",
    "planted_neurons",
    "random_clarity",
    "recovery",
    "sanity_metrics",
    "sanity_table",
    "simulation_score",
    "stability_table",
]

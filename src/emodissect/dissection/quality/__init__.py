"""Measures label quality: held-out scores, sanity tests, simulation, planted ground truth and stability."""

from emodissect.dissection.quality.calibration import (
    Calibration,
    calibrate,
    calibrated_presence,
    simulation_score,
)
from emodissect.dissection.quality.clarity import clarity, random_clarity
from emodissect.dissection.quality.metrics import COMPARISON_ONLY, METRICS, of_labels
from emodissect.dissection.quality.planted import (
    KINDS,
    Mixtures,
    Planted,
    PlantedNetwork,
    planted_mixtures,
    planted_network,
    planted_neurons,
)
from emodissect.dissection.quality.recovery import Recovery, Share, best_concepts, recovery
from emodissect.dissection.quality.sanity import extra_labels, missing_labels, sanity_metrics, sanity_table
from emodissect.dissection.quality.stability import Agreement, agreement, halves
from emodissect.dissection.quality.uncertainty import Interval, p_values, pearson_interval, pearson_p

__all__ = [
    "COMPARISON_ONLY",
    "KINDS",
    "METRICS",
    "Agreement",
    "Calibration",
    "Interval",
    "Mixtures",
    "Planted",
    "PlantedNetwork",
    "Recovery",
    "Share",
    "agreement",
    "best_concepts",
    "calibrate",
    "calibrated_presence",
    "clarity",
    "extra_labels",
    "halves",
    "missing_labels",
    "of_labels",
    "p_values",
    "pearson_interval",
    "pearson_p",
    "planted_mixtures",
    "planted_network",
    "planted_neurons",
    "random_clarity",
    "recovery",
    "sanity_metrics",
    "sanity_table",
    "simulation_score",
]

"""Cheap alternatives to an edit: the ladder that every edit is compared with."""

from emodissect.studies.baselines.baseline import Baseline, NotAvailable, Predictor
from emodissect.studies.baselines.head import RefittedHead
from emodissect.studies.baselines.ladder import Alternative, Alternatives, best_alternative, ceiling, climb
from emodissect.studies.baselines.learned_scale import LearnedScale
from emodissect.studies.baselines.temperature import TemperatureAndBiases
from emodissect.studies.baselines.views import MirrorView, TenCrops

LADDER: tuple[Baseline, ...] = (TemperatureAndBiases(), LearnedScale(), RefittedHead(), MirrorView(), TenCrops())
"""Every cheap alternative; the meaning of `study.baselines=null`."""

__all__ = [
    "LADDER",
    "Alternative",
    "Alternatives",
    "Baseline",
    "LearnedScale",
    "MirrorView",
    "NotAvailable",
    "Predictor",
    "RefittedHead",
    "TemperatureAndBiases",
    "TenCrops",
    "best_alternative",
    "ceiling",
    "climb",
]

"""Edit studies: a grid evaluated on validation, the chosen edit evaluated on test, and random controls."""

from emodissect.studies.ablation import ConceptAblation, ablate_concepts
from emodissect.studies.metrics import check_metric, groups_of
from emodissect.studies.null import null_studies
from emodissect.studies.result import EditStudy
from emodissect.studies.run import check_apart, run_study, warn_of_few_draws

__all__ = [
    "ConceptAblation",
    "EditStudy",
    "ablate_concepts",
    "check_apart",
    "check_metric",
    "groups_of",
    "null_studies",
    "run_study",
    "warn_of_few_draws",
]

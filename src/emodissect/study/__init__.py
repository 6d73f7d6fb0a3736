"""An edit study: a grid judged on validation, one edit judged on test, and what chance gives."""

from emodissect.study.ablation import ConceptAblation, ablate_concepts
from emodissect.study.null import null_studies
from emodissect.study.result import EditStudy
from emodissect.study.run import check_apart, check_metric, run_study, warn_of_few_draws

__all__ = [
    "ConceptAblation",
    "EditStudy",
    "ablate_concepts",
    "check_apart",
    "check_metric",
    "null_studies",
    "run_study",
    "warn_of_few_draws",
]

"""Estimates how often a study claims a gain when labels carry no information."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.progress import track

from emodissect.core.statistics import mcnemar
from emodissect.data.images import ImageSet
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.rules import Rule
from emodissect.editing.selection import Selection
from emodissect.models.inference import Inference
from emodissect.studies.cells import evaluate_operations, labels_of, shuffled
from emodissect.studies.claim import claims_gain
from emodissect.studies.decision import Question, decide


def null_studies(
    inference: Inference,
    layers: Sequence[str],
    neurons: pd.DataFrame,
    selections: Sequence[Selection],
    rules: Sequence[Rule],
    val: ImageSet,
    test: ImageSet,
    *,
    studies: int = 200,
    controls: int = 99,
    metric: str = "accuracy",
    alpha: float = 0.05,
    seed: int = 0,
    groups: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run whole studies on labels shuffled among neurons: grid, choice, test, controls, claim.

    The mean of `claims_gain` is the procedure's false-positive rate; it must not exceed alpha by more than its
    sampling error.

    Returns:
        One row per study: study, delta_val, delta_test, p_value, p_random, p_shuffled, claims_gain.
    """
    on_val = {layer: EditedLogits(inference, layer, val) for layer in layers}
    on_test = {layer: EditedLogits(inference, layer, test) for layer in layers}
    generator = np.random.default_rng([seed, 3])
    rows = []
    counted = range(studies)
    for study in track(counted, description="null studies", transient=True) if progress else counted:
        moved = pd.concat([shuffled(labels_of(neurons, layer), generator) for layer in layers])
        question = Question(
            *(layers, on_val, on_test, inference.network, selections, rules),
            *(metric, controls, controls, seed + study, groups),
        )
        decision = decide(question, moved, every_control=False)
        cell = decision.cells[decision.chosen]
        found = evaluate_operations(on_test[cell.layer], [cell.operation])
        p_value = mcnemar(int(found.gained[0]), int(found.lost[0]))
        p_random, p_shuffled = decision.p("random"), decision.p("shuffled")
        rows.append(
            {
                "study": study,
                "delta_val": float(decision.results.delta[decision.chosen]),
                "delta_test": decision.delta_test,
                "p_value": p_value,
                "p_random": p_random,
                "p_shuffled": p_shuffled,
                "claims_gain": claims_gain(decision.delta_test, p_value, p_random, p_shuffled, alpha),
            }
        )
    return pd.DataFrame(rows)

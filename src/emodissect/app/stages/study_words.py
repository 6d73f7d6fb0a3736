"""An edit study for display: terminal tables, summary metrics, and the page's checks."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from emodissect.core.number_format import count, p_value, percent, points
from emodissect.core.statistics import clopper_pearson
from emodissect.report import columns
from emodissect.report.claims import changes_nothing, same_draws
from emodissect.report.terminal import frame_table
from emodissect.studies import ConceptAblation, EditStudy
from emodissect.studies.cells import settings_in


def edit_summary(study: EditStudy) -> dict[str, Any]:
    """The study's summary metrics, for summary.json."""
    val, test = study.val, study.test
    intervals = [f"accuracy_{when}{end}" for when in ("before", "after") for end in ("", "_low", "_high")]
    of_test = (*intervals, "delta", "gained", "lost", "p_value", "nll_before", "nll_after")
    of_study = (
        *("p_random", "p_shuffled", "optimism", "claims_metric", "detectable_delta", "logit_difference"),
        *("identical_predictions", "claims_gain", "optimistic", "verdict"),
    )
    return {
        "layer": study.edit.layer,
        "selection": study.selection,
        "rule": study.rule,
        **study.settings,
        "selected": int(study.selected.sum()),
        "delta_val": val.delta,
        "delta_val_low": val.low,
        "delta_val_high": val.high,
        "p_val": val.p_value,
        **{name: getattr(test, name) for name in of_test},
        "delta_low": test.low,
        "delta_high": test.high,
        **{f"metric_{name}": value for name, value in (study.of_metric or {}).items() if name != "metric"},
        **{name: getattr(study, name) for name in of_study},
    }


def best_cells(study: EditStudy) -> Any:
    """The grid as a terminal table."""
    grid = study.grid.assign(idle=changes_nothing(study.grid))  # cells that change nothing come last
    ordered = grid.sort_values(["chosen", "idle", "delta"], ascending=[False, True, False], kind="stable")
    ordered = ordered.drop(columns="idle").dropna(axis=1, how="all")
    where = f"the {study.tested_on} images" if study.optimistic else "validation"
    shown = columns.after(columns.GRID, "layer", columns.settings(ordered, settings_in(ordered)))
    return frame_table(ordered, f"The grid, on {where}; the chosen cell first", shown, rows=12)


def readable_study(study: EditStudy, null: pd.DataFrame | None) -> dict[str, Any]:
    """Name -> formatted result of the chosen edit on test, for the terminal."""
    test = study.test
    found = {
        "accuracy before": percent(test.accuracy_before, 3),
        "accuracy after": percent(test.accuracy_after, 3),
        "change": f"{points(test.delta, 3)} points (95 % {points(test.low, 3)} to {points(test.high, 3)})",
        "newly correct, newly wrong": f"{test.gained}, {test.lost}",
        "exact McNemar p": p_value(test.p_value),
        "p against random neurons": p_value(study.p_random),
        "p against shuffled labels": _p_shuffled(study),
        "minimum detectable change (power 80 %)": _detectable(study),
        "best of as many random edits, chosen on test": points(study.optimism, 3),
        "NLL before, after": f"{test.nll_before:.4f}, {test.nll_after:.4f}",
    }
    return found if null is None else {**found, "studies with uninformative labels": null_rate(null)}


def _p_shuffled(study: EditStudy) -> str:
    return "the same draws as random" if same_draws(study.controls) else p_value(study.p_shuffled)


def ablation_table(ablation: ConceptAblation, layer: str, alpha: float) -> Any:
    """Losses of recall from ablating concepts as a terminal table, the most significant first."""
    known = ablation.frame.dropna(subset=["drop", "p_value"])
    ordered = known.sort_values(["p_value", "drop"], ascending=[True, False], kind="stable")
    beyond = int((known["p_value"] < alpha).sum())
    title = f"{layer}: loss of recall without the neurons of one concept"
    return frame_table(ordered, title, columns.ABLATION, rows=max(5, min(beyond, 12)))


def _detectable(study: EditStudy) -> str:
    if math.isnan(study.detectable_delta):
        flips = study.test.gained + study.test.lost
        return f"none: {count(flips, 'flip')} are too few for 80 % power"
    return f"{100 * study.detectable_delta:.2f} points"


def study_checks(study: EditStudy, null: pd.DataFrame | None) -> dict[str, str]:
    """Check -> result for the page: how the edit was compared, and how certain that is."""
    where = (
        f"the {study.tested_on} images (optimistic)"
        if study.optimistic
        else f"validation; {study.tested_on} was read once, for this edit"
    )
    method = (
        f"only the part after {study.edit.layer} was run again, on {study.kept_bytes / 1e6:,.0f} MB of cached outputs"
        if study.is_cut
        else f"every edit was evaluated in full: {study.cut_reason}"
    )
    same = "the same predictions" if study.identical_predictions else "not all predictions are the same"
    checks = {
        "chosen": f"by {study.metric.replace('_', ' ')} on {where}",
        "p against the same number of random neurons": p_value(study.p_random),
        "p against the same study with shuffled labels": _p_shuffled(study),
        "minimum detectable change (power 80 %)": _detectable(study),
        "best of as many random edits, if chosen on test": f"{points(study.optimism)} points on average",
        "how the grid was evaluated": method,
        "check against the actual edited weights": f"{same}; logits differ by at most {study.logit_difference:.1e}",
    }
    if null is not None:
        checks["studies with uninformative labels"] = null_rate(null)
    return checks


def null_rate(null: pd.DataFrame) -> str:
    """The number of null studies that claim a gain, with the exact interval of their share."""
    claims, studies = int(null["claims_gain"].sum()), len(null)
    low, high = clopper_pearson(claims, studies)
    return f"{claims} of {studies} claim a gain: {percent(claims / studies)} (95 % {percent(low)} to {percent(high)})"

"""The same experiment under several seeds: means, intervals and a test over independently trained networks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import ttest_1samp

CHANGES = ("delta_val", "delta")
"""Figures of which 0 means that nothing changed, so that they are tested against it."""

FIGURES = (*CHANGES, "accuracy_before", "accuracy_after", "val/acc", "test/acc")
"""What is averaged over seeds, where the jobs have it."""

COLUMNS = ("figure", "seeds", "mean", "sd", "low", "high", "positive", "p_value")


def over_seeds(
    jobs: pd.DataFrame, swept: Sequence[str], figures: Sequence[str] = FIGURES, level: float = 0.95
) -> pd.DataFrame:
    """Each figure over the jobs that differ in nothing but their seed.

    With n seeds, mean m and standard deviation s (n - 1 in the denominator): the interval is m ± t s / √n, t the
    quantile of Student's t with n - 1 degrees of freedom, and ``p_value`` the two-sided one-sample t-test of a change
    against 0. The unit is a trained network, so the interval tells how far another training would differ; what other
    test images would give is in the interval of each single job.

    Args:
        jobs: one row a job of a sweep; failed ones have an ``error`` and do not count.
        swept: the columns that the sweep varied.
        figures: columns to average.
        level: of the interval.

    Returns:
        one row a setting and figure: the settings' columns, then figure, seeds, mean, sd, low, high, positive (seeds
        above 0) and p_value (NaN for figures that are no change). Empty where no setting has two seeds.
    """
    settings = [name for name in swept if name != "seed" and name in jobs]
    none = pd.DataFrame(columns=[*settings, *COLUMNS])
    if "seed" not in swept or "seed" not in jobs:
        return none
    finished = jobs[jobs["error"].isna()] if "error" in jobs else jobs
    groups = finished.groupby(settings, sort=False, dropna=False) if settings else [((), finished)]
    rows = []
    for setting, group in groups:
        alike = group.drop_duplicates("seed")
        for figure in figures:
            if figure not in alike:
                continue
            values = pd.to_numeric(alike[figure], errors="coerce").dropna()
            if len(values) > 1:
                summary = _summary(values.to_numpy(), figure in CHANGES, level)
                rows.append(dict(zip(settings, setting, strict=True)) | {"figure": figure} | summary)
    return pd.DataFrame(rows) if rows else none


def _summary(values: ArrayLike, tested: bool, level: float) -> dict[str, float]:
    sample = np.asarray(values, dtype=float)
    mean, sd = float(sample.mean()), float(sample.std(ddof=1))
    if np.ptp(sample) == 0:  # scipy has no t where nothing varies
        low = high = mean
        p_value = 1.0 if mean == 0 else 0.0
    else:
        test = ttest_1samp(sample, 0.0)
        interval = test.confidence_interval(level)
        low, high, p_value = float(interval.low), float(interval.high), float(test.pvalue)
    return {
        "seeds": len(sample),
        "mean": mean,
        "sd": sd,
        "low": low,
        "high": high,
        "positive": int((sample > 0).sum()),
        "p_value": p_value if tested else float("nan"),
    }

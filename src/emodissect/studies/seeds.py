"""The same experiment under several seeds: means, intervals and a test over independently trained networks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm, t

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
    against 0. Figures are shares of a limited number of images, so that few seeds may agree by chance to the last
    digit; s is therefore taken to be at least the standard error within one job, the root mean square of
    (``<figure>_high`` - ``<figure>_low``) / (2 · 1.96) where the jobs have their own 95 % intervals. Where they have
    none and all values are equal, interval and p-value are NaN. The unit is a trained network, so the interval tells
    how far another training would differ; what other test images would give is in the interval of each single job.

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
                within = _error_within(alike.loc[values.index], figure)
                summary = _summary(values.to_numpy(), within, figure in CHANGES, level)
                rows.append(dict(zip(settings, setting, strict=True)) | {"figure": figure} | summary)
    return pd.DataFrame(rows) if rows else none


def _error_within(jobs: pd.DataFrame, figure: str) -> float:
    """The standard error of a figure within one job, from the jobs' own intervals; 0 where they have none."""
    bounds = [f"{figure}_low", f"{figure}_high"]
    if not set(bounds) <= set(jobs):
        return 0.0
    low, high = (pd.to_numeric(jobs[name], errors="coerce") for name in bounds)
    errors = (high - low).dropna() / (2 * norm.ppf(0.975))
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def _summary(values: ArrayLike, within: float, tested: bool, level: float) -> dict[str, float]:
    sample = np.asarray(values, dtype=float)
    seeds, mean, sd = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    error = max(sd, within) / np.sqrt(seeds)
    half, p_value = float("nan"), float("nan")
    if error > 1e-12:  # what is left of a difference of equal numbers
        half = float(t.ppf((1 + level) / 2, seeds - 1) * error)
        p_value = float(2 * t.sf(abs(mean) / error, seeds - 1))
    return {
        "seeds": seeds,
        "mean": mean,
        "sd": sd,
        "low": mean - half,
        "high": mean + half,
        "positive": int((sample > 0).sum()),
        "p_value": p_value if tested else float("nan"),
    }

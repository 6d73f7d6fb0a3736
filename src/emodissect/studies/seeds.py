"""Means, intervals and tests over independently trained networks: the same experiment with several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, t

from emodissect.core.number_format import p_sentence, points
from emodissect.studies.baselines.with_edit import WITH_EDIT

CHANGES = ("delta_val", "delta")
"""Figures that are changes, and are therefore tested against 0."""

FIGURES = (*CHANGES, "accuracy_before", "accuracy_after", "val/acc", "test/acc")
"""Figures that are averaged over seeds, where the jobs have them."""

COLUMNS = ("figure", "seeds", "mean", "sd", "low", "high", "positive", "p_value")

EDIT = "the edit"
LADDER_PREFIX = "ladder/"
TRAINING_COLUMNS = ("what", "seeds", "mean", "low", "high", "gain", "p_value", "p_sign")


def over_seeds(jobs: pd.DataFrame, swept: Sequence[str]) -> pd.DataFrame:
    """Summarize each figure over the jobs that differ only in their seed.

    With n seeds, mean m and standard deviation s (n - 1 in the denominator): the interval is m ± t s / √n, t the
    quantile of Student's t with n - 1 degrees of freedom, and ``p_value`` the two-sided one-sample t-test of a change
    against 0. Figures are fractions of a limited number of images, so a few seeds may agree to the last digit by
    chance; s is therefore at least the standard error within one job, the root mean square of
    (``<figure>_high`` - ``<figure>_low``) / (2 · 1.96) where the jobs have their own 95 % intervals. Where they have
    none and all values are equal, interval and p-value are NaN. The unit is a trained network, so the interval shows
    how much another training would differ; the variation over test images is in each job's own interval.

    Args:
        jobs: one row per job of a sweep; failed jobs have an ``error`` and do not count.
        swept: the columns that the sweep varied.

    Returns:
        One row per setting and figure: the settings' columns, then figure, seeds, mean, sd, low, high, positive
        (number of seeds above 0) and p_value (NaN for figures that are not changes). Empty where no setting has two
        seeds.
    """
    settings = _settings(jobs, swept)
    none = pd.DataFrame(columns=[*settings, *COLUMNS])
    if "seed" not in swept or "seed" not in jobs:
        return none
    rows = []
    for setting, alike in _alike(_finished(jobs), settings):
        for figure in FIGURES:
            if figure not in alike:
                continue
            values = pd.to_numeric(alike[figure], errors="coerce").dropna()
            if len(values) > 1:
                within = _error_within(alike.loc[values.index], figure)
                summary = _summary(values.to_numpy(), within, figure in CHANGES)
                rows.append(setting | {"figure": figure} | summary)
    return pd.DataFrame(rows) if rows else none


def over_trainings(jobs: pd.DataFrame, swept: Sequence[str]) -> pd.DataFrame:
    """Summarize the edit and every alternative over the jobs that differ only in their seed.

    Args:
        jobs: one row per job of a sweep, with `delta` and `ladder/...`; failed jobs have an `error` and do not count.

    Returns:
        The settings' columns, then TRAINING_COLUMNS: mean change in accuracy on test, its Student interval over
        trainings, the number of trainings that gain, and two-sided t-test and sign test against 0 (the sign test
        ignores trainings without a change). Interval and t-test as in :func:`over_seeds`: NaN where all values are
        equal and the jobs have no interval of their own. Empty where no setting has two seeds.
    """
    if "seed" not in swept or "delta" not in jobs:
        return pd.DataFrame(columns=list(TRAINING_COLUMNS))
    settings = _settings(jobs, swept)
    rows = []
    for setting, alike in _alike(_finished(jobs), settings):
        for column in ("delta", *(str(name) for name in jobs if str(name).startswith(LADDER_PREFIX))):
            values = pd.to_numeric(alike[column], errors="coerce").dropna()
            if len(values) > 1:
                what = EDIT if column == "delta" else column.removeprefix(LADDER_PREFIX)
                within = _error_within(alike.loc[values.index], column)
                rows.append(setting | {"what": what} | _changed(values.to_numpy(dtype=float), within))
    return pd.DataFrame(rows, columns=[*settings, *TRAINING_COLUMNS])


def verdicts_over_trainings(table: pd.DataFrame, alpha: float = 0.05) -> list[str]:
    """One sentence for each setting of :func:`over_trainings`.

    Example:
        >>> jobs = pd.DataFrame({"seed": [1, 2, 3], "delta": [0.01, 0.012, 0.011], "ladder/mirror": [0.02, 0.02, 0.03]})
        >>> print(*verdicts_over_trainings(over_trainings(jobs, ["seed"])))
        Over 3 trainings: a gain, +1.10 points on average (95 % +0.85 to +1.35, t-test p = .003; 3 of 3 gain, sign test p = .25); the best cheap alternative, mirror, gives +2.33.
    """  # noqa: E501
    settings = [str(name) for name in table if name not in TRAINING_COLUMNS]
    sentences = []
    for setting, rows in _alike(table, settings):
        edit = rows[rows["what"] == EDIT]
        if edit.empty:
            continue
        row = edit.iloc[0]
        significant = row["p_value"] < alpha  # False for NaN
        word = "no change beyond chance" if not significant else "a gain" if row["mean"] > 0 else "a loss"
        named = ", ".join(f"{name}={value}" for name, value in setting.items())
        others = rows[~rows["what"].isin([EDIT, "ceiling/test"]) & ~rows["what"].str.startswith(WITH_EDIT)]
        best = "" if others.empty else _best(others)
        spread = (
            "no interval or t-test, since all trainings have the same change"
            if np.isnan(row["p_value"])
            else f"95 % {points(row['low'])} to {points(row['high'])}, t-test {p_sentence(row['p_value'])}"
        )
        sentences.append(
            f"Over {row['seeds']} trainings{f' ({named})' if named else ''}: {word}, {points(row['mean'])} points on "
            f"average ({spread}; {row['gain']} of {row['seeds']} gain, sign test {p_sentence(row['p_sign'])}){best}."
        )
    return sentences


def _best(others: pd.DataFrame) -> str:
    best = others.iloc[int(others["mean"].to_numpy(dtype=float).argmax())]
    name, _, images = str(best["what"]).partition("/")
    fitted = f" fitted on {images}" if images else ""
    return f"; the best cheap alternative, {name.replace('_', ' ')}{fitted}, gives {points(best['mean'])}"


def _changed(values: np.ndarray, within: float) -> dict[str, Any]:
    summary = _summary(values, within, tested=True)
    gain, changed = int(summary["positive"]), int((values != 0).sum())
    p_sign = float(binomtest(gain, changed).pvalue) if changed else 1.0
    kept = {name: summary[name] for name in ("seeds", "mean", "low", "high", "p_value")}
    return kept | {"gain": gain, "p_sign": p_sign}


def _settings(jobs: pd.DataFrame, swept: Sequence[str]) -> list[str]:
    return [name for name in swept if name != "seed" and name in jobs]


def _finished(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs[jobs["error"].isna()] if "error" in jobs else jobs


def _alike(frame: pd.DataFrame, settings: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    if not settings:
        yield {}, frame.drop_duplicates("seed") if "seed" in frame else frame
        return
    for values, rows in frame.groupby(settings, sort=False, dropna=False):
        named = dict(zip(settings, values if isinstance(values, tuple) else (values,), strict=True))
        yield named, rows.drop_duplicates("seed") if "seed" in rows else rows


def _error_within(jobs: pd.DataFrame, figure: str) -> float:
    """The standard error of a figure within one job, from the jobs' own intervals; 0 where they have none."""
    bounds = [f"{figure}_low", f"{figure}_high"]
    if not set(bounds) <= set(jobs):
        return 0.0
    low, high = (pd.to_numeric(jobs[name], errors="coerce") for name in bounds)
    errors = (high - low).dropna() / (2 * norm.ppf(0.975))
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def _summary(values: ArrayLike, within: float, tested: bool) -> dict[str, float]:
    sample = np.asarray(values, dtype=float)
    seeds, mean, sd = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    error = max(sd, within) / np.sqrt(seeds)
    half, p_value = float("nan"), float("nan")
    if error > 1e-12:  # equal values differ by rounding errors smaller than this
        half = float(t.ppf(0.975, seeds - 1) * error)
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

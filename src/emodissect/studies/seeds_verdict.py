"""One verdict over independently trained networks: the edit's mean change beside that of cheap alternatives. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ttest_1samp

from emodissect.core.number_format import p_sentence, points
from emodissect.studies.baselines.with_edit import WITH_EDIT

EDIT = "the edit"
LADDER_PREFIX = "ladder/"
COLUMNS = ("what", "seeds", "mean", "low", "high", "gain", "p_value", "p_sign")


def over_trainings(jobs: pd.DataFrame, swept: Sequence[str], level: float = 0.95) -> pd.DataFrame:
    """The edit and every alternative over the jobs that differ in nothing but their seed.

    Args:
        jobs: one row a job of a sweep, with `delta` and `ladder/...`; failed ones have an `error` and do not count.
        swept: the columns that the sweep varied.
        level: of the intervals.

    Returns:
        the settings' columns, then COLUMNS: mean change of accuracy on test, its Student interval over trainings, how
        many trainings gain, two-sided t-test and sign test against 0 (trainings without a change do not count in the
        latter). Empty where no setting has two seeds.
    """
    if "seed" not in swept or "delta" not in jobs:
        return pd.DataFrame(columns=list(COLUMNS))
    finished = jobs[jobs["error"].isna()] if "error" in jobs else jobs
    settings = [name for name in swept if name != "seed" and name in jobs]
    rows = []
    for setting, alike in _alike(finished, settings):
        for column in ("delta", *(str(name) for name in jobs if str(name).startswith(LADDER_PREFIX))):
            values = pd.to_numeric(alike[column], errors="coerce").dropna().to_numpy(dtype=float)
            if len(values) > 1:
                what = EDIT if column == "delta" else column.removeprefix(LADDER_PREFIX)
                rows.append(setting | {"what": what} | _summary(values, level))
    return pd.DataFrame(rows, columns=[*settings, *COLUMNS])


def verdicts_over_trainings(table: pd.DataFrame, alpha: float = 0.05) -> list[str]:
    """One sentence for each setting of :func:`over_trainings`.

    Example:
        >>> jobs = pd.DataFrame({"seed": [1, 2, 3], "delta": [0.01, 0.012, 0.011], "ladder/mirror": [0.02, 0.02, 0.03]})
        >>> print(*verdicts_over_trainings(over_trainings(jobs, ["seed"])))
        Over 3 trainings: a gain, +1.10 points on average (95 % +0.85 to +1.35, t-test p = .003; 3 of 3 gain, sign test p = .25); the best cheap alternative, mirror, gives +2.33.
    """  # noqa: E501
    settings = [str(name) for name in table if name not in COLUMNS]
    sentences = []
    for setting, rows in _alike(table, settings):
        edit = rows[rows["what"] == EDIT]
        if edit.empty:
            continue
        row = edit.iloc[0]
        word = "no change beyond chance" if row["p_value"] >= alpha else "a gain" if row["mean"] > 0 else "a loss"
        named = ", ".join(f"{name}={value}" for name, value in setting.items())
        others = rows[~rows["what"].isin([EDIT, "ceiling/test"]) & ~rows["what"].str.startswith(WITH_EDIT)]
        best = "" if others.empty else _best(others)
        sentences.append(
            f"Over {row['seeds']} trainings{f' ({named})' if named else ''}: {word}, {points(row['mean'])} points on "
            f"average (95 % {points(row['low'])} to {points(row['high'])}, t-test {p_sentence(row['p_value'])}; "
            f"{row['gain']} of {row['seeds']} gain, sign test {p_sentence(row['p_sign'])}){best}."
        )
    return sentences


def _best(others: pd.DataFrame) -> str:
    best = others.iloc[int(others["mean"].to_numpy(dtype=float).argmax())]
    name, _, images = str(best["what"]).partition("/")
    fitted = f" fitted on {images}" if images else ""
    return f"; the best cheap alternative, {name.replace('_', ' ')}{fitted}, gives {points(best['mean'])}"


def _alike(frame: pd.DataFrame, settings: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    if not settings:
        yield {}, frame.drop_duplicates("seed") if "seed" in frame else frame
        return
    for values, rows in frame.groupby(settings, sort=False, dropna=False):
        named = dict(zip(settings, values if isinstance(values, tuple) else (values,), strict=True))
        yield named, rows.drop_duplicates("seed") if "seed" in rows else rows


def _summary(values: np.ndarray, level: float) -> dict[str, Any]:
    gain, changed = int((values > 0).sum()), int((values != 0).sum())
    mean = float(values.mean())
    if np.ptp(values) == 0:  # no t where nothing varies
        low, high, p_value = mean, mean, 1.0 if mean == 0 else 0.0
    else:
        test = ttest_1samp(values, 0.0)
        interval = test.confidence_interval(level)
        low, high, p_value = float(interval.low), float(interval.high), float(test.pvalue)
    p_sign = float(binomtest(gain, changed).pvalue) if changed else 1.0
    row = {"seeds": len(values), "mean": mean, "low": low, "high": high, "gain": gain}
    return row | {"p_value": p_value, "p_sign": p_sign}

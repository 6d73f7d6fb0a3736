"""Figures over seeds against textbook intervals worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from emodissect.report import SweepPage
from emodissect.studies.seeds import over_seeds

JOBS = pd.DataFrame(
    {
        "seed": [1, 2, 3, 1, 2, 3],
        "factor": [1.5, 1.5, 1.5, 2.0, 2.0, 2.0],
        "layer": "lin2",
        "delta_val": [0.0, 0.01, 0.0, 0.0, 0.0, 0.0],
        "delta": [0.01, 0.02, 0.03, 0.0, 0.0, 0.0],
        "test/acc": [0.5, 0.6, 0.7, 0.5, 0.6, 0.7],
    }
)


def test_mean_and_t_interval_by_hand() -> None:
    table = over_seeds(JOBS, ["seed", "factor"]).set_index(["factor", "figure"])
    row = table.loc[(1.5, "delta")]
    # mean 2, sd 1, n 3: t(.975, 2) = 4.302653, t = 2 sqrt(3) with p = 1 - t / sqrt(t^2 + 2) for 2 degrees of freedom
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert row["seeds"] == 3
    assert row["mean"] == pytest.approx(0.02)
    assert row["sd"] == pytest.approx(0.01)
    assert (row["low"], row["high"]) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-5)
    t = 2 * math.sqrt(3)
    assert row["p_value"] == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert row["positive"] == 3


def test_an_accuracy_is_not_tested_against_zero() -> None:
    table = over_seeds(JOBS, ["seed", "factor"]).set_index(["factor", "figure"])
    assert math.isnan(table.loc[(1.5, "test/acc"), "p_value"])
    assert table.loc[(2.0, "test/acc"), "mean"] == pytest.approx(0.6)


def test_no_change_under_any_seed_is_certain_and_insignificant() -> None:
    row = over_seeds(JOBS, ["seed", "factor"]).set_index(["factor", "figure"]).loc[(2.0, "delta")]
    assert (row["mean"], row["low"], row["high"], row["p_value"], row["positive"]) == (0, 0, 0, 1, 0)


def test_failed_jobs_and_repeated_seeds_do_not_count() -> None:
    jobs = pd.concat([JOBS.iloc[:3], JOBS.iloc[:1]], ignore_index=True)
    jobs["error"] = [None, None, "killed", None]
    assert over_seeds(jobs, ["seed"]).set_index("figure").loc["delta", "seeds"] == 2


@pytest.mark.parametrize("swept", [["factor"], []])
def test_without_swept_seeds_there_is_nothing_to_average(swept: list[str]) -> None:
    assert over_seeds(JOBS, swept).empty
    assert over_seeds(JOBS.iloc[:1], ["seed"]).empty


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        jobs = pd.DataFrame({"seed": range(4), "delta": generator.normal(0.002, 0.004, 4)})
        row = over_seeds(jobs, ["seed"]).iloc[0]
        covered += row["low"] <= 0.002 <= row["high"]
    assert 0.92 <= covered / 400 <= 0.98  # 95 % ± 2.7 standard errors


def test_the_sweep_page_shows_means_over_seeds() -> None:
    jobs, swept = JOBS.assign(job=range(6), tau=0.0), ["seed", "factor"]
    html = SweepPage(jobs, swept=swept, replicates=over_seeds(jobs, swept)).html().replace("\u00a0", " ")
    assert "Over seeds" in html
    assert "change on test (points)" in html
    assert "It excludes 0 for 0 of 2 settings" in html
    assert "the mean of jobs alike; best +0.33 at τ = 0, factor 1.5" in html
    assert "seed 2, factor 1.5" in html

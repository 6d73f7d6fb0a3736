"""Figures over seeds against textbook intervals worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from emodissect.core.statistics import delta_interval
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


def test_equal_values_without_an_interval_of_their_own_say_nothing_of_the_spread() -> None:
    row = over_seeds(JOBS, ["seed", "factor"]).set_index(["factor", "figure"]).loc[(2.0, "delta")]
    assert (row["mean"], row["sd"], row["positive"]) == (0, 0, 0)
    assert row[["low", "high", "p_value"]].isna().all()


def test_equal_deltas_are_as_sure_as_one_job_at_least() -> None:
    jobs = pd.DataFrame({"seed": [1, 2], "delta": 0.004, "delta_low": -0.002, "delta_high": 0.010})
    row = over_seeds(jobs, ["seed"]).iloc[0]
    error = 0.006 / 1.959964 / math.sqrt(2)
    assert row["sd"] == 0
    assert (row["low"], row["high"]) == pytest.approx((0.004 - 12.7062 * error, 0.004 + 12.7062 * error), rel=1e-4)
    assert row["p_value"] == pytest.approx(1 - 2 * math.atan(0.004 / error) / math.pi, rel=1e-4)  # Cauchy: t with 1


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_without_a_true_change_are_significant_at_most_at_the_nominal_rate(seeds: int) -> None:
    """Few flips of 500 images: deltas are whole numbers of images, and often equal."""
    generator = np.random.default_rng(seeds)
    significant = covered = 0
    for _ in range(400):
        gained, lost = generator.binomial(500, 0.004, (2, seeds))
        intervals = np.array([delta_interval(int(g), int(lo), 500) for g, lo in zip(gained, lost, strict=True)])
        jobs = pd.DataFrame({"seed": range(seeds), "delta": (gained - lost) / 500})
        row = over_seeds(jobs.assign(delta_low=intervals[:, 0], delta_high=intervals[:, 1]), ["seed"]).iloc[0]
        significant += row["p_value"] < 0.05
        covered += row["low"] <= 0 <= row["high"]
        assert row["p_value"] > 0
    assert significant <= 400 * 0.05
    assert covered >= 400 * 0.95


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

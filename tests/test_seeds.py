"""Metrics and verdicts over seeds against textbook intervals worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import norm, t, ttest_1samp

from emodissect.app.sweep_results import show_trainings
from emodissect.core.statistics import delta_interval
from emodissect.report import SweepPage
from emodissect.studies.seeds import over_seeds, over_trainings, verdicts_over_trainings

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
    """With few flips in 500 images, deltas are whole numbers of images and often equal."""
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
    assert "the mean over jobs in a cell; best +0.33 at τ = 0, factor 1.5" in html
    assert "seed 2, factor 1.5" in html


def jobs(tau: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "seed": [1, 2, 3, 4, 5],
            "tau": tau,
            "delta": [0.01, 0.0, -0.002, 0.004, 0.008],
            "ladder/mirror": [0.02, 0.01, 0.015, 0.01, 0.02],
            "ladder/head/val": [0.01, np.nan, 0.0, 0.0, 0.0],
            "ladder/ceiling/test": [0.5] * 5,
        }
    )


def test_what_holds_the_edit_itself_is_no_alternative() -> None:
    table = over_trainings(jobs().assign(**{"ladder/edit_and_head/val": 0.9}), ["seed"])
    assert "the best cheap alternative, mirror, gives +1.50" in verdicts_over_trainings(table)[0]


def test_means_intervals_and_tests() -> None:
    table = over_trainings(jobs(), ["seed"]).set_index("what")
    deltas = jobs()["delta"]
    edit = table.loc["the edit"]
    test = ttest_1samp(deltas, 0)
    interval = test.confidence_interval()
    assert (edit["seeds"], edit["gain"]) == (5, 3)
    assert edit["mean"] == pytest.approx(0.004)
    assert tuple(edit[["low", "high", "p_value"]]) == pytest.approx((interval.low, interval.high, test.pvalue))
    assert edit["p_sign"] == pytest.approx(0.625)  # 3 of the 4 that changed
    assert table.loc["head/val", "seeds"] == 4
    assert np.isnan(table.loc["ceiling/test", "p_value"])  # all equal, and nothing is known of the error within a job


def test_trainings_that_agree_to_the_last_digit_are_no_proof() -> None:
    equal = jobs()[["seed"]].assign(delta=0.002)
    (sentence,) = verdicts_over_trainings(over_trainings(equal, ["seed"]))
    assert sentence == (
        "Over 5 trainings: no change beyond chance, +0.20 points on average (no interval or t-test, since all "
        "trainings have the same change; 5 of 5 gain, sign test p = .062)."
    )
    known = equal.assign(delta_low=-0.004, delta_high=0.008)  # a standard error of 0.31 points within each
    row = over_trainings(known, ["seed"]).iloc[0]
    error = 0.012 / (2 * norm.ppf(0.975)) / np.sqrt(5)
    assert row["high"] - row["mean"] == pytest.approx(t.ppf(0.975, 4) * error)
    assert row["p_value"] == pytest.approx(2 * t.sf(0.002 / error, 4))


def test_one_sentence_a_setting() -> None:
    two = pd.concat([jobs(0.0), jobs(1.0)])
    sentences = verdicts_over_trainings(over_trainings(two, ["seed", "tau"]))
    assert len(sentences) == 2
    assert sentences[1] == (
        "Over 5 trainings (tau=1.0): no change beyond chance, +0.40 points on average (95 % −0.23 to +1.03, t-test "
        "p = .15; 3 of 5 gain, sign test p = .62); the best cheap alternative, mirror, gives +1.50."
    )
    gain = jobs().assign(delta=[0.01, 0.011, 0.012, 0.011, 0.01])[["seed", "delta"]]
    (sentence,) = verdicts_over_trainings(over_trainings(gain, ["seed"]))
    assert sentence.startswith("Over 5 trainings: a gain, +1.08 points")
    assert "alternative" not in sentence


def test_without_seeds_there_is_no_verdict() -> None:
    assert over_trainings(jobs(), ["tau"]).empty
    assert over_trainings(jobs().head(1), ["seed"]).empty
    failed = jobs().assign(error=[None, "x", "x", "x", "x"])
    assert verdicts_over_trainings(over_trainings(failed, ["seed"])) == []
    assert over_trainings(jobs().drop(columns="delta"), ["seed"]).empty


def test_it_is_printed() -> None:
    console = Console(width=200, record=True)
    show_trainings(over_trainings(jobs(), ["seed"]), console)
    text = console.export_text()
    assert "Over trainings, compared with cheap alternatives" in text
    assert "ladder" not in text
    assert "no change beyond chance" in text.replace("\u00a0", " ")

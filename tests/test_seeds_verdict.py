"""One verdict over trainings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

from emodissect.app.sweep_results import show_trainings
from emodissect.studies.seeds import over_trainings, verdicts_over_trainings


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
    assert (edit["low"], edit["high"], edit["p_value"]) == (interval.low, interval.high, test.pvalue)
    assert edit["p_sign"] == pytest.approx(0.625)  # 3 of the 4 that changed
    assert table.loc["head/val", "seeds"] == 4
    assert table.loc["ceiling/test", "p_value"] == 0


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
    assert "Over trainings, beside cheap alternatives" in text
    assert "ladder" not in text
    assert "no change beyond chance" in text.replace("\u00a0", " ")

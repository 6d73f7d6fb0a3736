"""Exact tests and intervals against hand-worked and brute-force figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar as other_mcnemar

from emodissect.core.statistics import (
    benjamini_hochberg,
    delta_interval,
    detectable_delta,
    exceedance_p,
    holm,
    mcnemar,
    wilson,
)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    assert mcnemar(3, 3) == 1.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_mcnemar_is_the_textbooks(gained: int, lost: int) -> None:
    theirs = other_mcnemar([[10, gained], [lost, 10]], exact=True).pvalue
    assert mcnemar(gained, lost) == pytest.approx(1.0 if gained == lost else min(theirs, 1.0))
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_interval_is_that_of_resampled_rows() -> None:
    gained, lost, images = 30, 15, 400
    rows = np.repeat([1.0, -1.0, 0.0], [gained, lost, images - gained - lost])
    theirs = bootstrap((rows,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0))
    low, high = delta_interval(gained, lost, images)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.004)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.004)
    assert (low, high) == delta_interval(gained, lost, images)
    assert low < (gained - lost) / images < high
    assert delta_interval(0, 0, 10) == (0.0, 0.0)


def test_wilson_by_hand() -> None:
    z = 1.959963984540054
    centre, half = (0.8 + z**2 / 20) / (1 + z**2 / 10), z / (1 + z**2 / 10) * math.sqrt(0.016 + z**2 / 400)
    assert wilson(8, 10) == pytest.approx((centre - half, centre + half))


def test_corrections_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03]), [0.03, 0.04, 0.04])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert np.isnan(benjamini_hochberg([np.nan])).all()


def test_exceedance() -> None:
    assert exceedance_p(0.5, [0.1, 0.5, 0.9]) == 0.75
    assert exceedance_p(1.0, [0.1] * 19) == 0.05
    assert exceedance_p(0.0, []) == 1.0


def test_detectable_delta_has_the_power_it_says() -> None:
    images, discordant = 3589, 0.02
    delta = detectable_delta(images, discordant)
    flips = round(images * discordant)
    generator = np.random.default_rng(0)
    gained = generator.binomial(flips, (1 + delta * images / flips) / 2, size=4000)
    found = np.mean([mcnemar(int(g), int(flips - g)) < 0.05 and g > flips / 2 for g in gained])
    assert found == pytest.approx(0.8, abs=0.02)
    # Five flips: all five the same way give p = .0625; never significant.
    assert math.isnan(detectable_delta(1000, 0.005))
    assert math.isnan(detectable_delta(1000, 0.0))
    # Six flips: only 6 of 6 is significant; q^6 = .8.
    assert detectable_delta(1000, 0.006) == pytest.approx((2 * 0.8 ** (1 / 6) - 1) * 6 / 1000)

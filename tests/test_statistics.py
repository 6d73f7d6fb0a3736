"""Exact tests and intervals against values worked out by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial
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


def test_the_interval_of_a_delta_excludes_zero_exactly_where_mcnemar_rejects_it() -> None:
    for gained in range(26):
        for lost in range(26):
            for level in (0.9, 0.95):
                low, high = delta_interval(gained, lost, 60, level)
                assert low <= (gained - lost) / 60 <= high
                assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 1 - level), (gained, lost)
                assert delta_interval(lost, gained, 60, level) == (-high, -low)


@pytest.mark.parametrize(("gained", "lost", "images"), [(4, 0, 3589), (60, 40, 3589), (3, 47, 50), (0, 50, 50)])
def test_the_interval_of_a_delta_is_the_quantile_of_drawn_products(gained: int, lost: int, images: int) -> None:
    generator, count = np.random.default_rng(0), 400_000

    def drawn(a: float, b: float) -> np.ndarray:
        return np.full(count, float(b <= 0)) if min(a, b) <= 0 else generator.beta(a, b, count)

    def lower(more: int, fewer: int) -> float:
        flips, effect = more + fewer, 2 * drawn(more, fewer + 1) - 1
        theta = np.where(effect > 0, drawn(flips, images - flips + 1), drawn(flips + 1, images - flips))
        return float(np.quantile(theta * effect, 0.025))

    low, high = delta_interval(gained, lost, images)
    assert low == pytest.approx(lower(gained, lost), abs=0.02 * (high - low))
    assert high == pytest.approx(-lower(lost, gained), abs=0.02 * (high - low))


@pytest.mark.parametrize(("gain", "loss"), [(0.01, 0.01), (0.05, 0.0), (0.2, 0.1), (0.02, 0.3), (0.5, 0.5)])
def test_the_interval_of_a_delta_covers_what_it_says(gain: float, loss: float) -> None:
    images, covered = 30, 0.0
    for gained in range(images + 1):
        for lost in range(images + 1 - gained):
            low, high = delta_interval(gained, lost, images)
            if low <= gain - loss <= high:
                covered += multinomial.pmf(
                    [gained, lost, images - gained - lost], images, [gain, loss, 1 - gain - loss]
                )
    assert covered >= 0.95


def test_no_flips_leave_the_delta_uncertain() -> None:
    low, high = delta_interval(0, 0, 100)
    assert (low, high) == pytest.approx((0.025**0.01 - 1, 1 - 0.025**0.01))
    with pytest.raises(ValueError, match="3 gained and 0 lost of 2 images"):
        delta_interval(3, 0, 2)


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


@pytest.mark.parametrize(("images", "discordant"), [(3589, 0.02), (500, 0.03)])
def test_detectable_delta_has_the_power_it_says(images: int, discordant: float) -> None:
    """Over simulated studies in which the number of flips varies too."""
    delta = detectable_delta(images, discordant)
    generator = np.random.default_rng(0)
    flips = generator.binomial(images, discordant, size=4000)
    gained = generator.binomial(flips, (1 + delta / discordant) / 2)
    found = np.mean([mcnemar(int(g), int(f - g)) < 0.05 and g > f / 2 for g, f in zip(gained, flips, strict=True)])
    assert found == pytest.approx(0.8, abs=0.02)


def test_detectable_delta_by_hand() -> None:
    assert math.isnan(detectable_delta(5, 1.0))  # p < .05 takes six flips, all one way
    assert math.isnan(detectable_delta(1000, 0.0))
    # Six images that all flip: only 6 of 6 is significant; q^6 = .8.
    assert detectable_delta(6, 1.0) == pytest.approx(2 * 0.8 ** (1 / 6) - 1)
    # Six flips are expected, and often five or fewer come: not even flips that all gain have power .8.
    assert math.isnan(detectable_delta(1000, 0.006))
    assert 0.008 < detectable_delta(1000, 0.009) < 0.009

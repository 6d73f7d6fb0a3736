"""Exact tests, intervals and corrections for multiple testing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv
from scipy.stats import binom, binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

_ROOTS, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_NODES, _WEIGHTS = (_ROOTS + 1) / 2, _WEIGHTS / 2  # quadrature on [0, 1]


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar p-value of two networks on the same images.

    p = P(|2X - D| >= |gained - lost|), X ~ Binomial(D, 1/2), D = gained + lost; 1 where D = 0.

    Args:
        gained: images wrong before and right after.
        lost: images right before and wrong after.

    Source: McNemar, Psychometrika 1947, in its exact (binomial) form.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts of flips cannot be negative: {gained}, {lost}")
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def delta_interval(gained: int, lost: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the accuracy delta (gained - lost) / images that excludes 0 exactly if :func:`mcnemar` rejects it.

    With D = gained + lost, delta = theta (2 q - 1): theta is the share of images that flip, q the share of flips that
    gain. The bounds are quantiles of the product of both, with their exact (Clopper-Pearson) bounds as distributions:
    for the lower bound q ~ Beta(gained, lost + 1), and theta ~ Beta(D, images - D + 1) if 2 q > 1, otherwise
    Beta(D + 1, images - D). Without flips it is ± the exact upper bound of theta, never [0, 0].

    Args:
        images: number of classified images, 1 or more.

    Example:
        >>> low, high = delta_interval(gained=6, lost=0, images=1000)  # p = .031
        >>> low > 0, high < 0.02
        (True, True)

    Source: Fay & Lumbard, Confidence intervals for difference in proportions for matched pairs compatible with exact
    McNemar's or sign tests, Statistics in Medicine 2021.
    """
    if min(gained, lost) < 0 or images < 1 or gained + lost > images:
        raise ValueError(f"{gained} gained and {lost} lost of {images} images")
    tail = (1 - level) / 2
    return _lower_delta(gained, lost, images, tail), -_lower_delta(lost, gained, images, tail)


def wilson(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion. Source: Wilson, JASA 1927."""
    low, high = proportion_confint(right, images, alpha=1 - level, method="wilson")
    return float(low), float(high)


def clopper_pearson(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, of coverage at least `level`. Source: Clopper & Pearson, Biometrika 1934."""
    low, high = proportion_confint(right, images, alpha=1 - level, method="beta")
    return float(low), float(high)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for the family-wise error rate (Holm). NaN stays NaN and is not counted."""
    return _corrected(p_values, "holm")


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """q-values: p-values corrected for the false discovery rate. NaN stays NaN and is not counted."""
    return _corrected(p_values, "fdr_bh")


def exceedance_p(observed: float, null: ArrayLike) -> float:
    """p = (1 + #{null >= observed}) / (1 + #null): one-sided Monte Carlo p-value.

    Valid for any number of draws; never 0. Source: Phipson & Smyth, SAGMB 2010.
    """
    draws = np.asarray(null, dtype=np.float64)
    # accuracies are counts over images: the tolerance keeps ties that float division would break
    return float((1 + np.count_nonzero(draws >= observed - 1e-9)) / (1 + draws.size))


def detectable_delta(images: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true accuracy delta that exact McNemar at `alpha` detects with probability `power`.

    Unconditional: each image flips with probability `discordant`, each flip gains with probability q, and the power is
    averaged over the number of flips; delta = (2q - 1) discordant for the smallest q that reaches it. NaN if even
    q = 1 does not.

    Args:
        discordant: probability that an image flips, either way.

    Example:
        >>> round(detectable_delta(images=3589, discordant=0.02), 4)
        0.0068
    """
    low, high = (int(bound) for bound in binom.interval(1 - 1e-9, images, discordant))
    flips = np.arange(low, high + 1)
    weights = binom.pmf(flips, images, discordant)
    # the exact test at D flips rejects X >= c for the smallest c with 2 P(X >= c) < alpha; with few flips it never does
    critical = binom.isf(alpha / 2, flips, 0.5) + 1
    critical = np.where(2 * binom.sf(critical - 1, flips, 0.5) < alpha, critical, critical + 1)

    def reached(share: float) -> bool:
        return float(weights @ binom.sf(critical - 1, flips, share)) >= power

    if not reached(1.0):
        return float("nan")
    below, above = 0.5, 1.0
    for _ in range(50):  # power increases with q: bisect to float64 precision
        middle = (below + above) / 2
        below, above = (below, middle) if reached(middle) else (middle, above)
    return float((2 * above - 1) * discordant)


@lru_cache(maxsize=4096)
def _lower_delta(gained: int, lost: int, images: int, tail: float) -> float:
    """The `tail` quantile of theta (2 q - 1), integrated over the quantiles of q."""
    flips = gained + lost
    # the mass of 2 q <= 1 is McNemar's one-sided p, computed exactly so that the bound's sign agrees with the test
    negative = float(betainc(gained, lost + 1, 0.5)) if gained else 1.0
    positive_bound = negative < tail
    start, mass = (negative, 1 - negative) if positive_bound else (0.0, negative)
    q = betaincinv(gained, lost + 1, start + mass * _NODES) if gained else np.zeros_like(_NODES)
    effect = np.abs(2 * q - 1)

    def beyond(bound: float) -> float:
        """P(theta (2 q - 1) <= bound) - tail."""
        with np.errstate(divide="ignore", invalid="ignore"):
            theta = np.clip(np.nan_to_num(abs(bound) / effect, nan=1.0), 0, 1)
        if positive_bound:
            return negative + mass * float(_WEIGHTS @ betainc(flips, images - flips + 1, theta)) - tail
        above = 1 - betainc(flips + 1, images - flips, theta) if flips < images else np.where(theta < 1, 1.0, 0.0)
        return mass * float(_WEIGHTS @ above) - tail

    if positive_bound:
        return float(brentq(beyond, 0.0, 1.0, xtol=1e-12))
    return float(brentq(beyond, -1.0, 0.0, xtol=1e-12)) if beyond(0.0) > 0 else 0.0


def _corrected(p_values: ArrayLike | Sequence[float], method: str) -> NDArray[np.float64]:
    corrected = np.array(p_values, dtype=np.float64)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method=method)[1]
    return corrected

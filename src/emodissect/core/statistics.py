"""Was it chance? Exact tests, intervals and corrections for paired accuracies. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


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


def delta_interval(
    gained: int, lost: int, images: int, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Paired bootstrap interval (percentile) of the accuracy delta (gained - lost) / images.

    An image counts +1, -1 or 0, so drawing images again is drawing the three counts from a multinomial: the same
    distribution as a resampling of rows, at a cost that does not grow with the number of images.

    Args:
        images: how many images were classified, 1 or more.
        level: coverage.
        draws: bootstrap samples.
        seed: of the draws.
    """
    if images < 1 or gained + lost > images:
        raise ValueError(f"{gained} gained and {lost} lost of {images} images")
    shares = np.array([gained, lost, images - gained - lost]) / images
    counts = np.random.default_rng(seed).multinomial(images, shares, size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / images, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion. Source: Wilson, JASA 1927."""
    low, high = proportion_confint(right, images, alpha=1 - level, method="wilson")
    return float(low), float(high)


def clopper_pearson(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion: covers at least `level`. Source: Clopper & Pearson, Biometrika 1934."""
    low, high = proportion_confint(right, images, alpha=1 - level, method="beta")
    return float(low), float(high)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for their number (family-wise error). NaN stays NaN and is not counted."""
    return _corrected(p_values, "holm")


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """q-values: p-values corrected for the false discovery rate. NaN stays NaN and is not counted."""
    return _corrected(p_values, "fdr_bh")


def exceedance_p(observed: float, null: ArrayLike) -> float:
    """p = (1 + #{null >= observed}) / (1 + #null): how often chance gives as much.

    Valid at every number of draws; never 0. Source: Phipson & Smyth, SAGMB 2010.
    """
    draws = np.asarray(null, dtype=np.float64)
    # Accuracies are counts over images: a tie that float division tears apart must stay a tie.
    return float((1 + np.count_nonzero(draws >= observed - 1e-9)) / (1 + draws.size))


def detectable_delta(images: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true accuracy delta that exact McNemar at `alpha` would call significant with chance `power`.

    D = round(discordant * images) images flip, of which Binomial(D, q) gain; delta = (2q - 1) D / images for the
    smallest q that is rejected with the wanted power. NaN where no outcome of D flips could be significant.

    Args:
        images: how many images are classified.
        discordant: the share of images that flip either way.
    """
    flips = round(discordant * images)
    # The exact test at D flips rejects X >= c for the smallest c with 2 P(X >= c) < alpha.
    counts = np.arange(flips // 2 + 1, flips + 1)
    rejected = counts[2 * binom.sf(counts - 1, flips, 0.5) < alpha] if flips else counts
    if not rejected.size:
        return float("nan")
    critical, low, high = int(rejected[0]), 0.5, 1.0
    for _ in range(50):  # Power grows with q: halve the interval until float64 has no more digits to give.
        middle = (low + high) / 2
        low, high = (low, middle) if binom.sf(critical - 1, flips, middle) >= power else (middle, high)
    return float((2 * high - 1) * flips / images)


def _corrected(p_values: ArrayLike | Sequence[float], method: str) -> NDArray[np.float64]:
    corrected = np.array(p_values, dtype=np.float64)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method=method)[1]
    return corrected

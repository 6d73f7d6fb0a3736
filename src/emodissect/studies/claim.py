"""When a study claims a gain: the one rule that studies and null studies share."""

from __future__ import annotations


def claims_gain(delta: float, p_value: float, p_random: float, p_shuffled: float, alpha: float) -> bool:
    """Whether an edit made the network better, and not only by chance or because any edit of its size would.

    All of: delta > 0; p_value < alpha; p_random < alpha; and p_shuffled < alpha where labels were read.

    Args:
        delta: change of the metric on test.
        p_value: exact McNemar p of the flips on test.
        p_random: against random living neurons of the same number; NaN (not drawn) prevents a claim.
        p_shuffled: against whole studies with shuffled labels; NaN (no labels read) does not.
        alpha: the level.

    Example:
        >>> claims_gain(0.02, 0.01, 0.01, float("nan"), alpha=0.05)
        True
        >>> claims_gain(0.02, 0.01, 0.01, 0.20, alpha=0.05)
        False
    """
    return delta > 0 and p_value < alpha and p_random < alpha and not p_shuffled >= alpha

"""The rule for claiming a gain, shared by studies and null studies."""

from __future__ import annotations


def claims_gain(delta: float, p_value: float, p_random: float, p_shuffled: float, alpha: float) -> bool:
    """Whether an edit improves the network by more than chance and more than any edit of the same size would.

    All of: delta > 0; p_value < alpha; p_random < alpha; and p_shuffled < alpha where the edit uses labels.

    Args:
        delta: change in the metric on test.
        p_value: exact McNemar p-value of the flips on test.
        p_random: against the same number of random living neurons; NaN (not drawn) prevents a claim.
        p_shuffled: against whole studies with shuffled labels; NaN (no labels used) does not.
        alpha: significance level.

    Example:
        >>> claims_gain(0.02, 0.01, 0.01, float("nan"), alpha=0.05)
        True
        >>> claims_gain(0.02, 0.01, 0.01, 0.20, alpha=0.05)
        False
    """
    return delta > 0 and p_value < alpha and p_random < alpha and not p_shuffled >= alpha

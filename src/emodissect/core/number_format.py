"""Formatting of numbers for display."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

MINUS, DASH = "−", "–"


def missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(fraction: Any, digits: int = 1) -> str:
    """``0.694`` -> ``69.4 %``."""
    return DASH if missing(fraction) else f"{100 * float(fraction):.{digits}f} %"


def points(delta: Any, digits: int = 2) -> str:
    """``-0.0021`` -> ``−0.21``; a difference of fractions in percentage points."""
    return DASH if missing(delta) else signed(100 * float(delta), digits)


def signed(value: float, digits: int = 2) -> str:
    """``+0.21``, ``−0.21``; no sign if it is rounded to 0."""
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", MINUS)


def number(value: Any, digits: int = 2) -> str:
    """A number with the given digits; integers with commas as thousands separators."""
    if missing(value):
        return DASH
    if isinstance(value, int) or (isinstance(value, float) and digits == 0):
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{float(value):.{digits}f}".replace("-", MINUS)


def figure(value: Any) -> str:
    """Any value; numbers with a sensible number of digits: ``0.1234``, ``1234.50``, ``12``."""
    if missing(value):
        return DASH
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return str(value)
    size = float(value)
    if size.is_integer() and (not isinstance(value, float | np.floating) or abs(size) >= 10):
        text = f"{int(size):,}"
    else:
        text = f"{size:.4f}" if abs(size) < 10 else f"{size:.2f}"
    return text.replace("-", MINUS)


def p_value(value: Any) -> str:
    """``.41``, ``.003``, ``< .001``."""
    if missing(value):
        return DASH
    value = float(value)
    if value < 0.001:
        return "< .001"
    text = f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    return text.lstrip("0") if value < 0.995 else "1.00"


def level(alpha: float) -> str:
    """``0.05`` -> ``.05``; a significance level."""
    return f"{alpha:g}".removeprefix("0")


def p_sentence(value: Any) -> str:
    """``p = .41`` or ``p < .001``."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def plain(value: Any) -> str:
    """A setting as it was typed: ``−0.5``, ``2``."""
    return DASH if missing(value) else f"{float(value):g}".replace("-", MINUS)


def sentence(text: str) -> str:
    """The text as a sentence: capitalized, with a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def unbroken(text: str) -> str:
    """The text with no-break spaces in equations and before %, and true minus signs before numbers."""
    text = re.sub(r"(?<![\w.-])-(?=\d)", MINUS, text)
    return re.sub(r"(?<=\S) (?=[=<>] )|(?<=[=<>]) (?=\S)|(?<=\d) (?=%)", "\u00a0", text)


def place(values: np.ndarray) -> tuple[int, int]:
    """Row and column of the largest value of a matrix."""
    row, column = divmod(int(np.nanargmax(values)), values.shape[1])
    return row, column


def expected(tries: int, level: float = 0.05) -> str:
    """The number of tests expected to fall below the level by chance: ``fewer than one``, ``about 4``."""
    return "fewer than one" if level * tries < 0.75 else f"about {round(level * tries)}"


def count(amount: int, one: str, many: str | None = None) -> str:
    """``1 neuron``, ``4,096 neurons``."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"

"""User errors, with messages that say what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real

from emodissect.core.spelling import printable


class UserError(Exception):
    """A mistake in the user's input: printed without a traceback, exit code 1.

    The message says what was given, what is accepted, the nearest match and what to do. It may quote a file, so
    terminal sequences and control characters are removed.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def require_number(key: str, given: object) -> None:
    """Raise UserError if ``given`` is not a number: e.g. NaN, a string, or a list instead of one value."""
    if isinstance(given, bool) or not isinstance(given, Real) or math.isnan(given):
        several = " One value is needed here; in a config, a list makes a grid." if isinstance(given, Sequence) else ""
        raise UserError(f"{key}={given} is not a number.{several if not isinstance(given, str) else ''}")


def reason(error: BaseException, most: int = 300) -> str:
    """An error's message on one line of at most ``most`` characters, without full stop; its type if it is empty."""
    return " ".join(str(error).split())[:most].rstrip(".") or type(error).__name__


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first names, joined, and the number of the others.

    >>> listed("abcde", most=3)
    'a, b, c, … (2 more)'
    """
    words = list(map(str, names))
    more = f", … ({len(words) - most:,} more)" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def nearest(word: str, known: Iterable[str], shown: int = 12) -> str:
    """A hint for an unknown word: the closest accepted one, and the list of accepted ones."""
    accepted = [str(name) for name in known]
    if not accepted:
        return "No options are available."
    lowered = {name.lower(): name for name in accepted}
    close = get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    meant = f"Did you mean '{lowered[close[0]]}'? " if close else ""
    return f"{meant}Known: {listed(accepted, shown)}."


def missing_extra(needed_by: str, package: str, extra: str) -> str:
    """The message for a feature whose package is not installed.

    >>> missing_extra("This", "ray", "ray")
    "This needs the package ray. Install the extra: uv sync --extra ray, or pip install 'emodissect[ray]'."
    """
    return (
        f"{needed_by} needs the package {package}. Install the extra: uv sync --extra {extra}, or "
        f"pip install 'emodissect[{extra}]'."
    )

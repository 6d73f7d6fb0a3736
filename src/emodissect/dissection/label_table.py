"""Validates tables of neuron labels that are read from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emodissect.core.errors import UserError, nearest
from emodissect.core.spelling import clean_name

log = logging.getLogger(__name__)

NEEDED = ("layer", "neuron", "concept", "similarity", "top_ids")
SHARES = ("p_value", "q_value", "accuracy", "accuracy_chance", "accuracy_low", "accuracy_high")
NUMBERS = ("similarity", "margin", "z", *SHARES)
NAME_LISTS = ("runners_up",)
NUMBER_LISTS = ("top_values", "runners_up_similarity")
LISTS = ("top_ids", *NUMBER_LISTS, *NAME_LISTS)
_PAIRS = (("top_ids", "top_values"), ("runners_up", "runners_up_similarity"))

Rows = Sequence[int] | np.ndarray


def checked_labels(neurons: pd.DataFrame, where: str | Path) -> pd.DataFrame:
    """The validated table with plain column types; columns that older versions did not write are filled as unknown.

    Each layer's neurons must be numbered from 0 without gaps or duplicates; numbers must be finite (unknown: NaN),
    shares within [0, 1], paired lists of equal length; a living neuron has a concept and a similarity.

    Args:
        neurons: one row per neuron. Untrusted.

    Raises:
        UserError: the first violation, with its row, column and value.

    Example:
        >>> table = pd.DataFrame({"layer": "fc", "neuron": [0, 0], "concept": ["a", "b"], "similarity": [1.0, 2.0],
        ...     "top_ids": [[3], [4]]})
        >>> checked_labels(table, "neurons.parquet")
        Traceback (most recent call last):
        emodissect.core.errors.UserError: The labels in neurons.parquet are damaged: neuron 0 of layer 'fc' occurs \
twice. Copy them again, or dissect again (labels_dir=null).
    """
    fault = _Fault(where)
    if missing := [name for name in NEEDED if name not in neurons]:
        raise UserError(
            f"The labels in {where} lack the columns {', '.join(missing)}; they have "
            f"{', '.join(map(str, neurons.columns[:20])) or 'none'}. Only neurons.parquet of a dissect.py or "
            "edit.py run can be loaded (not its CSV files). Dissect again with labels_dir=null."
        )
    if neurons.empty:
        raise fault("they contain no neurons")
    table = neurons.reset_index(drop=True).copy()
    _texts(table, fault)
    _neuron_numbers(table, fault)
    absent = [name for name in (*NUMBERS, "dead", *LISTS) if name not in table]
    for name in NUMBERS:
        table[name] = _numbers(table, name, fault) if name in table else np.nan
    _dead(table, fault)
    if len({*_PAIRS[1]} & {*table}) == 1:  # names and similarities are useless without each other
        table = table.drop(columns=list(_PAIRS[1]), errors="ignore")
    for name in LISTS:
        _lists(table, name, fault)
    for pair in _PAIRS:
        first, second = (table[name].map(len).to_numpy() for name in pair)
        fault.at(table, first != second, lambda row, pair=pair: f"{' and '.join(pair)} differ in length")  # type: ignore[misc]
    if absent:
        log.warning(
            "The labels in %s lack %s, which older versions did not write: shown as unknown. To compute them, dissect "
            "again with labels_dir=null.",
            *(where, ", ".join(absent)),
        )
    return table[[*(name for name in _ORDER if name in table), *(n for n in table if n not in _ORDER)]]


def require_concepts(neurons: pd.DataFrame, names: Collection[str], origin: str, where: str | Path) -> None:
    """Raises UserError for a label or a runner-up that is not in the concept set."""
    used = {*neurons["concept"], *(name for row in neurons["runners_up"] for name in row)} - {""}
    unknown = sorted(used - set(names))
    if unknown:
        raise UserError(
            f"labels_dir={where} has {len(unknown):,} concepts that {origin} does not contain, e.g. '{unknown[0]}'. "
            f"{nearest(unknown[0], names)} Set concepts=... to the concepts that the labels were computed with, or "
            "labels_dir=null to dissect now."
        )


def checked_null(null: Mapping[str, np.ndarray], layers: Collection[str], where: str | Path) -> None:
    """Raises UserError if a null has draws for layers without labels, or draws that are not finite numbers."""
    fault = _Fault(where)
    if other := [name for name in null if name not in layers]:
        raise fault(f"it has draws for layer '{other[0]}', which has no labels, so it belongs to another run")
    for name, draws in null.items():
        if draws.ndim != 1 or draws.dtype.kind != "f" or not np.isfinite(draws).all():
            raise fault(f"the draws for layer '{name}' are not a list of finite numbers")


_ORDER = (
    *("layer", "neuron", "concept", "similarity", "margin", "z", "p_value", "q_value"),
    *("accuracy", "accuracy_chance", "accuracy_low", "accuracy_high", "dead", "interpretable", "significant"),
    *("top_ids", "top_values", "runners_up", "runners_up_similarity"),
)


class _Fault:
    def __init__(self, where: str | Path) -> None:
        self.where = where

    def __call__(self, what: str) -> UserError:
        return UserError(
            f"The labels in {self.where} are damaged: {what}. Copy them again, or dissect again (labels_dir=null)."
        )

    def at(self, table: pd.DataFrame, wrong: Any, what: Callable[[int], str]) -> None:
        """Raises for the first row where `wrong` is true."""
        wrong = np.asarray(wrong, dtype=bool)
        if wrong.any():
            row = int(wrong.argmax())
            raise self(f"{what(row)} (row {row + 1:,}, neuron {table['neuron'].iloc[row]})")


def _texts(table: pd.DataFrame, fault: _Fault) -> None:
    for name in ("layer", "concept"):
        values = table[name].astype(object).where(table[name].notna(), "")
        if other := [value for value in values if not isinstance(value, str)]:
            raise fault(f"the column {name} contains {other[0]!r:.60}, not a name")
        cleaned = [clean_name(value) for value in values] if name == "concept" else list(values)
        if cleaned != list(table[name]):
            table[name] = cleaned
    if (table["layer"] == "").any():
        raise fault("a row has no layer name")


def _neuron_numbers(table: pd.DataFrame, fault: _Fault) -> None:
    numbers = pd.to_numeric(table["neuron"], errors="coerce").to_numpy(dtype=np.float64)
    fault.at(
        table, ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < 2**31)),
        lambda row: f"{table['neuron'].iloc[row]!r:.40} is not a neuron number",
    )  # fmt: skip
    table["neuron"] = numbers.astype(np.int64)
    for layer, rows in table.groupby("layer", sort=False)["neuron"]:
        counts = rows.value_counts()
        if (counts > 1).any():
            raise fault(f"neuron {counts[counts > 1].index.min()} of layer '{layer}' occurs twice")
        if rows.max() >= len(rows):
            gap = next(number for number in range(len(rows) + 1) if number not in counts.index)
            raise fault(f"neuron {gap} of layer '{layer}' is missing, but numbers go up to {rows.max()}")


def _numbers(table: pd.DataFrame, name: str, fault: _Fault) -> np.ndarray:
    values = table[name].astype(object).where(table[name].notna(), np.nan)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    known = values.notna().to_numpy()
    wrong = (np.isnan(numbers) & known) | np.isinf(numbers)
    fault.at(table, wrong, lambda row: f"{name} is {values.iloc[row]!r:.40}, not a finite number")
    if name in SHARES:
        outside = known & ((numbers < -1e-9) | (numbers > 1 + 1e-9))
        fault.at(table, outside, lambda row: f"{name} is {numbers[row]:g}, not between 0 and 1")
    return numbers


def _dead(table: pd.DataFrame, fault: _Fault) -> None:
    unknown = table["similarity"].isna()
    if "dead" not in table:
        table["dead"] = unknown
    elif not table["dead"].isin([True, False]).all():
        raise fault("the column dead contains values other than true and false")
    table["dead"] = table["dead"].astype(bool)
    named = table["concept"] != ""
    fault.at(table, ~table["dead"] & (unknown | ~named), lambda row: "a living neuron has no concept or no similarity")
    fault.at(table, table["dead"] & (~unknown | named), lambda row: "a dead neuron has a concept or a similarity")


def _lists(table: pd.DataFrame, name: str, fault: _Fault) -> None:
    if name not in table:
        table[name] = [[np.nan] * len(row) if name == "top_values" else [] for row in table["top_ids"]]
        return
    held = table[name]
    is_list = [isinstance(row, list | tuple | np.ndarray) and np.ndim(row) == 1 for row in held]
    fault.at(table, ~np.array(is_list), lambda row: f"{name} is {held.iloc[row]!r:.40}, not a list")
    lists = [list(row) for row in held]
    flat = [value for row in lists for value in row]
    row_of = np.repeat(np.arange(len(lists)), [len(row) for row in lists])
    if name in NAME_LISTS:
        good = np.array([isinstance(value, str) for value in flat], dtype=bool)
    else:
        numbers = pd.to_numeric(pd.Series(flat, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
        unknown = pd.isna(pd.Series(flat, dtype=object)).to_numpy(dtype=bool)
        whole = (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)
        good = np.isfinite(numbers) & whole if name == "top_ids" else np.isfinite(numbers) | unknown
    wrong = np.zeros(len(lists), dtype=bool)
    wrong[row_of[~good]] = True
    fault.at(table, wrong, lambda row: f"{name} contains values other than {_what(name)}")
    if name == "top_ids":
        twice = np.array([len(set(row)) < len(row) for row in lists])
        fault.at(table, twice, lambda row: "top_ids contains an image twice")
    convert: Callable[[Any], Any] = int if name == "top_ids" else clean_name if name in NAME_LISTS else _number
    table[name] = [[convert(value) for value in row] for row in lists]


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _what(name: str) -> str:
    return "names" if name in NAME_LISTS else "image ids" if name == "top_ids" else "finite numbers"

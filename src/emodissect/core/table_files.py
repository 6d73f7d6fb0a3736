"""Tables in files: CSV that is safe to open in a spreadsheet, and Parquet with safe reading of untrusted files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emodissect.core.atomic_files import atomic_write
from emodissect.core.errors import reason

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)"
_NUMBERS = re.compile(f"{_NUMBER}(;{_NUMBER})*")

MOST_VALUES = 2**28
"""Maximum number of values in a table, 2 GiB as numbers; repetitions are compressed, so a small file may have more."""

_PATIENCE = 120.0  # seconds; ten times the time for the largest accepted table
_TRIAL = f"""
import sys
from pyarrow.parquet import ParquetFile
try:
    with ParquetFile(sys.argv[1], page_checksum_verification=True) as file:
        about = file.metadata
        parts = [about.row_group(group) for group in range(about.num_row_groups)]
        stored = sum(part.column(place).num_values for part in parts for place in range(part.num_columns))
        values = max(stored, about.num_rows * about.num_columns)
        if values > {MOST_VALUES}:
            sys.exit(f"it unpacks to {{values:,}} values; at most {MOST_VALUES:,} are read")
        file.read()
except Exception as error:
    sys.exit(" ".join(str(error).split())[:300] or type(error).__name__)
"""


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically, so that spreadsheets do not interpret any text as a formula.

    Strings that start with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return are prefixed with ``'``, in cells and
    column names, unless they are numbers or lists of numbers (OWASP, *CSV Injection*). So these files are meant for
    people; data to be read back is stored in another format. Lists are joined with semicolons.
    """
    shown = joined_lists(frame).rename(columns=_inert)
    texts = [place for place, kind in enumerate(shown.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    for place in texts:
        shown.isetitem(place, [_inert(value) for value in shown.iloc[:, place]])
    with atomic_write(path) as unfinished:
        shown.to_csv(unfinished, index=False)


def joined_lists(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with list cells joined with semicolons."""
    texts = {
        name: [";".join(map(str, cell)) if _is_list(cell) else cell for cell in column]
        for name, column in frame.items()
        if column.map(_is_list).any()
    }
    return frame.assign(**{str(name): text for name, text in texts.items()}) if texts else frame


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray)


def _inert(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, without its index, with page checksums."""
    frame.to_parquet(path, index=False, write_page_checksum=True)


def write_both(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table as Parquet, and next to it as CSV; returns the path of the CSV file."""
    with atomic_write(path) as unfinished:
        write_parquet(frame, unfinished)
    write_csv(frame, path.with_suffix(".csv"))
    return path.with_suffix(".csv")


def read_parquet(path: Path, sealed: bool = False) -> pd.DataFrame:
    """The table in a Parquet file; page checksums are verified.

    Arrow's reader crashes or hangs on some damaged headers. So an untrusted file is first read in another process
    (0.3 s).

    Args:
        sealed: the file's hash has already been verified, as for a cache entry.

    Raises:
        ValueError: damaged, not Parquet, or more values than :data:`MOST_VALUES`.
        OSError: it cannot be read.
    """
    with open(path, "rb"):
        pass
    if not sealed:
        _try(path)
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # a damaged file: pyarrow's errors, KeyError, TypeError, UnicodeDecodeError ...
        raise ValueError(reason(error)) from error


def _try(path: Path) -> None:
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    try:
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError("it is damaged: reading it does not finish") from error
    if tried.returncode < 0:
        raise ValueError("it is damaged: reading it crashes the process")
    if tried.returncode:
        raise ValueError((tried.stderr.decode(errors="replace").strip().splitlines() or ["it cannot be read"])[-1])

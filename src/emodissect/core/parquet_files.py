"""Parquet files of others: compared with their checksums, no larger than they say, and tried by another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from emodissect.core.errors import reason

MOST_VALUES = 2**28
"""Values that a table may hold, 2 GiB as numbers. Repeated ones are stored once, so a small file may say any."""

_PATIENCE = 120.0  # seconds; the largest table that is read takes a tenth of it
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


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table without its index; each page carries a checksum."""
    frame.to_parquet(path, index=False, write_page_checksum=True)


def read_parquet(path: Path, sealed: bool = False) -> pd.DataFrame:
    """The table of a Parquet file; pages with a checksum are compared with it.

    Arrow's reader aborts its process, or never ends, at some damaged headers. So a file of unknown content is first
    read by another process (0.3 s).

    Args:
        path: the file.
        sealed: its hash has been compared, as that of a cache entry.

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
    except Exception as error:  # of a damaged file: pyarrow's own, KeyError, TypeError, UnicodeDecodeError ...
        raise ValueError(reason(error)) from error


def _try(path: Path) -> None:
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    try:
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError("it is damaged: reading it does not end") from error
    if tried.returncode < 0:
        raise ValueError("it is damaged: reading it ends the process")
    if tried.returncode:
        raise ValueError((tried.stderr.decode(errors="replace").strip().splitlines() or ["it cannot be read"])[-1])

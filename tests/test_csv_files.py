"""In CSV files for spreadsheets, no name is read as a formula."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from emodissect.core.table_files import write_csv


def test_no_text_is_a_formula_and_numbers_stay(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@x", "\tx", "Smile", "-0.5", "-0.5;1e-05;nan", "-inf", "+", "a=b"]
    frame = pd.DataFrame({"concept": names, "=value": range(len(names)), "share": [-0.5] * len(names)})
    before = frame.copy()
    write_csv(frame, tmp_path / "a.csv")
    read = pd.read_csv(tmp_path / "a.csv", dtype={"concept": str}, keep_default_na=False)
    marked = ["'=HYPERLINK(1)", "'+1+cmd", "'-2+3", "'@x", "'\tx"]
    assert read["concept"].tolist() == [*marked, "Smile", "-0.5", "-0.5;1e-05;nan", "-inf", "'+", "a=b"]
    assert list(read.columns) == ["concept", "'=value", "share"]
    assert read["share"].tolist() == frame["share"].tolist()
    pd.testing.assert_frame_equal(frame, before)

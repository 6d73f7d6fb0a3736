"""The table and the figure of docs/does_it_help.md, from the run folders that its commands leave.

    python benchmarks/does_it_help.py logs/clean logs/biased docs/does_it_help.png

Each folder holds one run folder a seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from emodissect.core.number_format import p_value, points
from emodissect.report.figures import style
from emodissect.studies.seeds_verdict import over_trainings, verdicts_over_trainings


def trainings(folder: Path) -> pd.DataFrame:
    """The edit and every alternative over the seeds of a folder."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]
    jobs = pd.DataFrame(summaries).assign(seed=range(len(summaries)))
    return over_trainings(jobs, ["seed"])


def main(folders: list[Path], figure: Path) -> None:
    tables = {folder.name: trainings(folder) for folder in folders}
    for name, table in tables.items():
        print(f"\n{name}: {verdicts_over_trainings(table)[0]}\n")
        print("| what | points | 95 % | gain | p, t-test | p, sign test |\n|---|---|---|---|---|---|")
        for row in table.to_dict("records"):
            reach = f"{points(row['low'])} to {points(row['high'])}"
            print(
                f"| {row['what']} | {points(row['mean'])} | {reach} | {row['gain']} of {row['seeds']} | "
                f"{p_value(row['p_value'])} | {p_value(row['p_sign'])} |"
            )
    with style.drawn():
        drawing = style.new(style.WIDE, 3.4)
        for place, (name, table) in enumerate(tables.items()):
            axes = drawing.add_subplot(1, len(tables), place + 1)
            rows = np.arange(len(table))[::-1]
            mean, low, high = (100 * table[column].to_numpy(dtype=float) for column in ("mean", "low", "high"))
            for some, colour in (
                (table["what"] == "the edit", style.ORANGE),
                (table["what"] != "the edit", style.BLUE),
            ):
                at = some.to_numpy()
                reach = np.stack([mean - low, high - mean])[:, at]
                axes.errorbar(mean[at], rows[at], xerr=reach, fmt="o", color=colour, markersize=4)
            axes.axvline(0, color=style.LINE, linewidth=1)
            axes.set_yticks(rows, table["what"] if place == 0 else [""] * len(rows))
            axes.set_title(name)
            axes.set_xlabel("points on test")
    style.save_png(drawing, figure, dpi=110)


if __name__ == "__main__":
    *given, target = map(Path, sys.argv[1:])
    main(given, target)

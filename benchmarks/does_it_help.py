"""The tables and the figure of docs/does_it_help.md, computed from the run folders of its commands.

    python benchmarks/does_it_help.py logs/help docs/images/does_it_help.png

The first argument is a folder with one subfolder per command, named as in SETTINGS; missing ones are skipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from emodissect.core.number_format import p_value, points
from emodissect.report.figures import style
from emodissect.studies.label_effects import label_effects
from emodissect.studies.seeds import EDIT, LADDER_PREFIX, over_trainings

SETTINGS = {  # by setting, the edit of each folder; the baselines are taken from the first folder
    "drawn faces": {
        "clean": "scaled by label (published)",
        "clean_effect": "scaled by effect",
        "clean_error": "ablated where errors are",
    },
    "drawn faces, biased": {
        "biased": "Glasses ablated",
        "biased_published": "scaled by label (published)",
        "biased_effect": "scaled by effect",
    },
    "FER2013": {
        "fer": "scaled by weight norm",
        "fer_effect": "scaled by effect",
        "fer_learned": "learned scale and shift",
        "fer_error": "ablated where errors are",
    },
}
ALTERNATIVES = {
    "temperature/val": "temperature and biases",
    "temperature/train": "… fitted on training images",
    "learned_scale/val": "learned scale and shift",
    "learned_scale/train": "… fitted on training images",
    "head/val": "head refitted",
    "head/train": "… fitted on training images",
    "edit_and_head/val": "the edit, then the head refitted",
    "mirror": "mirror view averaged",
    "ceiling/test": "ceiling: fitted on test",
}
DRAWN = [  # rows of the figure, from the top: row of the table, and its name
    *(
        (f"{EDIT}: {words}", words)
        for words in ("scaled by label (published)", "scaled by weight norm", "scaled by effect")
    ),
    (f"{EDIT}: Glasses ablated", "Glasses ablated"),
    *((name, ALTERNATIVES[name]) for name in ("temperature/val", "learned_scale/val", "learned_scale/train")),
    *((name, ALTERNATIVES[name]) for name in ("head/val", "head/train", "mirror", "ceiling/test")),
]


def jobs(folder: Path) -> pd.DataFrame:
    """One row per training."""
    found = sorted(folder.glob("*/summary.json"), key=lambda path: int(path.parent.name))
    summaries = pd.DataFrame([json.loads(path.read_text()) for path in found])
    return summaries.assign(seed=[int(path.parent.name) + 1 for path in found], error=np.nan)


def trainings(root: Path, edits: dict[str, str]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The edits and every baseline, averaged over the trainings of a setting, and the change in each training."""
    rows, each = [], {}
    for place, (folder, words) in enumerate(edits.items()):
        table = jobs(root / folder) if any((root / folder).glob("*/summary.json")) else pd.DataFrame()
        if table.empty:
            continue
        kept = table if place == 0 else table.drop(columns=[c for c in table if c.startswith(LADDER_PREFIX)])
        found = over_trainings(kept, ["seed"])
        found["what"] = found["what"].replace(EDIT, f"{EDIT}: {words}")
        rows.append(found.assign(before=table["accuracy_before"].mean()))
        each[f"{EDIT}: {words}"] = table["delta"].to_numpy(dtype=float)
        for column in (c for c in kept if c.startswith(LADDER_PREFIX)):
            each[column.removeprefix(LADDER_PREFIX)] = pd.to_numeric(table[column]).to_numpy(dtype=float)
        alone = f"{LADDER_PREFIX}edit_and_head/val"
        if place and alone in table:
            each[f"{EDIT} {words}, then the head"] = pd.to_numeric(table[alone]).to_numpy(dtype=float)
            behind = over_trainings(table[["seed", "delta", "error"]].assign(delta=table[alone]), ["seed"])
            rows.append(behind.assign(what=f"{EDIT} {words}, then the head", before=np.nan))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(), each


def show(name: str, table: pd.DataFrame, each: dict[str, np.ndarray]) -> None:
    before = 100 * table["before"].iloc[0]
    print(f"\n{name}, {table['seeds'].iloc[0]} trainings, {before:.1f} % before\n")
    print("| what | points | 95 % | gain | t-test | each training |\n|---|---|---|---|---|---|")
    for row in table.to_dict("records"):
        reach = f"{points(row['low'])} to {points(row['high'])}"
        single = ", ".join(points(value) for value in each[row["what"]])
        print(
            f"| {ALTERNATIVES.get(row['what'], row['what'])} | {points(row['mean'])} | {reach} | "
            f"{row['gain']} of {row['seeds']} | {p_value(row['p_value'])} | {single} |"
        )


def show_claims(root: Path) -> None:
    print("\n| folder | training | points | p | against random neurons | claimed |\n|---|---|---|---|---|---|")
    for folder in (name for edits in SETTINGS.values() for name in edits):
        for row in jobs(root / folder).to_dict("records") if (root / folder).is_dir() else []:
            chance = "" if pd.isna(row.get("p_random")) else p_value(row["p_random"])
            print(
                f"| {folder} | {row['seed']} | {points(row['delta'])} | {p_value(row['p_value'])} | {chance} | "
                f"{'yes' if row['claims_gain'] else 'no'} |"
            )


def show_label_effects(root: Path, folder: str) -> None:
    """Prints Spearman's correlation: the mean over trainings with its Student interval, and each training's value."""
    found = []
    for path in sorted((root / folder).glob("*/study/neuron_effects.csv")):
        if path.stat().st_size > 2:
            found.append(label_effects(pd.read_csv(path)).assign(seed=int(path.parents[1].name) + 1))
    if len(found) < 2:
        return
    print(
        f"\nlabels and effects, {folder}\n\n| measure | effect | mean | 95 % | each training |\n|---|---|---|---|---|"
    )
    for (measure, effect), rows in pd.concat(found).groupby(["measure", "effect"], sort=False):
        (mean,) = over_trainings(pd.DataFrame({"seed": rows["seed"], "delta": rows["correlation"]}), ["seed"]).to_dict(
            "records"
        )
        single = ", ".join(
            f"{row['correlation']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in rows.to_dict("records")
        )
        print(f"| {measure} | {effect} | {mean['mean']:.2f} | {mean['low']:.2f} to {mean['high']:.2f} | {single} |")


def show_groups(root: Path, folder: str = "biased", named: int = 3) -> None:
    """Prints accuracy before and after, by presence of the spurious feature and by class (biased or not)."""
    print(
        "\n| training | others with the mark | the class without it | all others | worst group |\n|---|---|---|---|---|"
    )
    for path in sorted((root / folder).glob("*/study/groups.csv")):
        table = pd.read_csv(path)
        bears, tied = table["present"].astype(bool), table["class"] == named
        parts = [bears & ~tied, ~bears & tied, bears == tied]
        cells = [
            " → ".join(
                f"{100 * np.average(table[part][when], weights=table[part]['images']):.1f}"
                for when in ("accuracy_before", "accuracy_after")
            )
            for part in parts
        ]
        worst = " → ".join(f"{100 * table[when].min():.1f}" for when in ("accuracy_before", "accuracy_after"))
        print(f"| {int(path.parents[1].name) + 1} | {' | '.join(cells)} | {worst} |")


def draw(
    axes: Axes,
    name: str,
    table: pd.DataFrame,
    each: dict[str, np.ndarray],
    rows: list[tuple[str, str]],
    with_names: bool,
) -> None:
    known = table.drop_duplicates("what").set_index("what")
    for place, (what, _) in enumerate(reversed(rows)):
        if what not in known.index:
            continue
        row = known.loc[what]
        mean, low, high = (100 * float(row[column]) for column in ("mean", "low", "high"))
        colour = style.ORANGE if what.startswith(EDIT) else style.GREY if what.startswith("ceiling") else style.BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6, zorder=2)
        hollow = style.PAPER if what.startswith("ceiling") else colour
        axes.plot(mean, place, "o", color=colour, markerfacecolor=hollow, markersize=6, zorder=3)
        axes.plot(100 * each[what], np.full(len(each[what]), place - 0.28), "|", color=colour, markersize=5, alpha=0.7)
    axes.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
    if with_names:
        axes.set_yticks(range(len(rows)), [words for _, words in reversed(rows)])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="x")
    before = 100 * table["before"].iloc[0]
    axes.set_title(f"{name}\n{before:.1f} % before, {table['seeds'].iloc[0]} trainings")
    axes.set_xlabel("points on test")


def main(root: Path, figure: Path) -> None:
    found = {name: trainings(root, edits) for name, edits in SETTINGS.items()}
    found = {name: (table, each) for name, (table, each) in found.items() if len(table)}
    for name, (table, each) in found.items():
        show(name, table, each)
    show_claims(root)
    for folder in ("clean", "biased"):
        show_label_effects(root, folder)
    show_groups(root)
    rows = [(what, words) for what, words in DRAWN if any(what in each for _, each in found.values())]
    with style.drawn():
        drawing = style.new(9.6, 4.2)
        axes = drawing.subplots(1, len(found), sharey=True)
        for place, (name, (table, each)) in enumerate(found.items()):
            draw(axes[place], name, table, each, rows, with_names=place == 0)
        style.save_png(drawing, figure, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Caption texts, each computed from the table or figure that it describes, so that tests can check it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emodissect.core import number_format as words
from emodissect.core.statistics import wilson
from emodissect.dissection.responses import Responses
from emodissect.studies.cells import settings_in

SPLITS = {"val": "validation", "test": "test", "train": "training"}
MOST_NAMED = 3
"""Ties listed by name; with more, the first is named and the others are counted."""

EXAMPLES = {"tau": "tau=[0,0.5,1]", "level": "level=[0.01,0.05,0.1]", "factor": "factor=[1.25,1.5,2]"}
"""An example grid for each setting."""

CONTROLS = {
    "random": "as many living neurons, drawn at random regardless of their labels",
    "shuffled": "the whole study repeated with shuffled labels; the chosen edit may differ in size",
    "all": "every neuron of the layer, so different in size",
    "scale_all": "every neuron of the layer, so different in size",
    "inverse": "the neurons that were not selected: uses the labels, and differs in size",
}
"""How each control relates to the edit."""


def split_name(split: str) -> str:
    """``val+test`` -> ``validation and test``."""
    return listed(SPLITS.get(part, part) for part in split.split("+"))


def listed(names: Iterable[str]) -> str:
    """Join names: ``a, b and c``."""
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def equals(frame: pd.DataFrame, column: str, largest: bool = True) -> pd.DataFrame:
    """The rows with the largest (or smallest) value of a column, including ties."""
    values = frame[column].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        return frame[:0]
    best = np.nanmax(values) if largest else np.nanmin(values)
    return frame[np.isclose(values, best, rtol=0, atol=1e-12)]


def named(rows: pd.DataFrame, name: Callable[[pd.Series], str]) -> str:
    """Join the names of tied rows; of more than ``MOST_NAMED``, name the first and count the others."""
    names = [name(row) for _, row in rows[:MOST_NAMED].iterrows()]
    if len(rows) <= MOST_NAMED:
        return listed(names)
    return f"{names[0]} and {len(rows) - 1} others"


def setting(cell: pd.Series) -> str:
    """A cell's numeric settings, e.g. ``τ = −0.5, factor 1.5``."""
    parts = [
        f"{'τ = ' if name == 'tau' else f'{name} '}{words.plain(cell[name])}"
        for name in settings_in(cell.to_frame().T)
        if name in cell and not pd.isna(cell[name]) and not isinstance(cell[name], str | bool | np.bool_)
    ]
    return ", ".join(parts) or "its only setting"


def changes_nothing(grid: pd.DataFrame) -> pd.Series:
    """Mask of the cells whose edit changes no neuron (column ``identity``; without it: flips no prediction)."""
    if "identity" in grid:
        return grid["identity"].astype(bool)
    return (grid["gained"] == 0) & (grid["lost"] == 0)


def distinct_edits(grid: pd.DataFrame) -> int:
    """Number of distinct edits in a grid that change something; without ``edit_id``, each cell counts as one."""
    acting = grid[~changes_nothing(grid)]
    return len(acting.groupby(["layer", "edit_id"])) if "edit_id" in grid else len(acting)


def shared_words(grid: pd.DataFrame, names: Iterable[str]) -> dict[str, str]:
    """Text columns that have one value in all cells of a grid, which a table need not repeat.

    Example:
        >>> shared_words(pd.DataFrame({"rule": ["scale", "scale"], "tau": [0, 1]}), ["rule", "tau"])
        {'rule': 'scale'}
    """
    found = {}
    for name in names:
        values: Any = grid[name].unique() if name in grid else []
        if len(values) == 1 and isinstance(values[0], str):
            found[name] = values[0]
    return found


def shared_words_text(shared: Mapping[str, str], cells: int) -> str:
    """Sentence such as ``All 12 cells: selection tau, rule scale.``; empty where nothing is shared."""
    if not shared:
        return ""
    where = "This cell" if cells == 1 else f"All {cells} cells"
    return f"{where}: {', '.join(f'{name} {value}' for name, value in shared.items())}."


def grid_text(grid: pd.DataFrame, where: str, alpha: float) -> str:
    """Summary of a grid of several cells: how many edits, how many beyond chance, and whether any gains.

    Args:
        grid: one row per cell.
        where: the images, e.g. ``the validation images``.
        alpha: level at which a p-value counts.
    """
    cells, edits = len(grid), distinct_edits(grid)
    outside = int((grid["p_value"] < alpha).sum())
    kept = int((grid["p_holm"] < alpha).sum()) if "p_holm" in grid else 0
    neutral = int(changes_nothing(grid).sum())
    if neutral == cells:
        return f"None of the {cells} cells changes a neuron, so nothing was tested on {where}."
    text = f"{words.count(edits, 'edit')} {'was' if edits == 1 else 'were'} tested on {where}"
    notes = [f"{cells - neutral - edits} {'repeats' if cells - neutral - edits == 1 else 'repeat'} another"] * (
        cells - neutral > edits
    ) + [f"{neutral} {'changes' if neutral == 1 else 'change'} nothing"] * (neutral > 0)
    text += f" (of {cells} cells, {listed(notes)}). " if notes else ". "
    text += (
        f"{outside} {'lies' if outside == 1 else 'lie'} outside the band that chance flips give "
        f"(p < {words.level(alpha)}; {words.expected(edits, alpha)} would if no edit did anything), {kept} after "
        f"Holm's correction for {cells} tries."
    )
    best = float(grid["delta"].max())
    acting = grid[~changes_nothing(grid)]
    if best <= 0 and (acting["delta"] < 0).all():
        text += " Every edit loses accuracy: leaving the network alone is better than any of them."
    elif best <= 0:
        text += " No edit gains accuracy over leaving the network alone."
    return text


def one_cell_text(cell: pd.Series, where: str, band: float | None) -> str:
    """Summary of a grid that has a single cell.

    Args:
        cell: the grid's row.
        where: the images, e.g. ``the validation images``.
        band: half-width of the band that chance flips give, a fraction.
    """
    neurons = f"{words.count(int(cell['selected']), 'neuron')} of {cell['layer']} at {setting(cell)}"
    example = next((EXAMPLES[name] for name in settings_in(cell.to_frame().T) if name in EXAMPLES), "")
    more = f"A list of values, such as '{example}', makes a grid." if example else ""
    if bool(changes_nothing(cell.to_frame().T).iloc[0]):
        return f"One edit was tested on {where}: {neurons}; it changes no prediction. {more}".rstrip()
    band_text = f"; chance flips alone give about ±{100 * band:.2f}" if band else ""
    return (
        f"One edit was tested on {where}: {neurons} change accuracy by {words.points(cell['delta'])} points "
        f"({words.p_sentence(cell['p_value'])}{band_text}). {more}"
    ).rstrip()


def cells_text(cells: pd.DataFrame, band: float | None) -> str:
    """Caption of a heat map: its best cells, including ties, and how many cells lie in the noise band.

    Args:
        cells: one row per cell.
        band: half-width of the noise band, a fraction.
    """
    best = equals(cells, "delta")
    first = best.iloc[0]
    text = f"Change of accuracy in points. Best: {words.points(first['delta'])} at {named(best, setting)}"
    if len(best) == 1:
        text += f" ({words.p_sentence(first['p_value'])}"
        text += f", {words.p_sentence(first['p_holm'])} after Holm)." if "p_holm" in first else ")."
    else:
        text += f": {len(best)} cells tie, smallest {words.p_sentence(best['p_value'].min())}."
    if float(first["delta"]) < 0:
        text += " Every cell loses."
    if band is not None:
        inside = int((cells["delta"].abs() <= band).sum())
        text += (
            f" Chance flips alone give a band of about ±{100 * band:.2f} points; "
            f"{inside} of {len(cells)} cells lie in it."
        )
    if "chosen" in cells and cells["chosen"].astype(bool).any():
        text += " The framed cell was chosen."
    return text


def optimistic_text(grid: pd.DataFrame, delta: float, where: str) -> str:
    """Warning for an edit that was chosen on the same images it is compared on.

    Args:
        grid: the cells that it was chosen from.
        delta: its change of accuracy.
        where: the images, e.g. ``test``.
    """
    tries = distinct_edits(grid)
    if tries == 1:
        return f"Only one edit was tested, so nothing was chosen by its result on the {where} images."
    text = f"Optimistic estimate: this edit was chosen on the same {where} images that it is compared on. "
    if delta > 0:
        return text + f"Its gain is the best of {tries} tries and will shrink on new images."
    return text + f"Even so, the best of {tries} tries gains nothing."


def same_draws(controls: pd.DataFrame) -> bool:
    """Whether shuffled labels repeat the random draws, as in a grid of one cell, where there is nothing to choose."""
    random, shuffled = (
        controls.loc[controls["control"] == name, "delta_test"].to_numpy(dtype=float) for name in ("random", "shuffled")
    )
    shared = min(len(random), len(shuffled))
    return shared > 1 and np.array_equal(random[:shared], shuffled[:shared])


def shown_controls(controls: pd.DataFrame) -> pd.DataFrame:
    """The controls, without shuffled labels where they repeat the random draws."""
    return controls[controls["control"] != "shuffled"] if same_draws(controls) else controls


def controls_table(controls: pd.DataFrame, delta: float, names: Mapping[str, str]) -> pd.DataFrame:
    """One row per control: its draws, how it relates to the edit, and how many draws do as well.

    Args:
        controls: columns control and delta_test.
        delta: change of accuracy of the edit, on the same images.
        names: control -> display name.
    """
    rows = []
    for kind, group in controls.groupby("control", sort=False):
        values = group["delta_test"].dropna().to_numpy(dtype=float)
        if values.size:
            low, high = np.quantile(values, [0.025, 0.975]) if values.size > 1 else (np.nan, np.nan)
            rows.append(
                {
                    "control": names.get(str(kind), str(kind).replace("_", " ")),
                    "about": CONTROLS.get(str(kind), ""),
                    "draws": values.size,
                    "median": float(np.median(values)),
                    "low": low,
                    "high": high,
                    "reached": int((values >= delta - 1e-12).sum()),
                }
            )
    return pd.DataFrame(rows, columns=["control", "about", "draws", "median", "low", "high", "reached"])


def controls_text(table: pd.DataFrame, delta: float, where: str) -> str:
    """Caption comparing the edit with its controls, from :func:`controls_table`."""
    results = [
        f"{row['reached']} of {row['draws']} draws of {row['control']} do as well or better"
        if row["draws"] > 1
        else f"{row['control']}: {words.points(row['median'])}"
        for row in table.to_dict("records")
    ]
    text = f"On {where}, the chosen edit changes accuracy by {words.points(delta)} points"
    text = f"{text}; {'; '.join(results)}." if results else f"{text}."
    if len(table) and (table["draws"] > 1).any():
        text += " If the labels matter, the line lies to the right of the clouds."
    return text


def ladder_text(ladder: pd.DataFrame) -> str:
    """Caption comparing the edit with cheap alternatives: the best of them, the ceiling, and those not available.

    Args:
        ladder: as returned by :func:`emodissect.studies.baselines.climb`.
    """
    text = (
        "Change of accuracy on test in points, with 95 % intervals, of the chosen edit (line) and of alternatives that "
        "do not use the labels, by the same tests on the same images."
    )
    honest = ladder[(ladder["fitted_on"] != "test") & ladder["delta"].notna()]
    if honest["fitted_on"].isin(["val", "train"]).any():
        text += " Fitted alternatives used the images that the edit was chosen on, or training images."
    if len(honest):
        best = equals(honest, "delta")
        first = best.iloc[0]
        p = f" ({words.p_sentence(first['p_value'])})" if len(best) == 1 else " each"
        text += f" Largest change: {named(best, _alternative)}, {words.points(first['delta'])}{p}."
    return " ".join(filter(None, [text, ladder_notes(ladder)]))


def ladder_notes(ladder: pd.DataFrame) -> str:
    """Notes on the table of alternatives: which one is a bound and not a result, and which are not available."""
    notes = [
        f"{words.sentence(str(row['words']).partition(':')[0]).removesuffix('.')} was fitted on the test images: "
        f"{words.points(row['delta'])} points are a bound, not a result."
        for row in ladder[ladder["fitted_on"] == "test"].dropna(subset=["delta"]).to_dict("records")
    ]
    lacking = ladder[ladder["delta"].isna()]
    notes += [f"Not available: {row['words']} ({row['note']})." for row in lacking.to_dict("records")]
    return " ".join(notes)


def _alternative(row: pd.Series) -> str:
    on = SPLITS.get(str(row["fitted_on"]))
    return f"{row['words']} fitted on {on} images" if on else str(row["words"])


def layers_text(layers: pd.DataFrame, level: float) -> str:
    """Caption of the layer table: where labels fit best, and where most neurons are labelled beyond chance."""

    def name(row: pd.Series) -> str:
        return str(row["layer"])

    text = ""
    best = equals(layers, "accuracy")
    if len(best):
        first = best.iloc[0]
        text = (
            f"Labels fit best in {named(best, name)}: on average {words.percent(first['accuracy'])} of a neuron's top "
            "images are of one of its label's classes"
        )
        if "accuracy_chance" in layers and len(best) == 1:
            text += f" ({words.percent(first['accuracy_chance'])} by chance)"
        text += ". "
    if not layers["significant"].sum():
        return text + f"No neuron is labelled beyond chance (q < {level:g})."
    most = equals(layers, "significant")
    text += f"Most neurons beyond chance: {named(most, name)}, {int(most['significant'].iloc[0]):,}"
    text += f" of {int(most['neurons'].iloc[0]):,}." if len(most) == 1 else " each."
    shares = layers.assign(share=layers["significant"] / layers["neurons"].clip(lower=1))
    largest = equals(shares, "share")
    if len(layers) > 1 and list(largest["layer"]) != list(most["layer"]):
        text += f" Largest share: {named(largest, name)}, {words.percent(largest['share'].iloc[0], 0)}."
    return text


def shares_text(shares: pd.DataFrame, layer: str) -> str:
    """The most frequent fitting labels of a layer, including ties."""
    if shares.empty or not shares["share"].sum():
        return f"{layer}: no neuron's label fits at least half of its top images."
    counted = next((name for name in ("neurons", "count") if name in shares), None)
    neurons = int(shares[counted].sum()) if counted else 0
    of = f"{words.count(neurons, 'neuron')} whose label fits" if neurons else "neurons whose label fits"
    if neurons == 1:
        only = equals(shares, "share")["concept"].iloc[0]
        return f"{layer}: one neuron has a label that fits at least half of its top images, “{only}”."
    best = equals(shares, "share")
    each = " each" if len(best) > 1 else ""
    labels = named(best, lambda row: f"“{row['concept']}”")
    text = (
        f"{layer}: of the {of} at least half of their top images, {words.percent(best['share'].iloc[0])}{each} are "
        f"labelled {labels}"
    )
    if len(shares) > 3:
        three = float(shares["share"].nlargest(3).sum())
        text += f"; the first three of {len(shares)} concepts make up {words.percent(three, 0)}"
    return f"{text}."


def concept_classes(
    neurons: pd.DataFrame, layer: str, responses: Responses, class_names: Sequence[str]
) -> pd.DataFrame:
    """Concept x class: mean standardized activation of a concept's neurons on a class's images.

    Per neuron: (mean on the class - mean over the classes) / standard deviation over images; then the mean over the
    concept's neurons. Index: the concepts, those with most neurons first; the column ``neurons`` counts them.
    """
    living = neurons[(neurons["layer"] == layer) & ~neurons["dead"].astype(bool)]
    mean, spread = responses.mean.numpy(), responses.spread.numpy()
    means = pd.DataFrame(mean).mean(axis=1).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        standard = (mean - means[:, None]) / spread[:, None]
    frame = pd.DataFrame(standard[living["neuron"].to_numpy(dtype=int)], columns=[str(name) for name in class_names])
    frame = frame.replace([np.inf, -np.inf], np.nan).assign(concept=living["concept"].to_numpy())
    table = frame.groupby("concept", sort=False).mean()
    table.insert(0, "neurons", frame.groupby("concept", sort=False).size())
    return table.sort_values("neurons", ascending=False, kind="stable")


def concept_classes_text(table: pd.DataFrame, class_names: Sequence[str], layer: str) -> str:
    """Caption of the concept x class matrix: where the activation is highest."""
    text = (
        f"{layer}: mean activation of the neurons of each label on each class's images, minus their mean over classes, "
        "in units of each neuron's standard deviation."
    )
    values = table[[str(name) for name in class_names]].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        return text
    row, column = words.place(values)
    return (
        f"{text} Highest: {class_names[column]} for “{table.index[row]}”, {words.number(float(values[row, column]))} "
        f"({words.count(int(table['neurons'].iloc[row]), 'neuron')})."
    )


def one_label_text(neurons: pd.DataFrame, most: float = 0.5, fewest: int = 20) -> str:
    """Warning where one label is given to most living neurons of a layer; empty otherwise.

    Args:
        neurons: the neuron table.
        most: share of a layer's living neurons above which the commonest label is uninformative.
        fewest: layers with fewer living neurons are skipped.
    """
    found = []
    for layer, rows in neurons[~neurons["dead"].astype(bool)].groupby("layer", sort=False):
        counts = rows["concept"].value_counts()
        if len(rows) >= fewest and counts.iloc[0] > most * len(rows):
            found.append(
                f"{counts.iloc[0]:,} of {len(rows):,} living neurons of {layer} are labelled “{counts.index[0]}”"
            )
    if not found:
        return ""
    return (
        f"{words.sentence('; '.join(found))} Such labels hardly tell neurons apart: look at their margins and q, and "
        "compare with another similarity or other concepts."
    )


def ablation_text(frame: pd.DataFrame, layer: str, alpha: float) -> str:
    """Caption of an ablation: the drops in recall beyond those of random neurons, or that there are none.

    Args:
        frame: of :class:`emodissect.studies.ConceptAblation`.
        layer: whose neurons were ablated.
        alpha: level at which a p-value counts.
    """
    known = frame.dropna(subset=["drop", "p_value"])
    if known.empty:
        return f"{layer}: no concept has neurons to ablate."
    beyond = known[known["p_value"] < alpha].sort_values("drop", ascending=False)
    rule = f"(p < {words.level(alpha)}, corrected for the size of the matrix)"
    if len(beyond):
        drops = "; ".join(map(_drop, beyond[:MOST_NAMED].to_dict("records")))
        more = f"; {len(beyond) - MOST_NAMED} more" if len(beyond) > MOST_NAMED else ""
        of = f"{len(beyond)} of {len(known)} drops in recall exceed those of as many random neurons"
        return f"{layer}: {of} {rule}: {drops}{more}."
    largest = equals(known, "drop")
    text = f"{layer}: no drop in recall exceeds that of as many random neurons {rule}."
    if float(largest["drop"].iloc[0]) <= 0:
        return f"{text} No class loses recall."
    most = "The largest" if len(largest) == 1 else f"The first of {len(largest)} equal largest"
    return f"{text} {most}, within chance: {_drop(largest.iloc[0].to_dict())}."


def ablation_headline(frame: pd.DataFrame, layer: str, alpha: float) -> str:
    """The largest significant drop of an ablation in one sentence; :func:`ablation_text` is longer."""
    known = frame.dropna(subset=["drop", "p_value"])
    beyond = known[known["p_value"] < alpha].sort_values("drop", ascending=False)
    if beyond.empty:
        return (
            f"{layer}: removing the neurons of a single concept costs no class significantly more recall than removing "
            "as many random neurons."
        )
    first = beyond.iloc[0].to_dict()
    more = f" {len(beyond)} of {len(known)} drops exceed those of random neurons." if len(beyond) > 1 else ""
    return f"{layer}: {_drop(first)}.{more}"


def _drop(row: Mapping[Any, Any]) -> str:
    return (
        f"without “{row['concept']}” ({words.count(int(row['neurons']), 'neuron')}) {row['class']} loses "
        f"{100 * row['drop']:.1f} points ({words.p_sentence(row['p_value'])}; random neurons cost it "
        f"{100 * row['random_mean']:.1f})".replace("-", words.MINUS)
    )


def recognised_text(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Share of test images recognised, the commonest class's share, and the best and worst classes.

    Args:
        confusion: image counts, shape (true class, predicted class).
        class_names: in the same order.
    """
    counts = np.asarray(confusion, dtype=float)
    of_class = counts.sum(axis=1)
    recall = np.divide(counts.diagonal(), of_class, out=np.full(len(counts), np.nan), where=of_class > 0)
    text = (
        f"{words.percent(np.trace(counts) / counts.sum())} of {int(counts.sum()):,} test images are recognised "
        f"({words.percent(of_class.max() / counts.sum())} by always naming the commonest class). "
    )
    table = pd.DataFrame({"class": [str(name) for name in class_names], "recall": recall})
    best, worst = equals(table, "recall"), equals(table, "recall", largest=False)
    if best["recall"].iloc[0] == worst["recall"].iloc[0]:
        return f"{text}Every class has the same recall, {words.percent(best['recall'].iloc[0], 0)}."

    def listed_with_recall(rows: pd.DataFrame) -> str:
        return f"{named(rows, lambda row: str(row['class']))} ({words.percent(rows['recall'].iloc[0], 0)})"

    return f"{text}Best class: {listed_with_recall(best)}; hardest: {listed_with_recall(worst)}."


def confused_text(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Caption of a confusion matrix: the most frequent confusion in images and, if another, within a class."""
    counts = np.asarray(confusion, dtype=float)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return "Per cent of each true class. No image is taken for another class."
    table = pd.DataFrame(
        [
            {"true": class_names[i], "taken": class_names[j], "images": wrong[i, j], "share": wrong[i, j] / of}
            for i, of in enumerate(counts.sum(axis=1))
            for j in range(len(counts))
            if i != j and of
        ]
    )

    def pair(row: pd.Series) -> str:
        return f"{row['true']} taken for {row['taken']}"

    most, likeliest = equals(table, "images"), equals(table, "share")
    share = f" ({words.percent(most['share'].iloc[0], 0)} of them)" if len(most) == 1 else " each"
    text = f"Per cent of each true class. Most frequent confusion: {named(most, pair)}, "
    text += f"{words.count(int(most['images'].iloc[0]), 'image')}{share}."
    if list(likeliest.index) != list(most.index):
        text += f" Likeliest within a class: {named(likeliest, pair)}, {words.percent(likeliest['share'].iloc[0], 0)}."
    return text


def majority_text(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Warning that a network is no better than always naming the commonest class; empty otherwise.

    Args:
        confusion: image counts, shape (true class, predicted class).
        class_names: in the same order.
    """
    counts = np.asarray(confusion, dtype=float)
    total = counts.sum()
    if not total:
        return ""
    of_class = counts.sum(axis=1)
    share = of_class.max() / total
    low, _ = wilson(int(np.trace(counts)), int(total))
    predicted = counts.sum(axis=0)
    if np.count_nonzero(predicted) == 1 and len(class_names) > 1:
        return f"The network names the same class for every image: {class_names[int(predicted.argmax())]}."
    if low > share:
        return ""
    commonest = listed(str(class_names[int(i)]) for i in np.flatnonzero(of_class == of_class.max()))
    return (
        f"The network is not above majority-class level: always naming the commonest class ({commonest}) is right for "
        f"{words.percent(share)}."
    )

"""Captions are computed from their table: they report ties, losses, no-ops, chance results and majority classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_samples import CLASSES, dissection, edit, faces, grid, guesses, layer_row, neurons
from test_report import said, silenced

from emodissect.core.number_format import unbroken
from emodissect.report import claims, figures

VAL = "the validation images"


def cells(deltas: list[float], **columns: object) -> pd.DataFrame:
    """A grid of one layer whose cells have the given changes in accuracy on 1,000 images."""
    net = (1000 * np.array(deltas)).round().astype(int)
    frame = pd.DataFrame({"layer": "lin2", "tau": np.arange(len(deltas)) / 2, "delta": deltas})
    frame = frame.assign(gained=5 + net.clip(min=0), lost=5 - net.clip(max=0), p_value=0.5, p_holm=1.0)
    return frame.assign(identity=False, edit_id=range(len(deltas)), selected=3, **columns)


def test_cells_that_tie_are_all_named() -> None:
    text = claims.cells_text(cells([0.01, 0.01, -0.01, 0.01]), None)
    assert "Best: +1.00 at τ = 0, τ = 0.5 and τ = 1.5: 4" not in text
    assert "Best: +1.00 at τ = 0, τ = 0.5 and τ = 1.5: 3 cells tie, smallest p = .50." in text
    assert "Best: +1.00 at τ = 0 and 4 others: 5 cells tie" in claims.cells_text(cells([0.01] * 5), None)
    assert "Best: +2.00 at τ = 0.5 (p = .50, p = 1.00 after Holm)." in claims.cells_text(cells([0.01, 0.02]), None)


def test_a_grid_in_which_every_cell_loses_says_that_nothing_was_better() -> None:
    alone = "leaving the network alone is better than any of them"
    assert alone in claims.grid_text(cells([-0.01, -0.02]), VAL, 0.05)
    assert "Every cell loses." in claims.cells_text(cells([-0.01, -0.02]), None)
    even = claims.grid_text(cells([-0.01, 0.0]), VAL, 0.05)
    assert "No edit gains accuracy over leaving the network alone." in even
    assert alone not in even
    gaining = claims.grid_text(cells([-0.01, 0.01]), VAL, 0.05)
    assert "leaving" not in gaining


def test_duplicates_and_cells_that_change_nothing_are_no_edits() -> None:
    frame = cells([0.0, 0.01, 0.01, -0.01])
    frame["edit_id"], frame["identity"] = [0, 1, 1, 2], [True, False, False, False]
    assert claims.distinct_edits(frame) == 2
    text = claims.grid_text(frame, VAL, 0.05)
    assert text.startswith(f"2 edits were tested on {VAL} (of 4 cells, 1 repeats another and 1 changes nothing). ")
    nothing = frame.assign(identity=True, delta=0.0)
    assert (
        claims.grid_text(nothing, VAL, 0.05) == f"None of the 4 cells changes a neuron, so nothing was tested on {VAL}."
    )
    old = frame.drop(columns=["edit_id", "identity"]).assign(gained=0, lost=0)  # a study of an earlier version
    assert "None of the 4 cells" in claims.grid_text(old, VAL, 0.05)


def test_words_that_all_cells_share_are_said_once() -> None:
    frame = cells([0.01, -0.01]).assign(selection="tau", rule=["scale", "ablate"], parameters="weight")
    shared = claims.shared_words(frame, ["selection", "rule", "parameters", "tau", "absent"])
    assert shared == {"selection": "tau", "parameters": "weight"}
    assert claims.shared_words_text(shared, 2) == "All 2 cells: selection tau, parameters weight."
    assert claims.shared_words_text({"rule": "scale"}, 1) == "This cell: rule scale."
    assert claims.shared_words_text({}, 2) == ""


def test_cheap_alternatives_name_the_best_the_bound_and_what_is_not_available() -> None:
    rows = [
        ("refitting the head", "val", 0.002, 0.5, ""),
        ("refitting the head", "train", 0.001, 0.9, ""),
        ("averaging the mirror view", "", 0.014, 0.02, ""),
        ("averaging ten crops", "", np.nan, np.nan, "the network takes whole images"),
        ("the ceiling: a scale and shift per neuron", "test", 0.2, 0.0, "not a result"),
    ]
    ladder = pd.DataFrame(rows, columns=["words", "fitted_on", "delta", "p_value", "note"])
    text = claims.ladder_text(ladder)
    assert "Largest change: averaging the mirror view, +1.40 (p = .020)." in text  # never the bound
    assert "The ceiling was fitted on the test images: +20.00 points are a bound, not a result." in text
    assert text.endswith("Not available: averaging ten crops (the network takes whole images).")
    tied = claims.ladder_text(ladder.assign(delta=[0.014, 0.0, 0.014, np.nan, np.nan]))
    best = "Largest change: refitting the head fitted on validation images and averaging the mirror view, +1.40 each."
    assert best in tied
    assert "bound" not in tied


def test_only_a_choice_among_tries_is_called_the_best_of_many() -> None:
    assert claims.optimistic_text(cells([-0.01]), -0.01, "test").startswith("Only one edit was tested")
    lost = claims.optimistic_text(cells([-0.01, -0.02]), -0.01, "test")
    assert "Even so, the best of 2 tries gains nothing." in lost
    assert "Its gain" not in lost
    assert "Its gain is the best of 2 tries" in claims.optimistic_text(cells([0.01, 0.0]), 0.01, "test")


def test_splits_are_called_by_their_names() -> None:
    text = said(edit(False, test_split="val+test", selection_split="train").html())
    assert "accuracy on validation and test, edited" in text
    assert "On validation and test, the chosen edit changes" in text
    assert "tested on the training images" in text
    assert "on test" not in text


def test_most_neurons_and_the_largest_share_are_reported_apart() -> None:
    rows = [layer_row(neurons(name, size, faces())) for name, size in (("conv3b", 32), ("lin2", 64), ("lin3", 7))]
    layers = pd.DataFrame(rows).assign(significant=[14, 16, 0], accuracy=[0.5, 0.6, 0.4])
    text = claims.layers_text(layers, 0.05)
    assert "Most neurons beyond chance: lin2, 16 of 64. Largest share: conv3b, 44 %." in text
    tied = claims.layers_text(layers.assign(significant=[14, 14, 14], accuracy=0.5), 0.05)
    assert "Labels fit best in conv3b, lin2 and lin3: on average 50.0 %" in tied
    assert "Most neurons beyond chance: conv3b, lin2 and lin3, 14 each. Largest share: lin3, 200 %." in tied
    assert "No neuron is labelled beyond chance" in claims.layers_text(layers.assign(significant=0), 0.05)


def test_labels_of_equal_share_are_all_named() -> None:
    shares = pd.DataFrame({"concept": ["a", "b", "c"], "neurons": [4, 4, 2], "share": [0.4, 0.4, 0.2]})
    assert "40.0 % each are labelled “a” and “b”." in claims.shares_text(shares, "lin2")


def test_one_label_for_most_neurons_is_a_warning() -> None:
    rows = neurons("lin1", 513, faces()).assign(concept=["", *["Tears"] * 442, *["Smile"] * 70])
    text = claims.one_label_text(rows)
    assert text.startswith("442 of 512 living neurons of lin1 are labelled “Tears”. Such labels hardly tell")
    assert claims.one_label_text(neurons("lin1", 513, faces())) == ""  # three labels in turn
    page = dissection()
    page.neurons = page.neurons.assign(concept=["Tears" if name else "" for name in page.neurons["concept"]])
    assert 'role="alert">29 of 29 living neurons of lin2' in page.html()


def test_an_ablation_names_the_falls_beyond_chance_with_their_p() -> None:
    frame = silenced().frame
    text = claims.ablation_text(frame, "lin1", 0.05)
    assert "1 of 6 drops in recall exceed those of as many random neurons (p < .05, corrected" in text
    assert "without “smile” (3 neurons) angry loses 20.0 points (p = .010; random neurons cost it 1.0)." in text
    # the largest fall is no finding where chance explains it: the sure one is named, however small
    frame = frame.assign(p_value=[1.0, 1.0, 1.0, 1.0, 0.003, 1.0])
    text = claims.ablation_text(frame, "lin1", 0.05)
    assert "without “tears” (1 neuron) happy loses 1.0 points (p = .003;" in text
    assert "smile" not in text
    text = claims.ablation_text(frame.assign(p_value=1.0), "lin1", 0.05)
    assert "no drop in recall exceeds that of as many random neurons" in text
    assert "The largest, within chance: without “smile” (3 neurons) angry loses 20.0 points (p = 1.00;" in text
    tied = claims.ablation_text(frame.assign(p_value=1.0, drop=0.2), "lin1", 0.05)
    assert "The first of 6 equal largest, within chance: without “smile” (3 neurons) angry" in tied
    headline = claims.ablation_headline(frame.assign(p_value=1.0), "lin1", 0.05)
    assert "costs no class significantly more recall than removing as many random neurons." in headline
    assert "No class loses recall." in claims.ablation_text(frame.assign(p_value=1.0, drop=0.0), "lin1", 0.05)
    assert "no concept has neurons" in claims.ablation_text(frame.assign(drop=np.nan), "lin1", 0.05)


def test_an_ablation_opens_its_page() -> None:
    html = edit(False, ablations={"lin1": silenced()}).html()
    text = said(html)
    assert "<h1>Which classes need a concept&#39;s neurons?</h1>" in html
    assert html.index('<section id="ablation">') < html.index('<section id="grid">')
    assert "lin1: without “smile” (3 neurons) angry loses 20.0 points (p = .010; random neurons cost it 1.0)." in text
    assert text.index("lin1: without “smile”") < text.index("The edit: A gain of +5.00 points")
    assert "<h1>Did the edit help?</h1>" in edit(False).html()


def test_controls_are_called_what_they_are() -> None:
    kinds = ["random"] * 4 + ["shuffled"] * 4 + ["all", "inverse"]
    deltas = [0.0, 0.01, 0.02, 0.03, 0.0, 0.05, 0.02, 0.06, 0.01, -0.01]
    controls = pd.DataFrame({"control": kinds, "draw": 0, "delta_test": deltas})
    text = said(edit(False, controls=controls).html())
    assert "without using the labels" not in text
    for message in ("the chosen edit may differ in size", "the labels, and differs in size", "so different in size"):
        assert message in text
    assert "0 of 4 draws of random neurons do as well or better; 2 of 4 draws of shuffled labels do" in text


def test_one_set_of_draws_is_one_cloud() -> None:
    draws = [0.0, 0.01, 0.02]
    controls = pd.DataFrame({"control": ["random"] * 3 + ["shuffled"] * 3, "draw": 0, "delta_test": draws * 2})
    assert claims.same_draws(controls)
    text = said(edit(False, controls=controls).html())
    assert "shuffling the labels gives the same draws as random neurons; they are shown once." in text
    assert "draws of shuffled labels" not in text
    assert not claims.same_draws(controls.assign(delta_test=[*draws, 0.0, 0.01, 0.03]))
    assert not claims.same_draws(controls[:3])


def test_an_axis_without_values_has_no_name() -> None:
    rows = grid().assign(level=np.nan).drop(columns="tau")[:2]
    (axes,) = figures.grid_heatmap(rows).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("factor", "")


@pytest.mark.parametrize(
    ("confusion", "text"),
    [
        ([[50, 0], [40, 10]], ""),  # 60 % of 100, of which chance would give 50 %
        ([[60, 0], [40, 0]], "The network names the same class for every image: angry."),
        ([[55, 5], [36, 4]], "always naming the commonest class (angry) is right for 60.0 %."),
        ([[25, 25], [25, 25]], "always naming the commonest class (angry and happy) is right for 50.0 %."),
    ],
)
def test_a_network_at_majority_level_is_called_so(confusion: list[list[int]], text: str) -> None:
    found = claims.majority_text(np.array(confusion), CLASSES[:2])
    assert text in found
    assert bool(text) == bool(found)


def test_a_page_whose_network_names_one_class_says_so() -> None:
    test = faces(seed=1)
    same = guesses(test, 0)
    same.logits[:] = same.logits[0]
    assert "names the same class for every image: angry." in said(edit(False, before=same, after=same).html())


def test_recall_and_confusions_that_tie() -> None:
    assert "Best class: a and b (50 %); hardest: c (0 %)." in claims.recognised_text(
        np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]]), "abc"
    )
    assert "Every class has the same recall, 50 %." in claims.recognised_text(np.array([[1, 1], [1, 1]]), "ab")
    assert claims.confused_text(np.eye(2), "ab") == "Per cent of each true class. No image is taken for another class."
    text = claims.confused_text(np.array([[8, 2, 0], [0, 1, 1], [2, 0, 8]]), "abc")
    assert "Most frequent confusion: a taken for b and c taken for a, 2 images each." in text
    assert "Likeliest within a class: b taken for c, 50 %." in text


def test_one_cell_that_changes_nothing_claims_no_change() -> None:
    row = cells([0.0])
    text = claims.one_cell_text(row.assign(identity=True).iloc[0], VAL, 0.0065)
    assert text.startswith(f"One edit was tested on {VAL}: 3 neurons of lin2 at τ = 0; it changes no prediction.")
    text = unbroken(claims.one_cell_text(cells([0.01]).iloc[0], VAL, 0.0065))
    assert "change accuracy by +1.00 points (p\u00a0=\u00a0.50; chance flips alone give about ±0.65)." in text

"""Figures show the given numbers: these are read back from the figures."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emodissect.report import figures
from emodissect.report.figures import fonts, style

GRID = pd.DataFrame(
    {
        "tau": [0.0, 0.0, 0.5, 0.5],
        "factor": [1.0, 2.0, 1.0, 2.0],
        "delta": [0.0, 0.02, -0.01, 0.004],
        "gained": [0, 25, 8, 10],
        "lost": [0, 5, 18, 6],
        "p_value": [1.0, 0.0003, 0.04, 0.4],
        "p_holm": [1.0, 0.0012, 0.12, 0.8],
        "nll_before": [0.9] * 4,
        "nll_after": [0.9, 0.95, 0.88, 1.0],
        "chosen": [False, True, False, False],
    }
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def bars(figure: Figure) -> list[float]:
    return [patch.get_width() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_histogram_shows_shares_of_neurons_and_of_the_null_and_the_cutoff() -> None:
    figure = figures.similarity_histogram([0.0, 1.0, 1.0, 4.8, np.nan], [0.0, 2.4], tau=0.5, title="lin2")
    (axes,) = figure.axes
    heights = np.array([patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)])
    assert heights.sum() == pytest.approx(100)  # the NaN is left out
    assert heights[0] == pytest.approx(25)
    assert heights[10] == pytest.approx(50)  # bins of 0.1
    stairs = next(p for p in axes.patches if not isinstance(p, Rectangle)).get_data()
    assert stairs.values.tolist()[0] == 50
    assert axes.lines[0].get_xdata()[0] == 0.5
    assert texts(figure) == ["τ = 0.5"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["neurons", "random image sets"]
    assert axes.get_title(loc="left") == "lin2"


@pytest.mark.parametrize("best", [[], [np.nan], [1.0, 1.0]])
def test_histogram_of_nothing_or_of_equal_values(best: list[float]) -> None:
    figures.similarity_histogram(best, None, None)


def test_concept_shares_fall_and_the_rest_is_added_up() -> None:
    shares = pd.DataFrame({"concept": ["a", "b", "c", "d"], "share": [0.1, 0.6, 0.0, 0.3]})
    figure = figures.concept_shares(shares)
    assert bars(figure) == pytest.approx([60, 30, 10])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "d", "a"]
    assert texts(figure) == ["60.0 %", "30.0 %", "10.0 %"]
    assert bars(figures.concept_shares(shares, limit=1)) == pytest.approx([60, 40])
    assert "no neuron" in texts(figures.concept_shares(shares[:0]))[0]


def test_layer_table_has_the_study_s_columns_and_the_published_numbers() -> None:
    layers = pd.DataFrame(
        {
            "layer": ["conv4b", "lin2"],
            "interpretable": [494, 3835],
            "not_interpretable": [18, 261],
            "accuracy": [0.2834, 0.4342],
            "accuracy_interpretable": [0.2822, 0.4474],
            "accuracy_others": [0.3167, np.nan],
            "proportion": [0.9648, 0.9363],
        }
    )
    shown = texts(figures.layer_table(layers, layers[1:].assign(interpretable=3000)))
    assert {"494", "3,835", "3,000", "0.283", "0.936", "–", "published in the study"} <= set(shown)
    assert "published in the study" not in texts(figures.layer_table(layers))
    proportions = figures.layer_proportions(layers.assign(proportion_null=[1.0, 0.99]))
    assert bars(proportions) == pytest.approx([96.48, 93.63])


def test_noise_band_is_what_chance_flips_give() -> None:
    # 1.96 sqrt(n) / images for n = 30, 26, 16 flips (the cell without flips is left out); the median is that of 26.
    assert figures.noise_band(GRID, 1000) == pytest.approx(1.96 * np.sqrt(26) / 1000)
    assert figures.noise_band(GRID[:1], 1000) == 0


def test_full_colour_is_no_less_than_twice_the_noise_band() -> None:
    assert figures.full_colour(GRID, 1000) == pytest.approx(0.02)
    quiet = GRID.assign(delta=0.001)
    assert figures.full_colour(quiet, 1000) == pytest.approx(2 * 1.96 * np.sqrt(26) / 1000)


def test_a_narrow_grid_is_not_drawn_as_wide_blocks() -> None:
    (axes,) = figures.grid_heatmap(GRID[GRID["factor"] == 2.0]).axes
    assert axes.get_xlim() == (0, 5)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2"]


def test_grid_heatmap_writes_points_and_marks_what_lies_outside_the_band() -> None:
    figure = figures.grid_heatmap(GRID)
    axes = figure.axes[0]
    assert sorted(texts(figure)) == sorted(["0.00", "+2.00", "−1.00", "+0.40"])
    marks = [(line.get_xdata()[0] // 1, line.get_ydata()[0] // 1, line.get_markerfacecolor()) for line in axes.lines]
    assert marks == [(1, 0, style.INK), (0, 1, "none")]  # filled: stays after Holm
    frames = [p for p in axes.patches if not p.get_fill()]
    assert [(frame.get_x(), frame.get_y()) for frame in frames] == [(1.03, 0.03)]
    fills = {(p.get_x() // 1, p.get_y() // 1): (p.get_facecolor(), p.get_alpha()) for p in axes.patches if p.get_fill()}
    assert fills[1, 0][1] == pytest.approx(0.72)
    assert fills[0, 1][1] == pytest.approx(0.36)  # half as far, half as strong
    assert fills[0, 0][1] == 0
    likelihood = figures.nll_heatmap(GRID)
    assert sorted(texts(likelihood)) == sorted(["0.000", "+0.050", "−0.020", "+0.100"])
    without_tau = GRID[:2].assign(tau=np.nan)
    assert sorted(texts(figures.grid_heatmap(without_tau))) == sorted(["0.00", "+2.00"])
    by_level = figures.grid_heatmap(GRID.assign(tau=GRID["tau"] + 1).rename(columns={"tau": "level"}))
    assert sorted(texts(by_level)) == sorted(texts(figure))
    assert by_level.axes[0].get_ylabel() == "level"


def test_controls_stand_beside_the_chosen_edit() -> None:
    controls = pd.DataFrame(
        {"control": ["random"] * 3 + ["all"], "draw": [0, 1, 2, 0], "delta_test": [0, 0.01, 0.02, 0.005]}
    )
    figure = figures.control_distribution(controls, 0.015)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random neurons", "everything scaled"]
    assert texts(figure) == ["chosen edit +1.50"]
    assert any(list(line.get_xdata()) == [1.5, 1.5] for line in axes.lines)
    assert any(list(line.get_xdata()) == [1.0, 1.0] for line in axes.lines)  # the median of the random draws


def test_confusion_is_in_per_cent_of_the_true_class_and_the_change_in_images() -> None:
    before, after = [[8, 2], [5, 5]], [[9, 1], [5, 5]]
    left, middle, right = figures.confusion_change(before, after, ["a", "b"]).axes
    assert [t.get_text() for t in left.texts] == ["80", "20", "50", "50"]
    assert [t.get_text() for t in middle.texts] == ["90", "10", "50", "50"]
    assert [t.get_text() for t in right.texts] == ["+1", "−1"]
    assert texts(figures.confusion([[0, 0], [1, 3]], ["a", "b"])) == ["25", "75"]  # a class without images


def test_recall_bars_tell_the_change() -> None:
    figure = figures.recall_bars({"before": [0.5, np.nan], "after": [0.75, np.nan]}, ["a", "b"], [4, 0])
    assert bars(figure) == pytest.approx([50, 0, 75, 0])
    assert texts(figure) == ["+25.0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a  (4)", "b  (0)"]


def test_concept_ablation_draws_a_fall_as_a_fall() -> None:
    drops = pd.DataFrame([[0.1, -0.02], [0.0, np.nan]], index=["smile", "tears"], columns=["happy", "sad"])
    figure = figures.concept_ablation(drops, drops > 0.05, neurons=[3, 4])
    assert texts(figure) == ["−10.0", "+2.0", "0.0"]
    assert len(figure.axes[0].lines) == 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["smile  (3)", "tears  (4)"]


def test_image_rows_hold_every_image() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 8, 8), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 255, (2, 3, 8, 8), dtype=np.uint8)
    figure = figures.image_rows([figures.ImageRow("fc 3", "Smile", images, "Frown", colour)])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 5
    assert [axes.get_title(loc="left") for axes in shown if axes.get_title(loc="left")] == [
        "fc 3 fires for Smile",
        "fc 3 used for Frown",
    ]
    figure.draw_without_rendering()
    left, right = ([axes.get_position().x0 for axes in half.axes if axes.images] for half in figure.subfigs)
    assert np.ptp(np.diff(left)) < 0.01, "a long title moves no image"
    assert len(right) == 2
    assert figures.image_rows([]).axes


def test_label_quality_and_deltas_and_curves() -> None:
    quality = figures.label_quality(["x", "y"], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3], chance=0.04, ceiling=0.9)
    assert bars(quality) == pytest.approx([50, 25])
    assert sorted(line.get_xdata()[0] for line in quality.axes[0].lines) == pytest.approx([4, 90])
    jobs = pd.DataFrame({"delta": [0.0, 0.02], "delta_low": [-0.01, 0.01], "delta_high": [0.01, 0.03]})
    ordered = figures.deltas(jobs, ["a", "b"]).axes[0]
    assert [label.get_text() for label in ordered.get_yticklabels()] == ["b", "a"]
    history = pd.DataFrame({"epoch": [0, 0, 1], "train/loss": [2.0, 1.0, 1.0], "val/acc": [np.nan, 0.5, 0.75]})
    loss, accuracy = figures.training_curves(history).axes
    assert list(loss.lines[0].get_ydata()) == [1.5, 1.0]
    assert list(accuracy.lines[0].get_ydata()) == [50, 75]
    figures.training_curves(history[:0])
    close = pd.DataFrame({"epoch": [0, 1], "train/loss": [2.0, 1.0], "val/nll": [2.0, 1.01]})
    (loss,) = figures.training_curves(close).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0], [2.0, 1.01]]  # both curves of the loss
    assert {text.get_text(): text.get_va() for text in loss.texts} == {"train": "top", "val": "bottom"}
    shares = pd.DataFrame({"epoch": [0, 1], "dissect/lin2/proportion": [0.2, 0.4]})
    assert list(figures.concepts_over_epochs(shares, ["lin2"]).axes[0].lines[0].get_ydata()) == pytest.approx([20, 40])


def test_svg_takes_its_colours_from_the_page_and_its_ids_do_not_collide() -> None:
    figure = figures.grid_heatmap(GRID, "x < y & z")
    text = figures.svg(figure, "f1")
    assert text.startswith("<svg")
    assert "var(--ink)" in text
    assert not any(colour in text for colour in style.PALETTE.values())
    assert set(re.findall(r'\bid="([^"]*)"', text)) == {
        i for i in re.findall(r'\bid="([^"]*)"', text) if i.startswith("f1-")
    }
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(re.findall(r'\bid="([^"]*)"', text))
    assert "x &lt; y &amp; z" in text
    assert text == figures.svg(figure, "f1")  # nothing of the clock or of chance in it
    assert not plt.get_fignums()  # no figure is left in pyplot's hands


def test_png_appears_whole(tmp_path: Path) -> None:
    path = figures.save_png(figures.grid_heatmap(GRID), tmp_path / "new" / "grid.png", dpi=40)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_letters_that_the_usual_font_lacks_come_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sad, other = 0x60B2, "Liberation Sans"
    letters = {font_manager.findfont(fonts.USUAL): frozenset(range(0x250)), "broad.ttf": frozenset({sad})}
    monkeypatch.setattr(fonts, "_letters", lambda path: letters.get(path, frozenset()))
    monkeypatch.setattr(fonts, "_installed", lambda: ((other, "broad.ttf"),))
    fonts._fonts.cache_clear()
    assert fonts.fonts_for(["happy", "sad é"]) == []
    assert fonts.fonts_for(["happy", chr(sad)]) == [other]
    figure = style.new(3, 2)
    axes = figure.add_subplot()
    axes.set_xticks([0, 1], ["happy", chr(sad)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save_png(figure, tmp_path / "a.png")
    assert axes.get_xticklabels()[1].get_fontfamily() == [fonts.USUAL, other]
    assert caplog.text == ""
    assert fonts.fonts_for([chr(0x0E01)]) == []
    assert "No installed font has the characters \u0e01" in caplog.text
    fonts._fonts.cache_clear()

"""Reports contain the given results, need no other files, and stay small."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from report_samples import CLASSES, about, dissection, edit, faces, grid, guesses, neurons

from emodissect.core import number_format as words
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.report import Extra, SweepPage, TrainPage, page
from emodissect.report.columns import Column
from emodissect.report.images import ImagePool
from emodissect.studies import ConceptAblation


class Reader(HTMLParser):
    """Collects a page's text and its references."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action"} and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] not in {"script", "style"}:
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def said(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read(html).text).replace("\u00a0", " "))


def payload(html: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match
    return dict(json.loads(match[1]))


@pytest.fixture(scope="module")
def dissected() -> str:
    return dissection().html()


@pytest.fixture(scope="module")
def edited() -> str:
    return edit().html()


def test_dissection_page_says_the_numbers_in_words(dissected: str) -> None:
    text = said(dissected)
    # 34 of 36 neurons live; lin2: similarities from 3 to 0.5 over 29 neurons, 24 of them above 1; conv4b: 4 of 5.
    assert "36 neurons in 2 layers were given a label" in text
    assert "of the 34 live ones" in text
    assert "and so would 90 % of random image sets" in text
    assert "95 % of random image sets stay below 1.15" in text
    assert "“Smiling Mouth”" in text
    assert "of the 10 neurons whose label fits at least half of their top images, 60.0 %" in text
    assert "python dissect.py layer=conv4b,lin2" in text


def test_pages_need_no_network_and_ids_are_unique(dissected: str, edited: str) -> None:
    for html in (dissected, edited):
        reader = read(html)
        assert all(a.startswith(("#", "data:")) for a in reader.addresses), reader.addresses
        assert not re.search(r"url\((?!data:|#)", html)
        assert "default-src 'none'" in html
        assert len(reader.ids) == len(set(reader.ids))


def test_names_from_outside_cannot_break_the_page(dissected: str) -> None:
    assert dissected.count("</script>") == 3  # the theme's, the data's and the page's own
    assert "<b>bold</b>" not in dissected
    assert "Furrowed <Brow>" not in dissected
    assert "Furrowed <Brow> & more" in payload(dissected)["names"]["concept"]


def test_payload_holds_every_neuron_and_each_image_once(dissected: str) -> None:
    images = faces()
    data = payload(dissected)
    table = dissection().neurons
    got = data["neurons"]
    assert got["neuron"] == table["neuron"].tolist()
    assert [data["names"]["layer"][i] for i in got["layer"]] == table["layer"].tolist()
    assert [data["names"]["concept"][i] for i in got["concept"]] == table["concept"].tolist()
    assert got["similarity"][0] is None  # dead
    assert got["top"][0] == []
    assert got["similarity"][1] == 3.0
    assert got["flags"][0] == 1
    assert got["flags"][1] == 6
    distinct = {i for row, dead in zip(table["top_ids"], table["dead"], strict=True) if not dead for i in row}
    assert data["tiles"] == len(data["images"]) == len(distinct)
    truth = dict(zip(images.ids.tolist(), images.labels.tolist(), strict=True))
    predicted = dict(zip(images.ids.tolist(), guesses(images, 9).logits.argmax(1).tolist(), strict=True))
    for ids, tiles in zip(table["top_ids"][1:5], got["top"][1:5], strict=True):
        assert [data["labels"][t] for t in tiles] == [truth[i] for i in ids]
        assert [data["predicted"][t] for t in tiles] == [predicted[i] for i in ids]
    assert set(data["heat"]) == {"1", "2", "3", "4", "5"}
    heat = data["heat"]["1"][0]
    cells = np.frombuffer(base64.b64decode(heat["d"]), np.uint8).reshape(heat["h"], heat["w"])
    assert cells.shape == (4, 4)
    assert cells[0, 3] == round(255 * 3 / 159)


def pixels(tile: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(tile))).convert("L"), dtype=int)


def test_each_tile_is_an_image_of_its_own() -> None:
    images = faces(40)
    pool = ImagePool()
    pool.add(images, [int(i) for i in images.ids])
    pool.add(images, [7, 14])  # asked for twice, kept once
    assert len(pool) == 40
    found = pool.tiles()
    assert len(found) == 40
    at = pool.index(int(images.ids[23]))
    assert pixels(found[at]).shape == (48, 48)
    assert np.abs(pixels(found[at]) - images.images[23, 0].numpy()).mean() < 4


def test_images_of_any_size_and_colour_become_tiles() -> None:
    wide = torch.full((1, 3, 60, 120), 200, dtype=torch.uint8)
    pool = ImagePool()
    pool.add(ImageSet(wide, torch.zeros(1, dtype=torch.int64), torch.tensor([5])), [5])
    pool.add(faces(3, side=20), [0, 7])
    picture, *others = map(pixels, pool.tiles())
    assert {tile.shape for tile in (picture, *others)} == {(48, 48)}
    assert picture[:8].max() < 25  # black above the wide picture
    assert picture[16:32, 4:44].min() > 180
    assert ImagePool().tiles() == []


def test_pictures_are_images_that_print_and_save(dissected: str, edited: str) -> None:
    for html in (dissected, edited):
        addresses = re.findall(r'<img src="([^"]*)"', html)
        assert addresses
        assert all(address.startswith("data:image/webp;base64,UklGR") for address in addresses)
        assert 'src="tile:' not in html


def test_a_card_knows_the_edit_the_classes_and_the_whole_profile(edited: str) -> None:
    data, source = payload(edited), dissection()
    rows, names = data["neurons"], data["names"]
    edits = [names["edit"][at] for at in rows["edit"]]
    assert [i for i, edit in enumerate(edits) if edit] == [7, 8, 9, 10]  # six neurons of conv4b come first
    assert set(edits) == {"", "× 1.5"}
    assert data["standsFor"]["Tears"] == ["sad", "angry"]
    assert data["standsFor"]["Furrowed <Brow> & more"] == []
    profile = data["profile"]
    cells = np.frombuffer(base64.b64decode(profile["data"]), np.uint8).reshape(36, 3)
    found = profile["low"] + (cells - 1.0) / 254 * (profile["high"] - profile["low"])
    np.testing.assert_allclose(found[6:], source.about.profiles["lin2"], atol=0.003)
    steps = np.frombuffer(base64.b64decode(data["byClass"]["data"]), np.uint8).reshape(36, 3, 5)
    low, high = data["byClass"]["low"][7], data["byClass"]["high"][7]
    assert (low, high) == (0.03333, 2.033)  # neuron 1 of 30: its class plus 1 / 30
    assert steps[7, :, 2].tolist() == [1, 128, 255]
    assert data["effects"][7] == [0.01, 0.02, 0.03]


def test_groups_of_neurons_with_the_same_profile(dissected: str) -> None:
    data = payload(dissected)
    groups = data["neurons"]["alike"]
    assert groups[0] is None  # dead
    assert [groups[i] for i in range(7, 13)] == [groups[7], groups[8], groups[9]] * 2
    assert len({groups[7], groups[8], groups[9], groups[1], groups[2]}) == 5  # groups are of one layer


def test_profiles_of_very_many_concepts_keep_the_strongest() -> None:
    source = dissection({"lin2": 30})
    many = np.zeros((30, 40_000))
    many[:, 123] = 5
    source.about = replace(source.about, concepts=[f"word {i}" for i in range(40_000)], profiles={"lin2": many})
    profile = payload(source.html())["profile"]
    assert (len(profile["names"]), profile["all"]) == (700_000 // 30, 40_000)
    assert "word 123" in profile["names"]


def test_concepts_by_class_and_all_labels() -> None:
    text = said(dissection().html())
    assert "Highest: sad for “" in text
    assert "All labels by layer, 6 rows" in text


@pytest.mark.slow
def test_the_worst_case_of_4096_neurons_stays_under_ten_megabytes(tmp_path: Path) -> None:
    """40,950 top images drawn at random from 28,709: about 21,800 distinct images of noise, which compresses badly."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (28_709, 1, 12, 12), dtype=torch.uint8, generator=generator)
    pixels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = ImageSet(pixels, torch.arange(28_709) % 3, torch.arange(28_709))
    source = dissection({"lin2": 8}, faces())
    source.neurons = neurons("lin2", 4096, images)
    source.images = images
    source.predictions = guesses(images, 100)
    source.heat, source.saliency = {}, {}
    source.about = about({"lin2": 4096}, faces())
    rng = np.random.default_rng(0)
    words_ = [f"a concept called {i}" for i in range(300)]
    source.about = replace(source.about, concepts=words_, profiles={"lin2": rng.normal(size=(4096, 300))})
    path = source.write(tmp_path / "report.html")
    assert path.stat().st_size < 10e6
    data = payload(path.read_text())
    assert len(data["neurons"]["neuron"]) == 4096
    assert data["kept"] == 10


def test_edit_page_tells_the_evidence(edited: str) -> None:
    text = said(edited)
    assert "A gain of +5.00 points, within what random neurons give (p = .25)." in text
    assert (
        "3 edits were tested on the validation images (of 6 cells, 3 change nothing). 1 lies outside the band" in text
    )
    assert "Best: +1.00 at τ = 0, factor 1.5 (p = .013, p = .078 after Holm)" in text
    # Flips of the cells: 10, 14, 11; the median band is 1.96 sqrt(11) / 1000 = 0.65 points.
    assert "a band of about ±0.65 points; 4 of 6 cells lie in it" in text  # +1.00 and −0.70 do not
    assert "NLL rises) in 2 of 6 cells" in text
    assert "2 of 4 draws of random neurons do as well or better; everything scaled: +1.00" in text
    assert "3 images of 60 change predicted class" in text
    assert "Largest rise: angry, +5.0 points; largest fall: sad, −5.0 points" in text
    assert "Newly correct" in text
    assert text.count("True class; predicted before → after") == 2
    assert "Optimistic estimate" not in text
    assert "Each neuron with the images that activate it most" in text


def test_an_edit_that_flips_nothing_shows_no_empty_pictures() -> None:
    page = edit(True)
    text = said(replace(page, after=page.before).html())
    assert "No image changes its predicted class." in text
    assert "Newly correct" not in text
    assert "True class; predicted before → after" not in text


def test_an_edit_chosen_on_test_is_marked_in_red() -> None:
    html = edit(False, optimistic=True).html()
    assert 'class="warning" role="alert">Optimistic estimate' in html
    assert "chosen on test" in said(html)
    assert "tested on the test images" in said(html)


def test_edit_page_from_the_least_that_a_run_has() -> None:
    html = edit(False, controls=None, before=None, after=None, images=None, grid=grid()[3:4]).html()
    assert (
        "One edit was tested on the validation images: 20 neurons of lin2 at τ = 0, factor 1.5 change accuracy by "
        "+1.00 points (p = .013; chance flips alone give about ±0.73)."
    ) in said(html)
    assert "<svg" not in html[: html.index('id="change"')]  # a single cell is said, not drawn


def test_number_of_images_behind_the_grid_follows_from_the_deltas() -> None:
    assert "a band of about ±0.65 points" in said(edit(False, grid_images=None).html())


def silenced() -> ConceptAblation:
    rows = [
        {"concept": concept, "class": name, "neurons": count, "recall_before": 0.8, "drop": drop, "random_mean": 0.01,
         "random_sd": 0.01, "z": 2.0, "p_value": p}
        for concept, count, drops, ps in (("smile", 3, (0.2, 0.0, 0.0), (0.01, 1, 1)),
                                          ("tears", 1, (0.0, 0.01, 0.0), (1, 0.9, 1)))
        for name, drop, p in zip(CLASSES, drops, ps, strict=True)
    ]  # fmt: skip
    return ConceptAblation(pd.DataFrame(rows))


def test_ablation_and_extra_sections() -> None:
    extra = Extra("Leaked images", "Without them 0.6 points less.", pd.DataFrame({"fault": ["blank"], "images": [12]}))
    text = said(edit(False, ablations={"lin1": silenced(), "lin2": silenced()}, extras=[extra]).html())
    assert text.count("Change of each class's recall in points when the neurons of one concept are set to zero.") == 2
    assert "lin2: 1 of 6 drops in recall exceed those of as many random neurons" in text
    assert "Without them 0.6 points less." in text
    long = Extra("Truth", "So many.", pd.DataFrame({"row": range(30)}), Figure((3, 2)), short="True")
    html = edit(False, extras=[long, replace(long, frame=long.frame[:3]), replace(long, figure=None)]).html()
    assert html.count("<summary>As a table, 30 rows</summary>") == 1  # beside a figure, and only a long one
    assert html.count('">True</a>') == 3


def test_how_an_edit_was_judged_and_what_is_odd_with_its_labels() -> None:
    html = edit(False, checks={"the grid": "every edit was evaluated in full: <why>"}, notes=["Not its own."]).html()
    assert "every edit was evaluated in full: &lt;why&gt;" in html
    assert 'class="warning" role="alert">Not its own.' in html


def test_another_level_counts_otherwise() -> None:
    assert "2 lie outside the band that chance flips give (p < .1; fewer than one" in said(
        edit(False, alpha=0.1).html()
    )
    assert "1 lies outside the band that chance flips give (p < .05; fewer" in said(edit(False).html())


def test_labels_without_classes_and_layers_without_live_neurons() -> None:
    source = dissection({"lin2": 5})
    source.neurons = source.neurons.assign(accuracy=np.nan, accuracy_chance=np.nan)
    source.layers = source.layers.assign(accuracy=np.nan, accuracy_interpretable=np.nan, proportion_null=np.nan)
    source.shares, source.null = source.shares[:0], {"lin2": np.array([])}
    text = said(source.html())
    assert "nan" not in text.lower().replace("emodissect", "")
    assert "no neuron" in text


def test_train_page() -> None:
    test = faces(30)
    history = pd.DataFrame({"epoch": [0, 1, 2], "train/loss": [1.0, 0.8, 0.7], "val/acc": [0.4, 0.6, 0.5]})
    html = TrainPage(
        {"test/acc": 0.8, "test/acc_low": 0.7, "test/acc_high": 0.9, "val/acc": 0.6, "val/f1": 0.5},
        CLASSES,
        history,
        guesses(test, 6),
        test,
    ).html()
    text = said(html)
    assert "accuracy, test 80.0 % 95 %: 70.0 to 90.0 % accuracy, validation 60.0 %" in text
    assert "macro F1" not in text  # of validation only its accuracy, where there is a test
    assert "80.0 % of 30 test images are recognised (33.3 % by always naming" in text
    assert "highest in epoch 1: 60.0 %; the last is epoch 2." in text
    assert html.count('class="tile"') == 6
    assert "angry taken for happy, happy taken for sad and sad taken for angry, 2 images each." in text


def test_sweep_page_names_the_job_that_validation_chose_and_shows_errors() -> None:
    jobs = grid().drop(columns="chosen").assign(job=range(6), delta_val=[0, 0.002, 0, 0.004, 0, np.nan], error=None)
    jobs.loc[5, "error"] = "UserError: unknown layer <lin9>"
    html = SweepPage(jobs, command="python edit.py -m").html()
    text = said(html)
    assert (
        "6 jobs, 1 failed. Best by validation: lin2, τ = 0, factor 1.5 (+0.40 points); on test it gives +1.00" in text
    )
    assert "unknown layer <lin9>" in text
    assert html.count('<tr class="marked">') == 1
    assert " 1 −0.5 1.5 +0.20 " in text  # settings as typed; layer, rule and selection, the same in all jobs, left out
    assert "<details><summary>1 job failed</summary>" in html
    assert html.index("unknown layer") > html.index("1 job failed")
    assert "NLL" not in text  # what nobody sorts by is in sweep.csv
    assert "5 jobs, all finished" in said(SweepPage(jobs[:5]).html())
    trainings = pd.DataFrame(
        {"job": [0, 1], "model.width": [0.25, 0.5], "val/acc": [0.6, 0.7], "test/acc": [0.61, 0.69]}
    )
    text = said(SweepPage(trainings, "val/acc").html())
    assert "Best by validation: job 1 (70.0 %); on test it reaches 69.0 %" in text
    nothing = pd.DataFrame({"job": [0], "error": ["killed"]})
    assert "1 job, 1 failed" in said(SweepPage(nothing).html())


def test_a_sweep_leads_to_its_jobs_reports(tmp_path: Path) -> None:
    jobs = grid().drop(columns="chosen").assign(job=[str(i) for i in range(6)], delta_val=0.0)
    jobs["folder"] = [str(tmp_path / job) for job in jobs["job"]]
    for job in ("0", "3"):
        (tmp_path / job).mkdir()
        (tmp_path / job / "report.html").touch()
    html = SweepPage(jobs).html()
    links = [address for address in read(html).addresses if address.endswith("report.html")]
    assert links == ["0/report.html", "3/report.html"]
    assert "A job's number links to its report." in said(html)
    assert "6 jobs tie" in said(html)
    losing = SweepPage(jobs.assign(delta_val=[-0.01, -0.02, -0.03, -0.04, -0.05, -0.06])).summary()
    assert "On validation every edit loses accuracy: leaving the network alone is better than any of them." in losing


def test_tables_sort_by_value_not_by_text() -> None:
    frame = pd.DataFrame({"name": ["a"], "share": [0.5], "none": [np.nan]})
    html = page.table(
        frame,
        [
            Column("name"),
            Column("share", form="percent"),
            Column("none", form=2),
            Column("lacking"),
        ],
    )
    assert 'data-v="0.5">50.0 %' in html
    assert 'data-v="">–' in html
    assert "lacking" not in html


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    page.write(path, "first")
    with pytest.raises(UnicodeEncodeError):
        page.write(path, "\ud800")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*paths\.log_dir"):
        page.write(blocked / "report.html", "x")


def test_the_same_result_gives_the_same_page(dissected: str) -> None:
    first, again = (re.sub(r"Written [^<]*", "", html) for html in (dissected, dissection().html()))
    assert first == again


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.percent(0.69420451, 2), "69.42 %"),
        (words.percent(float("nan")), "–"),
        (words.points(-0.0021), "−0.21"),
        (words.points(-0.000001), "0.00"),
        (words.p_value(0.0004), "< .001"),
        (words.figure(-0.25), "−0.2500"),
        (words.figure(-12), "−12"),
        (words.figure(-1234.5), "−1234.50"),
        (words.figure(float("nan")), "–"),
        (words.figure("a name"), "a name"),
        (words.p_value(0.0123), ".012"),
        (words.p_value(0.41), ".41"),
        (words.p_value(0.999), "1.00"),
        (words.p_sentence(0.0001), "p < .001"),
        (words.number(4096), "4,096"),
        (words.plain(-0.5), "−0.5"),
        (words.count(1, "neuron"), "1 neuron"),
        (words.count(4096, "neuron"), "4,096 neurons"),
        (words.unbroken("-0.75 (-1 to 2026-11-22, a-1)"), "−0.75 (−1 to 2026-11-22, a-1)"),
        (words.expected(9), "fewer than one"),
        (words.expected(72), "about 4"),
        (words.unbroken("gain (p = .41) of 5 %"), "gain (p\u00a0=\u00a0.41) of 5\u00a0%"),
    ],
)
def test_numbers_as_people_read_them(made: str, expected: str) -> None:
    assert made == expected


def test_cards_say_whether_a_label_holds_on_held_out_images() -> None:
    sample = dissection()
    rows = sample.neurons[["layer", "neuron", "concept"]].iloc[::-1].reset_index(drop=True)  # any order
    found = rows.assign(pearson=0.43, pearson_low=0.4, pearson_high=0.46, pearson_q=0.001)
    found.loc[found["concept"] == "", ["pearson", "pearson_low", "pearson_high", "pearson_q"]] = np.nan
    found.loc[found["neuron"] == 3, "concept"] = "Nothing like it"
    assert "held_out" not in payload(sample.html())["neurons"]
    sample.held_out = found
    data = payload(sample.html())
    got, names = data["neurons"], sample.neurons["concept"]
    labels = [data["names"]["held_out_concept"][i] for i in got["held_out_concept"]]
    assert labels == ["Nothing like it" if n == 3 else c for n, c in zip(got["neuron"], names, strict=True)]
    assert (got["held_out"][:2], got["held_out_low"][1], got["held_out_high"][1]) == ([None, 0.43], 0.4, 0.46)
    assert (got["held_out_q"][1], data["level"]) == (0.001, 0.05)
    assert "holds on images that it was not chosen on" in said(sample.html())


def test_what_a_reader_must_know_of_the_labels_is_said_in_red() -> None:
    page = dissection()
    page.notes = ["clip=tiny was trained on drawn faces alone.", ""]
    assert "clip=tiny was trained on drawn faces alone." in page.warnings()
    assert "clip=tiny was trained on drawn faces alone." in page.html()

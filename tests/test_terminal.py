from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from composing import composed
from rich.console import Console
from rich.progress import Progress

from emodissect.core.progress import progress_bar, tracked
from emodissect.report import columns
from emodissect.report.columns import Column
from emodissect.report.terminal import (
    config_tree,
    figures_table,
    frame_table,
    matrix_table,
    too_wide,
    written,
)


def test_config_values_on_one_line() -> None:
    scale = {"_target_": "emodissect.editing.rules.Scale", "factor": 1.5, "label": None, "further": {}}
    assert written(scale) == "Scale(factor=1.5)"
    assert written({"_target_": "emodissect.concepts.TinyClip", "weights": None}) == "TinyClip"
    assert written({"limit": None, "split": "train", "names": ["a", "b"]}) == "split=train, names=[a, b]"
    assert written({"best": scale, "last": scale}) == "best, last"
    nested = {"noise": 1, "more": {"least": 0.1}, "edits": {"one": scale}}
    assert written(nested) == "noise=1, more={least=0.1}, edits={one}"
    assert written({f"concept {n}": [] for n in range(9)}) == "9: concept 0, concept 1, concept 2, …"


def test_the_config_tree_leaves_out_what_tells_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "logs" / "run"
    cfg = composed("edit", f"paths.cache_dir={tmp_path}/cache", "tags=[first]", run_dir=run_dir)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(config_tree(cfg))
    lines = console.export_text().splitlines()
    assert len(lines) < 55
    assert lines[0] == "edit"
    shown = "\n".join(lines)
    assert str(tmp_path) not in shown
    assert "null" not in shown.replace("null_draws", "").replace("null_studies", "")
    assert "soft_labels" not in shown
    for message in ("tags: [first]", "factor: 1.5", "model: VGG(", "callbacks: best, last", "train=7000"):
        assert message in shown


def test_bars_say_nothing_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(tracked([1, 2, 3], "counting")) == [1, 2, 3]
    assert list(tracked(iter("ab"), "letters", total=2)) == ["a", "b"]
    with progress_bar("moving", None) as advance:
        advance(1)
    assert capfd.readouterr() == ("", "")


def test_no_words_no_bar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for what in ("", None):
        assert list(tracked(range(3), what)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
    assert list(tracked(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capfd.readouterr().err


def test_a_bar_within_a_bar_passes_the_items_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with Progress():
        assert list(tracked(range(3), "inner")) == [0, 1, 2]


@pytest.mark.parametrize("width", [78, 80, 120])
def test_no_column_is_lost_on_a_narrow_terminal(width: int) -> None:
    names = (
        *("layer", "neurons", "dead", "similar", "share", "chance"),
        *("q below", "accuracy", "of those", "others", "last"),
    )
    frame = pd.DataFrame([[1000.0 + place for place in range(len(names))]], columns=names)
    console = Console(width=width, record=True, file=io.StringIO())
    table = frame_table(frame, "layers", console=console)
    assert table.padding == ((0, 0, 0, 0) if width < 100 else (0, 1, 0, 1))
    assert not too_wide(table, console)
    console.print(table)
    assert console.export_text().split()[-len(names) :] == [f"{value:,.0f}" for value in frame.iloc[0]]


def test_no_number_is_cut_where_headings_fold() -> None:
    headings = [
        "neurons",
        "sim > −0.5",
        "share",
        "by chance",
        "q < 0.05",
        "accuracy",
        "of > −0.5",
        "of others",
        "chance",
    ]
    frame = pd.DataFrame([["conv4b", *[0.123] * len(headings)]], columns=["layer", *headings])
    columns = [Column("layer"), *(Column(heading, form="percent") for heading in headings)]
    for width in range(74, 110):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(frame_table(frame, "", columns, console=console))
        row = console.export_text().rstrip().splitlines()[-1]
        assert row.count("%") == 9, width


def test_a_console_too_narrow_for_all_columns_is_spared_those_least_needed() -> None:
    frame = pd.DataFrame([[123456, 234567, 345678]], columns=["a", "b", "c"])
    columns = [Column("a", form="count", rank=1), Column("b", form="count", rank=2), Column("c", form="count")]
    for width, expected in ((25, "a b c"), (24, "a c"), (17, "a c"), (16, "c"), (9, "c")):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(frame_table(frame, "", columns, console=console))
        said = console.export_text()
        assert [name for name in "abc" if f"{frame[name][0]:,.0f}" in said] == expected.split(), width
        assert ("The files have further" in " ".join(said.split())) == (expected != "a b c") or width < 20


def widest(column: Column) -> tuple[object, str]:
    """A wide value, and its text if it must not be broken."""
    values = {"percent": 0.9999, "points": -0.12345, "p": 0.0001, "count": 28_709, "id": 4095, "setting": -0.125}
    if column.form in values or isinstance(column.form, int) or column.form == "figure":
        value = values.get(column.form, -12.3456)  # type: ignore[arg-type]
        return value, column.shown(value)
    if column.form == "flag":
        return True, "yes"
    names = {"layer": "features.denseblock4.conv2", "similarity": "cos_similarity_cubed"}
    return names.get(column.name, "Slightly Parted Lips"), ""


@pytest.mark.parametrize(
    "name",
    [name for name, table in vars(columns).items() if isinstance(table, tuple) and table and name.isupper()],
)
def test_no_table_is_cut_or_folds_a_number_at_80_columns(name: str) -> None:
    table = getattr(columns, name)
    frame = pd.DataFrame([{column.name: widest(column)[0] for column in table}])
    console = Console(width=80, record=True, file=io.StringIO())
    printed = frame_table(frame, "A title", table, console=console)
    assert not too_wide(printed, console)
    console.print(printed)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    kept = [str(column.header) for column in printed.columns]
    for column in columns.on_terminal(table, frame):
        if (column.short or column.heading) in kept and (text := widest(column)[1]):
            assert any(text in line for line in lines), column.name


def test_named_figures_fold_their_names_not_their_numbers() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    value = "+0.667 points (95 % −1.977 to +3.658)"
    console.print(figures_table({"best of as many random edits, had they been chosen on test": value}, "The edit"))
    assert any(value in line for line in console.export_text().splitlines())


def test_names_in_brackets_are_shown_as_they_are() -> None:
    """rich interprets brackets as markup, and a stray closing tag is an error."""
    console = Console(width=100, record=True, file=io.StringIO())
    names = ["[red]Smile[/]", "[/] x", "[link=file:///etc]y"]
    console.print(frame_table(pd.DataFrame({"concept": names, "[/]": [1, 2, 3]}), "of [bold]", console=console))
    console.print(figures_table({name: name for name in names}, "[/]"))
    console.print(matrix_table("[/]", "[/]", names, names, {(names[0], names[1]): "[red]1[/]"}))
    text = console.export_text()
    assert all(text.count(name) >= 4 for name in names)

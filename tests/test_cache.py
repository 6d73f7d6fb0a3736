from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest

from emodissect.core.cache import Cache, content_key
from emodissect.core.errors import UserError


def _write(text: str, calls: list[str] | None = None):
    def write(folder: Path) -> None:
        if calls is not None:
            calls.append(text)
        (folder / "a.txt").write_text(text)

    return write


def test_an_entry_is_made_once(cache: Cache) -> None:
    calls: list[str] = []
    first = cache.entry("things", {"x": 1}, _write("one", calls))
    second = cache.entry("things", {"x": 1}, _write("one", calls))
    assert first == second
    assert calls == ["one"]
    assert (first / "a.txt").read_text() == "one"


def test_another_key_is_another_entry(cache: Cache) -> None:
    assert cache.entry("things", {"x": 1}, _write("1")) != cache.entry("things", {"x": 2}, _write("2"))


def test_the_key_does_not_depend_on_the_order_of_names() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_entry_is_reported_and_made_anew(cache: Cache, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = cache.entry("things", {"x": 1}, _write("four"))
    file = folder / "a.txt"
    if damage == "truncate":
        file.write_text("fo")
    elif damage == "flip":
        file.write_text("fouR")
    else:
        file.unlink()
    assert not cache.holds("things", {"x": 1})
    with caplog.at_level(logging.WARNING):
        assert (cache.entry("things", {"x": 1}, _write("four")) / "a.txt").read_text() == "four"
    assert "damaged" in caplog.text


def test_a_failed_entry_leaves_nothing(cache: Cache) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cache.entry("things", {"x": 1}, fail)
    assert not cache.holds("things", {"x": 1})
    assert [p.name for p in (cache.root / "things").iterdir() if p.is_dir()] == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        Cache(tmp_path / "file" / "cache").entry("things", {}, _write("x"))


def test_an_entry_made_anew_replaces_the_old_one_only_when_it_is_whole(cache: Cache) -> None:
    folder = cache.entry("things", {"x": 1}, _write("old"))

    def fail(unfinished: Path) -> None:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cache.entry("things", {"x": 1}, fail, anew=True)
    assert (folder / "a.txt").read_text() == "old"
    assert cache.holds("things", {"x": 1})
    cache.entry("things", {"x": 1}, _write("new"), anew=True)
    assert (folder / "a.txt").read_text() == "new"


def test_a_full_disk_is_told_whatever_a_library_raises(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr("emodissect.core.cache.disk_is_full", lambda _: True)
    with pytest.raises(UserError, match=r"full.*paths\.cache_dir"):
        cache.entry("things", {"x": 1}, fail)


def _make(root: str, log: str) -> None:
    def write(folder: Path) -> None:
        with open(log, "a") as file:
            file.write("made\n")
        (folder / "a.txt").write_text("x" * 1000)

    Cache(root).entry("things", {"x": 1}, write)


def test_processes_that_want_one_entry_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = tmp_path / "made.txt"
    jobs = [context.Process(target=_make, args=(str(tmp_path / "cache"), str(made))) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    assert made.read_text() == "made\n"

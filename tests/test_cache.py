from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from emodissect.core import cache as cache_module
from emodissect.core.atomic_files import atomic_write
from emodissect.core.cache import Cache, file_hash
from emodissect.core.errors import UserError
from emodissect.core.fingerprint import content_key


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


def test_a_failed_entry_is_unlocked_while_its_error_is_kept(cache: Cache) -> None:
    """The error keeps its frames alive, and these the lock: releasing it must not wait for their collection."""

    def fail(folder: Path) -> None:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError) as kept:
        cache.entry("things", {"x": 1}, fail)
    assert (Cache(cache.root).entry("things", {"x": 1}, _write("one")) / "a.txt").exists()
    assert kept.traceback


def test_a_failed_entry_leaves_nothing(cache: Cache) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cache.entry("things", {"x": 1}, fail)
    assert not cache.holds("things", {"x": 1})
    assert [p.name for p in (cache.root / "things").iterdir() if p.is_dir()] == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        Cache(tmp_path / "file" / "cache").entry("things", {}, _write("x"))


def test_an_entry_made_anew_replaces_the_old_one_only_when_it_is_whole(cache: Cache) -> None:
    folder = cache.entry("things", {"x": 1}, _write("old"))

    def fail(unfinished: Path) -> None:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cache.entry("things", {"x": 1}, fail, recompute=True)
    assert (folder / "a.txt").read_text() == "old"
    assert cache.holds("things", {"x": 1})
    newer = cache.entry("things", {"x": 1}, _write("new"), recompute=True)
    assert (newer / "a.txt").read_text() == "new"
    assert cache.path("things", {"x": 1}) == cache.entry("things", {"x": 1}, _write("other")) == newer


def test_who_reads_an_entry_keeps_it_while_others_replace_it(tmp_path: Path) -> None:
    reader, writer = Cache(tmp_path), Cache(tmp_path)
    old = reader.entry("things", {"x": 1}, _write("old"))
    for number in range(3):
        new = writer.entry("things", {"x": 1}, _write(f"new {number}"), recompute=True)
    assert (old / "a.txt").read_text() == "old"
    assert (new / "a.txt").read_text() == "new 2"
    del reader
    new = Cache(tmp_path).entry("things", {"x": 1}, _write("last"), recompute=True)
    del writer
    last = Cache(tmp_path).entry("things", {"x": 1}, _write("last"), recompute=True)
    assert [path for path in (tmp_path / "things").iterdir() if path.is_dir()] == [last]
    assert not list((tmp_path / ".readers").iterdir())


@pytest.mark.parametrize(
    "seal",
    ["[]", "3", "null", '"text"', "{}", '{"files": []}', '{"files": {"a.txt": 4}}', '{"files": {"a.txt": {}}}',
     '{"files": {"a.txt": {"bytes": 4}}}', '{"files": {"a.txt": {"bytes": 4, "xxh3_128": 1}}}', '{"files": {}}',
     '{"files": {"/dev/zero": {"bytes": 0, "xxh3_128": ""}}}', '{"files": {"../a.txt": {"bytes": 4}}}',
     "[" * 100_000, "\ufeff{}", "{"],
)  # fmt: skip
def test_a_seal_of_another_shape_is_a_damaged_entry(cache: Cache, seal: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = cache.entry("things", {"x": 1}, _write("four"))
    (folder / "entry.json").write_text(seal, encoding="utf-8")
    assert not cache.holds("things", {"x": 1})
    assert (cache.entry("things", {"x": 1}, _write("five")) / "a.txt").read_text() == "five"
    assert "damaged" in caplog.text


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_file_or_link_in_place_of_an_entry_is_left_alone(cache: Cache, kind: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    place = cache.path("things", {"x": 1})
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    made = cache.entry("things", {"x": 1}, _write("four"))
    assert (made / "a.txt").read_text() == "four"
    assert cache.entry("things", {"x": 1}, _write("other")) == made
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
    assert place.is_file() or place.is_symlink()


def test_an_entry_moved_to_another_key_is_damaged(cache: Cache) -> None:
    folder = cache.entry("things", {"x": 1}, _write("one"))
    folder.rename(cache.path("things", {"x": 2}))
    assert not cache.holds("things", {"x": 2})


def test_entries_sealed_with_sha256_are_read(cache: Cache) -> None:
    folder = cache.entry("things", {"x": 1}, _write("one"))
    sealed = {"bytes": 3, "sha256": file_hash(folder / "a.txt")}
    (folder / "entry.json").write_text(json.dumps({"key": {"x": 1}, "files": {"a.txt": sealed}}))
    assert cache.holds("things", {"x": 1})
    (folder / "a.txt").write_text("two")
    assert not cache.holds("things", {"x": 1})


def test_an_entry_that_cannot_be_read_counts_as_absent(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def read(folder: Path) -> int:
        return json.loads((folder / "a.txt").read_text())["field"]

    cache.entry("things", {"x": 1}, _write('{"another field": 1}'))
    assert cache.held("things", {"x": 1}, read) is None
    assert cache.value("things", {"x": 1}, _write('{"field": 2}', calls), read) == 2
    assert "is not of this version (KeyError: 'field'); it is recomputed" in caplog.text
    assert (
        cache.value("things", {"x": 1}, _write('{"field": 3}', calls), read)
        == 2
        == cache.held("things", {"x": 1}, read)
    )
    assert len(calls) == 1
    assert cache.held("things", {"x": 2}, read) is None
    with pytest.raises(KeyError):  # what was just made is not made a third time
        cache.value("things", {"x": 3}, _write("{}", calls), read)
    assert len(calls) == 3


def test_large_files_are_compared_too_and_read_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        (folder / "large").write_bytes(bytes(2**27))

    folder = cache.entry("things", {"x": 1}, write)
    read: list[Path] = []
    digest = cache_module._digest
    monkeypatch.setattr(cache_module, "_digest", lambda path, method: read.append(path) or digest(path, method))
    assert cache.holds("things", {"x": 1})
    assert cache.holds("things", {"x": 1})
    assert len(read) == 1
    with open(folder / "large", "r+b") as file:  # 200 kB of another content in the middle
        file.seek(2**26 + 5)
        file.write(b"1" * 200_000)
    assert not cache.holds("things", {"x": 1})
    assert not Cache(cache.root).holds("things", {"x": 1})


def test_files_of_an_entry_carry_the_umasks_mode(cache: Cache) -> None:
    before = os.umask(0o027)
    try:
        folder = cache.entry("things", {"x": 1}, _write("one"))
        with atomic_write(cache.root / "b.txt") as unfinished:
            unfinished.write_text("b")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "a.txt", cache.root / "b.txt")]
    assert [oct(mode) for mode in modes] == ["0o750", "0o640", "0o640"]


def test_a_full_disk_is_reported_whatever_a_library_raises(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
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


def _use(root: str, number: int) -> None:
    """Repeatedly recomputes and reads, like processes with reuse=false; each read must see a single version."""

    def write(folder: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(f"{number} {os.urandom(4).hex()} " * 1000 if name == "a.txt" else "b")
        (folder / "b.txt").write_text((folder / "a.txt").read_text())

    cache = Cache(root)
    for _ in range(15):
        folder = cache.entry("things", {"x": 1}, write, recompute=number % 2 == 0)
        assert (folder / "a.txt").read_text() == (folder / "b.txt").read_text()


def test_eight_processes_that_replace_and_read_one_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_use, args=(str(tmp_path / "cache"), number)) for number in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 8
    assert not list((tmp_path / "cache" / "things").glob("*.unfinished"))

from __future__ import annotations

import json
from pathlib import Path

from emodissect.sweep import sweep_table, swept_words


def _job(folder: Path, number: int, overrides: list[str]) -> Path:
    job = folder / str(number)
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {word}" for word in overrides))
    return job


def test_finished_failed_and_killed_jobs_are_rows(tmp_path: Path) -> None:
    done = _job(tmp_path, 0, ["layer=lin2", "tau=0.5"])
    (done / "summary.json").write_text(json.dumps({"task": "edit", "delta_val": 0.01, "layers": [{"x": 1}]}))
    failed = _job(tmp_path, 1, ["layer=lin9", "tau=-1"])
    (failed / "error.json").write_text(json.dumps({"error": "no layer lin9"}))
    _job(tmp_path, 10, ["layer=lin1"])
    table = sweep_table(tmp_path)
    assert list(table["job"]) == ["0", "1", "10"]
    assert list(table["layer"]) == ["lin2", "lin9", "lin1"]
    assert table["tau"].tolist()[:2] == [0.5, -1]
    assert table["delta_val"][0] == 0.01
    assert "layers" not in table
    assert table["error"].tolist()[1:] == ["no layer lin9", "no summary: killed, or still at work"]


def test_words_that_differ_between_jobs_were_swept(tmp_path: Path) -> None:
    for number, seed in enumerate((1, 2)):
        _job(tmp_path, number, ["layer=lin2", f"seed={seed}", "+note=x"])
    assert swept_words(tmp_path) == ["seed"]

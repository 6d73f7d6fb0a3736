from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
from composing import composed

from emodissect.app.published import compare_grids, compare_shares, compare_training, published, published_layers


def test_the_published_grid_stands_beside_this_runs(tmp_path: Path) -> None:
    found = published(composed("edit", "experiment=published_sweep", "data.path=x", run_dir=tmp_path))
    factors = [1, 1.5, 2, 2.5, 3, 3.5]
    here = pd.DataFrame([{"tau": 0.0, "factor": f, "delta": 0.001 * n} for n, f in enumerate(factors)])
    frame = compare_grids(found, here)
    assert list(frame.columns) == ["tau", "x 1", "x 1.5", "x 2", "x 2.5", "x 3", "x 3.5"]
    row = frame.set_index("tau").loc["0"]
    assert row["x 1.5"] == "+0.21 / +0.10"  # 69.629 - 69.420 published, one thousandth here
    assert frame.set_index("tau").loc["1"]["x 2"] == "–"


def test_the_published_layer_table_is_the_studys(tmp_path: Path) -> None:
    layers = published_layers(composed("dissect", "experiment=published_layer_table", "data.path=x", run_dir=tmp_path))
    assert layers is not None
    assert layers.set_index("layer").loc["lin2", "interpretable"] == 3835
    assert published_layers(composed("dissect", run_dir=tmp_path)) is None


def test_published_shares(tmp_path: Path) -> None:
    cfg = composed("dissect", "experiment=published_concept_shares", "data.path=x", run_dir=tmp_path)
    shares = pd.DataFrame({"layer": ["lin2"], "concept": ["wide open eyes"], "neurons": [3], "share": [0.25]})
    labels = cast(Any, SimpleNamespace(shares=shares))

    def this_run(*words: str) -> list[dict[str, str]]:
        (extra,) = compare_shares(cfg, labels, words)
        assert extra.frame is not None
        return extra.frame.to_dict("records")

    row = {"concept": "Wide Open Eyes", "published": "19.4 %"}
    assert this_run("Wide open eyes") == [{**row, "this run": "25.0 %"}]
    assert this_run("Smile") == [{**row, "this run": "not among the concepts"}]


def test_a_trainings_published_accuracy_stands_beside_its_own(tmp_path: Path) -> None:
    cfg = composed("train", "experiment=khaireddin2021", "data.path=x", run_dir=tmp_path)
    (extra,) = compare_training(cfg, {"test/acc": 0.7, "val/acc": 0.6})
    assert extra.frame is not None
    assert extra.frame.to_dict("records") == [{"figure": "test/acc", "published": "73.06 %", "this run": "70.00 %"}]
    assert compare_training(cfg, {"val/acc": 0.6}) == []

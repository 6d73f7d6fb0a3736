"""What is sent to W&B: an offline run read back, and lineage online."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import wandb
from composing import SMALL, composed
from lightning.pytorch.loggers import WandbLogger
from wandb_file import RunFile, read_run

from emodissect.app.edit import edit
from emodissect.app.train import train
from emodissect.core.errors import UserError
from emodissect.lightning.sinks import Artifact
from emodissect.lightning.tracking import log_artifact, log_tables
from emodissect.report.dashboard import parts

OFFLINE = [word for word in SMALL if not word.startswith("logger=")] + ["logger=default", "logger.wandb.mode=offline"]

NULL = ["study.ablate_concepts=true", "study.null_studies=2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit that trained, dissected and edited, logged offline."""
    home = tmp_path_factory.mktemp("offline")
    words = [
        *OFFLINE,
        "tau=[-1,0]",
        "factor=[1.5,2]",
        "tags=[small]",
        "layer=[conv4b,lin2]",
        *NULL,
        f"paths.cache_dir={home / 'cache'}",
    ]
    edit(composed("edit", *words, f"paths.log_dir={home}", run_dir=home / "run"))
    return home / "run"


@pytest.fixture(scope="module")
def kept(run_folder: Path) -> RunFile:
    return read_run(run_folder)


def test_the_run_says_what_it_is(kept: RunFile) -> None:
    assert (kept.run.job_type, list(kept.run.tags), kept.run.project) == ("edit", ["small"], "emodissect")
    assert kept.exit_code == 0


def test_the_config_is_resolved(kept: RunFile) -> None:
    assert kept.config["layer"]["names"] == ["conv4b", "lin2"]
    assert kept.config["selection"]["tau"] == [-1, 0]
    assert "${" not in str(kept.config)


def test_curves_are_history_and_results_are_summary(kept: RunFile) -> None:
    """Every history key becomes a chart, so only curves, tables and images are logged there."""
    assert len(kept.logged("train/loss")) >= 1
    assert 0 <= kept.logged("val/acc")[-1] <= 1
    assert len(kept.logged("val/acc")) == len(kept.logged("train/loss"))  # the best checkpoint's are under best/
    assert kept.summary["best/val/acc"] == max(kept.logged("val/acc"))
    assert kept.summary["dissect/lin2/interpretable"] >= 0
    assert abs(kept.summary["edit/test/delta"]) <= 1
    assert 0 < kept.summary["edit/test/p_value"] <= 1
    history = {name for row in kept.history for name in row if not name.startswith("_")}
    curves = {name for name in history if name.startswith(("train/", "val/"))}
    media = {name for name in history if isinstance(kept.logged(name)[0], dict)}
    assert history == curves | media | {"epoch", "trainer/global_step"}
    assert len(curves) <= 20
    assert len([name for name in kept.summary if name.startswith(("edit/", "dissect/", "best/"))]) > 60


def test_the_run_is_named_by_what_it_is(kept: RunFile) -> None:
    assert kept.run.display_name == "edit [conv4b,lin2] vgg sketches"


def test_a_cached_training_logs_its_curves_and_its_checkpoint(run_folder: Path) -> None:
    cache = f"paths.cache_dir={run_folder.parent / 'cache'}"
    words = [*OFFLINE, cache, f"paths.log_dir={run_folder.parent}"]
    train(composed("train", *words, run_dir=run_folder.parent / "cached"))
    cached = read_run(run_folder.parent / "cached")
    first = read_run(run_folder)
    for name in ("train/loss", "val/acc", "train/lr"):
        assert cached.logged(name) == pytest.approx(first.logged(name)), name
    assert [row["epoch"] for row in cached.history if "val/acc" in row] == [0]
    assert cached.artifacts["classifier"]["metadata"] == first.artifacts["classifier"]["metadata"]
    assert cached.logged("test/confusion")[0]["_type"] == "image-file"
    assert 0 <= cached.summary["test/acc"] <= 1
    assert not cached.logged("test/acc")


def test_training_is_drawn_over_epochs(kept: RunFile) -> None:
    assert {name: step for name, step in kept.steps.items() if step} == {
        "train/*": "epoch",
        "val/*": "epoch",
        "dissect/*": "trainer/global_step",
        "edit/*": "trainer/global_step",
    }
    assert all("epoch" in row for row in kept.history if "val/acc" in row)


def test_every_panel_of_an_edit_finds_its_figures(kept: RunFile) -> None:
    """Panels that need a test run, label quality or a sweep are checked in the tests of those runs."""
    elsewhere = re.compile(
        r"test/(acc|f1|ece|confusion)|sweep/|dissect/label_quality|.*held_out|.*_lin1$|dissect/lin1/.*"
    )
    logged = {name for row in kept.history for name in row} | set(kept.summary)
    for panel in (panel for part in parts() for panel in part.panels):
        for metric in panel.metrics:
            if not elsewhere.match(metric):
                assert any(re.fullmatch(metric, name) for name in logged), metric


def test_the_summary_has_what_one_sorts_by(kept: RunFile) -> None:
    for name in ("edit/delta", "edit/p_value", "edit/tau", "edit/factor", "edit/verdict", "edit/layer"):
        assert name in kept.summary, name


def test_tables_and_images_are_there_with_their_files(kept: RunFile, run_folder: Path) -> None:
    files = next(run_folder.glob("wandb/offline-run-*/files"))
    fewest = {"dissect/neurons": 200, "dissect/neuron_cards": 1, "edit/grid": 8, "edit/control_draws": 42}
    for name, rows in fewest.items():
        (table,) = kept.logged(name)
        assert table["_type"] == "table-file"
        assert table["nrows"] >= rows, name
        assert (files / table["path"]).is_file()
    (image,) = kept.logged("edit/grid_lin2")
    assert image["_type"] == "image-file"
    assert (files / image["path"]).is_file()
    assert kept.logged("dissect/lin2/similarity")[0]["_type"] == "histogram"


def test_artifacts_point_to_what_they_were_made_from(kept: RunFile) -> None:
    ours = {name for name, artifact in kept.artifacts.items() if artifact["type"] != "run_table"}
    assert ours == {"classifier", "neuron-labels", "edited-classifier"}
    assert kept.artifacts["neuron-labels"]["metadata"]["made_from"] == ["classifier"]
    edited = kept.artifacts["edited-classifier"]
    assert edited["type"] == "edited-checkpoint"
    assert edited["metadata"]["made_from"] == ["classifier", "neuron-labels"]
    assert edited["metadata"]["weights"] == kept.artifacts["classifier"]["metadata"]["weights"]
    assert edited["files"] == ["edited.ckpt"]


def test_a_failed_run_is_marked_failed_and_ends(tmp_path: Path) -> None:
    words = [*OFFLINE, f"paths.cache_dir={tmp_path / 'cache'}", f"paths.log_dir={tmp_path}", "optimizer.lr=1e30"]
    with pytest.raises(UserError, match="loss"):
        train(composed("train", *words, run_dir=tmp_path / "run"))
    assert read_run(tmp_path / "run").exit_code == 1
    assert wandb.run is None


class OnlineRun:
    """Stands in for an online W&B run."""

    offline = disabled = False

    def __init__(self) -> None:
        self.used: list[str] = []
        self.logged: list[wandb.Artifact] = []

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.used.append(artifact.name)

    def log_artifact(self, artifact: wandb.Artifact) -> None:
        self.logged.append(artifact)


def wandb_logger_of(run: Any) -> WandbLogger:
    logger = WandbLogger(project="p", offline=True)
    logger._experiment = run
    return logger


def test_online_what_was_used_is_marked_as_used(tmp_path: Path) -> None:
    (tmp_path / "weights.ckpt").write_bytes(b"weights")
    (tmp_path / "neurons.parquet").write_bytes(b"labels")
    run = OnlineRun()
    classifier = Artifact("classifier", "checkpoint", [tmp_path / "weights.ckpt"], {"weights": "abc"})
    labels = Artifact("neuron-labels", "labels", [tmp_path / "neurons.parquet"])
    log_artifact([wandb_logger_of(run)], labels, [classifier])
    assert run.used == ["classifier"]
    (sent,) = run.logged
    assert (sent.name, sent.type, sent.metadata["made_from"]) == ("neuron-labels", "labels", ["classifier"])


def test_a_server_that_refuses_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refused(*_: Any) -> None:
        raise wandb.Error("quota exceeded")

    run = SimpleNamespace(offline=False, disabled=False, log_artifact=refused, use_artifact=refused, log=refused)
    (tmp_path / "x").write_bytes(b"x")
    log_artifact([wandb_logger_of(run)], Artifact("classifier", "checkpoint", [tmp_path / "x"]))
    log_tables([wandb_logger_of(run)], {"dissect/full": pd.DataFrame({"a": [1, 2]})})
    assert caplog.text.count("quota exceeded") == 2
    assert "WandbLogger failed to log table dissect/full" in caplog.text


def test_tables_are_sent_but_empty_ones() -> None:
    sent: dict[str, wandb.Table] = {}
    logger = wandb_logger_of(SimpleNamespace(log=sent.update))
    log_tables([logger], {"dissect/full": pd.DataFrame({"a": [1, 2]}), "dissect/empty": pd.DataFrame({"a": []})})
    assert {name: table.data for name, table in sent.items()} == {"dissect/full": [[1], [2]]}

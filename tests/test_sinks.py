"""The same results in each logging back end, and failing back ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from composing import CONF, SMALL, composed
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import OmegaConf
from PIL import Image

from emodissect.app.dissect import dissect
from emodissect.app.edit import edit
from emodissect.lightning.sinks import Artifact, Picture, Sink, register_sink, sink_for, sinks_of
from emodissect.lightning.tracking import log_history, log_metrics, log_tables

FRAME = pd.DataFrame({"neuron": [0, 1], "label": ["a|b", "c"], "image": [Picture(np.zeros((4, 4), np.uint8))] * 2})


def fill(sink: Sink, folder: Path) -> None:
    """Fills a sink with one value of each kind."""
    Image.new("RGB", (6, 4), "red").save(folder / "figure.png")
    (folder / "weights.ckpt").write_bytes(b"weights")
    sink.config({"seed": 3, "optimizer": {"lr": 0.1}})
    for epoch in range(3):
        sink.metrics({"val/acc": epoch / 10, "epoch": epoch}, step=epoch * 5)
    sink.summary({"edit/delta": 0.25, "edit/verdict": "no gain"})
    sink.table("edit/grid", FRAME)
    sink.image("edit/confusion", folder / "figure.png")
    sink.histogram("dissect/lin2/similarity", [0.0, 0.1, 0.2])
    source = Artifact("labels", "labels", [])
    sink.artifact(Artifact("classifier", "checkpoint", [folder / "weights.ckpt"], {"weights": "abc"}), [source])


def test_csv_keeps_curves_results_config_and_tables(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "csv", "")
    sink = sink_for(logger)
    fill(sink, tmp_path)
    assert sink.finish(failed=False) == logger.log_dir
    kept = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert kept["val/acc"].dropna().tolist() == [0, 0.1, 0.2]
    assert kept["edit/delta"].dropna().tolist() == [0.25]
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())["optimizer"] == {"lr": 0.1}
    table = pd.read_csv(Path(logger.log_dir) / "edit" / "grid.csv")
    assert table.to_dict("list") == {"neuron": [0, 1], "label": ["a|b", "c"]}


def test_tensorboard_keeps_curves_results_tables_and_images(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(str(tmp_path), "tb", "")
    sink = sink_for(logger)
    fill(sink, tmp_path)
    assert sink.finish(failed=False) == f"tensorboard --logdir {logger.log_dir}"
    kept = events.EventAccumulator(logger.log_dir)
    kept.Reload()
    assert [(point.step, round(point.value, 3)) for point in kept.Scalars("val/acc")] == [(0, 0), (5, 0.1), (10, 0.2)]
    assert [point.value for point in kept.Scalars("edit/delta")] == [0.25]
    (picture,) = kept.Images("edit/confusion")
    assert (picture.height, picture.width) == (4, 6)
    assert kept.Histograms("dissect/lin2/similarity")[0].histogram_value.num == 3
    (table,) = kept.Tensors("edit/grid/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines()[2] == "| 0 | a\\|b |"
    assert kept.Tensors("edit/verdict/text_summary")[0].tensor_proto.string_val == [b"no gain"]


def test_mlflow_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    entry = OmegaConf.load(CONF / "logger" / "mlflow.yaml")
    entry = OmegaConf.merge(entry, {"mlflow": {"save_dir": str(tmp_path / "runs"), "run_name": "lin2"}})
    entry.mlflow.tags = {"task": "edit"}
    logger = instantiate(entry.mlflow)
    sink = sink_for(logger)
    fill(sink, tmp_path)
    place = sink.finish(failed=False)
    assert place is not None
    assert "mlflow ui --backend-store-uri sqlite:///" in place
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("emodissect").experiment_id])
    assert (run.info.run_name, run.info.status) == ("lin2", "FINISHED")
    assert run.data.params == {"seed": "3", "optimizer/lr": "0.1"}
    assert run.data.metrics["edit/delta"] == 0.25
    assert (run.data.tags["edit/verdict"], run.data.tags["task"]) == ("no gain", "edit")
    curve = client.get_metric_history(run.info.run_id, "val/acc")
    assert [(point.step, point.value) for point in curve] == [(0, 0), (5, 0.1), (10, 0.2)]
    kept = tmp_path / "kept"
    kept.mkdir()
    client.download_artifacts(run.info.run_id, "", str(kept))
    assert yaml.safe_load((kept / "config.yaml").read_text())["optimizer"] == {"lr": 0.1}
    assert pd.read_json(kept / "edit" / "grid.json", orient="split")["label"].tolist() == ["a|b", "c"]
    assert (kept / "classifier" / "weights.ckpt").read_bytes() == b"weights"
    assert yaml.safe_load((kept / "classifier" / "artifact.yaml").read_text())["made_from"] == ["labels"]
    assert (kept / "edit" / "figure.png").is_file()
    assert (tmp_path / "runs" / "mlflow").is_dir()  # and nothing in the working directory


class Broken(CSVLogger):
    """A logger that fails whenever it is sent something."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is gone")

    log_hyperparams = save = finalize = log_metrics  # type: ignore[assignment]


def test_a_logger_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loggers = [Broken(tmp_path, "one"), CSVLogger(tmp_path, "two")]
    for sink in sinks_of(loggers):
        sink.config({"seed": 1})
    log_metrics(loggers, {"edit/delta": 0.5})
    log_tables(loggers, {"edit/grid": FRAME})
    for sink in sinks_of(loggers):
        sink.finish(failed=False)
    assert caplog.text.count("the disk is gone") == 3
    assert pd.read_csv(Path(loggers[1].log_dir) / "metrics.csv")["edit/delta"].tolist() == [0.5]


@pytest.mark.parametrize("verb", ["dissect", "edit"])
def test_results_are_kept_when_every_logger_fails(
    verb: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[set[str]] = []

    def note(*_: object) -> None:
        written.append({path.name for path in (tmp_path / "run").iterdir()})
        raise RuntimeError("no network")

    for method in ("table", "image", "histogram", "artifact"):
        monkeypatch.setattr(Sink, method, note)
        monkeypatch.setattr("emodissect.lightning.sinks.csv.CSVSink.table", note)
    task = {"dissect": dissect, "edit": edit}[verb]
    words = [*SMALL, f"paths.cache_dir={tmp_path / 'cache'}", f"paths.log_dir={tmp_path}", "fit=false"]
    task(composed(verb, *(w for w in words if verb == "dissect" or w != "fit=false"), run_dir=tmp_path / "run"))
    assert "no network" in caplog.text
    after_training = [names for names in written if "neurons.csv" in names]
    assert after_training
    assert all({"report.html", "summary.json", "manifest.json"} <= names for names in after_training)


def test_a_sink_of_ones_own_is_found_by_class_and_inherited() -> None:
    class Notes(DummyLogger):
        pass

    class Longer(Notes):
        pass

    seen: dict[str, float | str] = {}

    @register_sink(Notes)
    class NotesSink(Sink):
        def summary(self, values: Mapping[str, float | str]) -> None:
            seen.update(values)

    log_metrics([Longer()], {"edit/delta": 0.5, "edit/p_value": float("nan")})
    assert seen == {"edit/delta": 0.5}


def test_a_training_done_before_is_sent_epoch_by_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "csv", "")
    log_history([logger], pd.DataFrame({"epoch": [0, 1], "val/acc": [0.1, None], "train/loss": [2.0, 1.0]}))
    sink_for(logger).finish(failed=False)
    kept = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert kept["epoch"].tolist() == [0, 1]
    assert kept["val/acc"].isna().tolist() == [False, True]

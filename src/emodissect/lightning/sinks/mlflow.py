"""MLflow: parameters and metrics; figures, tables and checkpoints as artifacts. Needs the extra ``mlflow``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock
from lightning.pytorch.loggers import Logger, MLFlowLogger

from emodissect.core.errors import UserError, missing_extra
from emodissect.lightning.sinks.sink import Artifact, Sink, register_sink, without_pictures

DATABASE = "mlflow.db"

PARAMETERS = 250
"""Length in characters to which Lightning cuts a parameter's value; the artifact ``config.yaml`` is complete."""


def mlflow_logger(
    *,
    experiment_name: str,
    save_dir: str,
    tracking_uri: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Logger:
    """A logger for an MLflow server, or for an SQLite file that ``mlflow ui`` can open.

    Args:
        experiment_name, run_name, tags: as in MLflow; a missing experiment is created.
        save_dir: folder of ``mlflow.db`` and the artifacts if there is no server.
        tracking_uri: the server's address, or null for the file.

    Raises:
        UserError: MLflow is not installed, or cannot be reached.
    """
    try:
        import mlflow
    except ImportError as error:
        raise UserError(missing_extra("logger=mlflow", "mlflow", "mlflow")) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    folder = Path(save_dir).absolute()
    location = None
    if tracking_uri is None:
        folder.mkdir(parents=True, exist_ok=True)
        tracking_uri, location = f"sqlite:///{folder / DATABASE}", (folder / "mlflow").as_uri()
    client = mlflow.MlflowClient(tracking_uri)
    try:
        if location is None:
            _create(client, experiment_name, None)
        else:  # concurrent jobs of a sweep must not create the database twice
            with FileLock(folder / f".{DATABASE}.lock"):
                _create(client, experiment_name, location)
    except mlflow.MlflowException as error:
        raise UserError(
            f"MLflow at {tracking_uri} cannot be used ({error}). Use logger.mlflow.tracking_uri=null for a local file, "
            "or logger=csv to log without MLflow."
        ) from error
    return MLFlowLogger(experiment_name, run_name=run_name, tracking_uri=tracking_uri, tags=dict(tags or {}))


def _create(client: Any, name: str, location: str | None) -> None:
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=location)


@register_sink("lightning.pytorch.loggers.mlflow.MLFlowLogger")
class MLflowSink(Sink):
    """Text in the summary is logged as tags, tables as ``<name>.json``, which MLflow displays as tables."""

    def config(self, values: Mapping[str, Any]) -> None:
        super().config(values)
        self.logger.experiment.log_text(
            self.logger.run_id, yaml.safe_dump(dict(values), sort_keys=False), "config.yaml"
        )

    def summary(self, values: Mapping[str, float | str]) -> None:
        super().summary(values)
        for name, value in values.items():
            if isinstance(value, str):
                self.logger.experiment.set_tag(self.logger.run_id, name, value)

    def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
        path = f"{name}.json" if step is None else f"{name}-{step}.json"  # MLflow appends to a table of the same name
        self.logger.experiment.log_table(self.logger.run_id, without_pictures(frame), path)

    def image(self, name: str, path: Path, step: int | None = None) -> None:
        folder = name.rpartition("/")[0] if step is None else f"{name.rpartition('/')[0]}/{step}"
        self.logger.experiment.log_artifact(self.logger.run_id, str(path), folder)

    def artifact(self, artifact: Artifact, made_from: Sequence[Artifact] = ()) -> None:
        client, run = self.logger.experiment, self.logger.run_id
        for path in artifact.paths:
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run, str(path), artifact.name)
        described = {"kind": artifact.kind, "made_from": [used.name for used in made_from], **artifact.metadata}
        client.log_text(run, yaml.safe_dump(described, sort_keys=False), f"{artifact.name}/artifact.yaml")

    def finish(self, failed: bool) -> str | None:
        super().finish(failed)
        return f"run {self.logger.run_id}; view it with: mlflow ui --backend-store-uri {self.logger._tracking_uri}"

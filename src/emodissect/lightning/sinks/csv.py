"""CSV files: ``metrics.csv`` and ``hparams.yaml`` by Lightning, and each table as a file next to them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from emodissect.core.atomic_files import atomic_write
from emodissect.lightning.sinks.sink import Sink, register_sink, without_pictures


@register_sink("lightning.pytorch.loggers.csv_logs.CSVLogger")
class CSVSink(Sink):
    """Tables become ``<log_dir>/<name>.csv``; a later one of the same name replaces it. Images are skipped."""

    def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
        path = Path(self.logger.log_dir) / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            without_pictures(frame).to_csv(unfinished, index=False)

    def finish(self, failed: bool) -> str | None:
        super().finish(failed)
        return str(self.logger.log_dir)

"""TensorBoard: curves, images and histograms; tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emodissect.lightning.sinks.sink import Sink, register_sink, without_pictures

ROWS = 100
"""Maximum number of rows of a table; TensorBoard has no tables, and cuts long text."""


@register_sink("lightning.pytorch.loggers.tensorboard.TensorBoardLogger")
class TensorBoardSink(Sink):
    """Figures go to the Images tab, tables and text to the Text tab, the config to HParams and ``hparams.yaml``."""

    def summary(self, values: Mapping[str, float | str]) -> None:
        super().summary(values)
        for name, value in values.items():
            if isinstance(value, str):
                self.logger.experiment.add_text(name, value)

    def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
        self.logger.experiment.add_text(name, markdown(without_pictures(frame).head(ROWS)), step)

    def image(self, name: str, path: Path, step: int | None = None) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        self.logger.experiment.add_histogram(name, np.asarray(values), step)

    def finish(self, failed: bool) -> str | None:
        super().finish(failed)
        return f"tensorboard --logdir {self.logger.log_dir}"


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

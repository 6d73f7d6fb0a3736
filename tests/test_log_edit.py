"""The edit's callback: an edit beside the unedited network in Lightning's loops, logged to every logger."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from emodissect.data.images import Batch, ImageSet, image_loader
from emodissect.editing.edit import Edit, edited
from emodissect.lightning.callbacks import LogEdit
from emodissect.models.predictions import predict
from emodissect.studies.comparison import compare


class Faces(LightningModule):
    """A network on 4 x 4 faces with a training that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(OrderedDict(lin=nn.Linear(16, 8), relu=nn.ReLU(), out=nn.Linear(8, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.flatten(1).float() / 128 - 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch.images).sum() * 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def test_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def faces() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (90, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(90) % 3, torch.randperm(90, generator=generator))


def test_deltas_are_logged_to_every_logger_and_no_bit_is_changed(faces: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, edit = Faces(), Edit("lin", torch.linspace(-3, 3, 8))
    before = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    plain = predict(module, image_loader(faces, 90))
    with edited(module.network, edit):
        expected = compare(plain, predict(module, image_loader(faces, 90)))
    assert expected.gained + expected.lost > 0
    callback = LogEdit(edit)
    loggers = [CSVLogger(tmp_path, name) for name in ("one", "two")]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=loggers, callbacks=[callback], **quiet)  # type: ignore[arg-type]
    # Of the two batches that Lightning tries before training nothing is logged.
    trainer.fit(module, image_loader(faces, 32), image_loader(faces, 32))
    assert callback.comparison is not None
    found = callback.comparison
    assert (found.gained_ids, found.lost_ids) == (expected.gained_ids, expected.lost_ids)
    assert (found.delta, found.low, found.high) == (expected.delta, expected.low, expected.high)
    assert found.nll_after == pytest.approx(expected.nll_after)
    trainer.test(module, image_loader(faces, 16), verbose=False)
    for logger in loggers:
        logger.save()
        logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
        assert logged["edit/val/delta"].dropna().tolist() == pytest.approx([expected.delta] * 2)
        assert logged["edit/val/images"].dropna().tolist() == [90, 90]
        assert logged["edit/test/gained"].dropna().tolist() == [expected.gained]
        assert logged["edit/test/p_value"].dropna().tolist() == pytest.approx([expected.p_value])
    assert {name: value.numpy().tobytes() for name, value in module.state_dict().items()} == before

"""A user's LightningModule, selected by config alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from own_lightning_module import LitFaces

from emodissect.core.errors import UserError
from emodissect.data.own_data import OwnData

pytestmark = pytest.mark.slow  # whole verbs

Verb = Callable[..., tuple[Path, dict[str, Any]]]
OWN = ("module=custom", "module._target_=own_lightning_module.LitNet", "+module.lr=0.02", "model.preprocess.size=40")


def test_it_is_trained_by_its_own_step_then_dissected_and_edited(verb: Verb) -> None:
    folder, figures = verb("train", *OWN, "data.train=200", "trainer.max_epochs=3")
    held = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert held["hyper_parameters"] == {"num_classes": 7, "lr": 0.02}
    assert held["state_dict"]["steps"] == 3 * -(-200 // 64)
    assert 0 <= figures["test/acc"] <= 1
    curves = pd.read_csv(folder / "csv" / "metrics.csv")
    assert len(curves["val_loss"].dropna()) == len(curves["val/acc"].dropna()) == 3
    edited, summary = verb("edit", *OWN, "data.train=200", "trainer.max_epochs=3", "layer=fc", "tau=-10")
    assert summary["accuracy_before"] == pytest.approx(figures["test/acc"], abs=1e-6)
    assert pd.read_csv(edited / "layers.csv")["layer"].tolist() == ["fc"]


def test_a_target_that_is_no_module_is_refused_before_it_is_called(verb: Verb) -> None:
    with pytest.raises(UserError, match=r"module\._target_=os\.system"):
        verb("train", "module=custom", "module._target_=os.system")
    with pytest.raises(UserError, match="soft_labels=true needs module=classifier"):
        verb("train", *OWN, "data=sketches", "soft_labels=true")


def test_a_datamodule_of_ones_own_gives_the_images(verb: Verb) -> None:
    data = ("data=custom", "data.datamodule._target_=own_lightning_module.LitFaces", "data.class_names=[dark,bright]")
    own = [word.replace("+module.lr=0.02", "+module.num_classes=2") for word in OWN]
    _, figures = verb("train", *data, *own, "trainer.max_epochs=8", "augment=none")
    assert figures["test/acc"] > 0.9  # brightness tells the classes apart
    with pytest.raises(UserError, match=r"data\.class_names has 1 names"):
        verb("train", *data[:2], "data.class_names=[dark]", *own)


def test_raw_images_of_a_datamodule_have_ids_of_their_own(tmp_path: Path) -> None:
    splits = OwnData(LitFaces(), cache_dir=tmp_path, class_names=("dark", "bright")).splits
    assert (len(splits.train), splits.train.images.dtype) == (60, torch.uint8)
    ids = torch.cat([splits.train.ids, splits.val.ids, splits.test.ids])
    assert ids.tolist() == list(range(180))

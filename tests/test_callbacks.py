"""Callbacks with LightningModules, loaders and batches that are not this project's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

import emodissect as emo
from emodissect.core.errors import UserError
from emodissect.data.images import image_loader

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
WORDS = {"bright": ["one"], "dark": ["two"], "upper": ["three"]}
CLASSES = ("one", "two", "three")


class Plain(LightningModule):
    """A user's module: (x, y) batches of floats, dropout, BatchNorm, nothing from this project."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.body(x))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfDicts(Plain):
    """Batches are dicts, and the output is one too."""

    def forward(self, x: Tensor) -> Any:
        return {"features": x, "scores": super().forward(x)}

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["pixel_values"])["scores"], batch["labels"])


@pytest.fixture
def faces() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    levels = torch.rand(90, 1, 1, 1, generator=generator) * 0.8
    pixels = ((levels + 0.2 * torch.rand(90, 1, 4, 4, generator=generator)) * 255).round() / 255
    return TensorDataset(pixels, (levels.flatten() * 3.7).long())


@pytest.fixture
def scores(faces: TensorDataset) -> Tensor:
    mean = faces.tensors[0].mean((1, 2, 3))
    return torch.stack([mean, -mean, faces.tensors[0][:, 0, :2].mean((1, 2))], 1)


def as_dicts(items: list[Any]) -> dict[str, Tensor]:
    x, y = default_collate(items)
    return {"pixel_values": x, "labels": y}


def expected(module: LightningModule, edit: emo.Edit, faces: TensorDataset) -> tuple[int, int]:
    """Numbers of images that become correct and wrong, computed slowly."""
    module.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    x, y = faces.tensors

    def right() -> Tensor:
        with torch.no_grad():
            output = module(x)
        return (output["scores"] if isinstance(output, dict) else output).argmax(1) == y

    before = right()
    module.load_state_dict(emo.bake(module, edit))
    after = right()
    module.load_state_dict(state)
    return int((after & ~before).sum()), int((before & ~after).sum())


EDIT = emo.Edit("fc", [-2.0, 1.0, 3.0])


@pytest.mark.parametrize("form", ["tuples", "dicts"])
def test_an_edit_is_evaluated_in_any_loop_and_its_figures_can_be_followed(
    form: str, faces: TensorDataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module: Plain = Plain() if form == "tuples" else OfDicts()
    loader = DataLoader(faces, 32, collate_fn=None if form == "tuples" else as_dicts)
    callback = emo.EvaluateEdit(EDIT, logits=None if form == "tuples" else lambda m, x: m(x)["scores"])
    logger = CSVLogger(tmp_path)
    trainer = Trainer(callbacks=[callback], logger=logger, **QUIET)
    before = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    gained, lost = expected(module, EDIT, faces)
    assert gained + lost > 0
    trainer.test(module, loader, verbose=False)
    found = callback.comparison
    assert found is not None
    assert (found.gained, found.lost, found.images) == (gained, lost, 90)
    assert trainer.callback_metrics["edit/test/delta"] == pytest.approx((gained - lost) / 90)
    assert pd.read_csv(Path(logger.log_dir) / "metrics.csv")["edit/test/gained"].tolist() == [gained]
    assert {name: value.numpy().tobytes() for name, value in module.state_dict().items()} == before


def test_early_stopping_follows_an_edits_delta(faces: TensorDataset) -> None:
    loader = DataLoader(faces, 32)
    nothing = emo.EvaluateEdit(emo.Edit("fc", torch.ones(3)))  # its delta is 0 in every epoch
    stop = EarlyStopping("edit/val/delta", patience=1, mode="max", verbose=False)
    trainer = Trainer(max_epochs=9, callbacks=[nothing, stop], logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(Plain(), loader, loader)
    assert trainer.current_epoch == 2


def test_the_function_and_the_callback_agree(faces: TensorDataset) -> None:
    torch.manual_seed(0)
    module, callback = Plain(), emo.EvaluateEdit(EDIT)
    Trainer(callbacks=[callback], logger=False, **QUIET).test(module, DataLoader(faces, 7), verbose=False)
    forms = (DataLoader(faces, 32), faces, emo.image_set(faces), list(DataLoader(faces, 11)))
    for data in forms:
        found = emo.evaluate_edit(module, EDIT, data, class_names=CLASSES)
        assert found == callback.comparison
    assert found.low <= found.delta == found.accuracy_after - found.accuracy_before <= found.high
    assert "\n" not in repr(found)


@pytest.mark.parametrize(
    ("edit", "data", "further", "said"),
    [
        (emo.Edit("body.9", [1.0]), None, {}, "body.1"),
        (EDIT, None, {"class_names": ("a", "b")}, "2 names for 3 logits"),
        (EDIT, [torch.zeros(4, 1, 4, 4)], {}, "no labels"),
        (EDIT, [(torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]))], {}, "0..2"),
        (EDIT, [(torch.zeros(2, 1, 4, 4), torch.tensor([0.5, 1.0]))], {}, "one class index per image"),
        (EDIT, [], {}, "no images"),
    ],
)
def test_mistakes_in_an_evaluation_are_reported(
    edit: emo.Edit, data: Any, further: Any, said: str, faces: TensorDataset
) -> None:
    with pytest.raises(UserError, match=said):
        emo.evaluate_edit(Plain(), edit, DataLoader(faces, 32) if data is None else data, **further)


def test_neurons_are_dissected_while_any_module_trains(faces: TensorDataset, scores: Tensor, tmp_path: Path) -> None:
    def fitted(*callbacks: Any) -> tuple[Trainer, Plain]:
        torch.manual_seed(0)
        module = Plain()
        loaders = DataLoader(faces, 32, shuffle=True), DataLoader(faces, 32)
        trainer = Trainer(max_epochs=3, callbacks=list(callbacks), logger=CSVLogger(tmp_path), **QUIET)
        trainer.fit(module, *loaders)
        return trainer, module

    best = ModelCheckpoint(tmp_path / "best", monitor="dissect/body.1/proportion", mode="max")
    callback = emo.DissectNeurons(
        "body.1", WORDS, scorer=scores, similarity="pearson", class_names=CLASSES, null_draws=100, tau=0.5
    )
    _, plain = fitted()
    trainer, watched = fitted(callback, best)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in plain.state_dict().items())
    assert callback.dissection is not None
    alone = emo.dissect(
        *(watched, faces, WORDS),
        layers="body.1",
        scorer=scores,
        similarity="pearson",
        class_names=CLASSES,
        null_draws=100,
        tau=0.5,
        progress=False,
    )
    pd.testing.assert_frame_equal(callback.dissection.neurons, alone.neurons)
    assert trainer.callback_metrics["dissect/body.1/proportion"] == pytest.approx(alone.layers["proportion"][0])
    assert best.best_model_score is not None
    logged = pd.read_csv(Path(trainer.loggers[0].log_dir) / "metrics.csv")  # type: ignore[arg-type]
    assert len(logged["dissect/body.1/interpretable"].dropna()) == 3


def test_neurons_are_dissected_at_the_end_where_no_epoch_is_due(faces: TensorDataset, scores: Tensor) -> None:
    callback = emo.DissectNeurons(
        "fc", WORDS, faces, scorer=scores, similarity="pearson", null_draws=50, every_n_epochs=0
    )
    Trainer(max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False, **QUIET).fit(
        Plain(), DataLoader(faces, 32)
    )
    assert callback.dissection is not None
    assert len(callback.dissection["fc"]) == 3


class Faces(LightningDataModule):
    class_names = CLASSES

    def __init__(self, faces: TensorDataset) -> None:
        super().__init__()
        self.faces = faces

    def train_dataloader(self) -> Any:
        return DataLoader(self.faces, batch_size=32)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.faces, batch_size=32)]

    def predict_dataloader(self) -> Any:
        return DataLoader(self.faces, batch_size=20)


def test_a_datamodule_gives_the_probe_set_and_predicting_gives_labels(faces: TensorDataset, scores: Tensor) -> None:
    given: dict[str, Any] = {"scorer": scores, "similarity": "pearson", "null_draws": 100}
    torch.manual_seed(0)
    module, data = Plain(), Faces(faces)
    callback = emo.DissectNeurons("fc", WORDS, **given)
    trainer = Trainer(max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(module, data)
    in_fit = callback.dissection
    assert in_fit is not None
    predicting = emo.DissectNeurons("fc", WORDS, **given)
    Trainer(callbacks=[predicting], logger=False, **QUIET).predict(module, data)
    assert predicting.dissection is not None
    pd.testing.assert_frame_equal(predicting.dissection.neurons, in_fit.neurons)
    assert predicting.dissection.neurons["accuracy"].notna().all()


def test_mistakes_are_reported_before_an_epoch(faces: TensorDataset, scores: Tensor) -> None:
    def fit(callback: Any) -> None:
        trainer = Trainer(max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, **QUIET)
        trainer.fit(Plain(), DataLoader(faces, 32))

    with pytest.raises(UserError, match=r"Did you mean 'body\.1'"):
        fit(emo.DissectNeurons("bodi.1", WORDS, faces, scorer=scores))
    with pytest.raises(UserError, match="there is none"):
        fit(emo.DissectNeurons("fc", WORDS, scorer=scores))
    with pytest.raises(UserError, match="normalized already"):
        fit(emo.DissectNeurons("fc", WORDS, torch.randn(90, 1, 4, 4), clip="tiny"))


def test_a_study_of_any_network(faces: TensorDataset, scores: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    labels = emo.dissect(
        network, faces, WORDS, layers="body.1", scorer=scores, similarity="pearson", null_draws=50, progress=False
    )
    val, test = TensorDataset(*faces[:40]), TensorDataset(*faces[40:])
    given: dict[str, Any] = {"selections": [emo.Tau(0.0), emo.Tau(0.9)], "controls": 39, "progress": False}
    found = emo.study(network, labels, DataLoader(val, 8), DataLoader(test, 8), rules=emo.Scale(3.0), **given)
    assert (len(found.grid), found.test.images, found.val.images) == (2, 50, 40)
    alone = emo.evaluate_edit(network, found.edit, test)
    assert (found.test.gained, found.test.lost, found.test.delta) == (alone.gained, alone.lost, alone.delta)
    np.testing.assert_allclose(found.test.p_value, alone.p_value)
    assert found.verdict in repr(found)
    for part in (val, TensorDataset(*faces[:30])):
        with pytest.raises(UserError, match="Every image of test is in val"):
            emo.study(network, labels, val, part, **given)
    with caplog.at_level("WARNING"):
        emo.study(network, labels, val, TensorDataset(*faces[35:]), **given)
    assert "5 of the 55 images of test are in val too" in caplog.text


def test_images_without_ids_are_numbered_and_ids_are_used_where_they_are(faces: TensorDataset) -> None:
    torch.manual_seed(0)
    module = Plain().eval()
    numbered = emo.image_set(faces, as_given=True)
    mixed = numbered.subset(torch.randperm(90, generator=torch.Generator().manual_seed(2)))
    callback = emo.RecordActivations("fc", top_k=90)
    Trainer(callbacks=[callback], logger=False, **QUIET).predict(module, DataLoader(faces, 13))
    plain = callback.activations["fc"]
    Trainer(callbacks=[callback], logger=False, **QUIET).predict(module, image_loader(mixed, 13))
    assert torch.equal(callback.activations["fc"].top_ids, plain.top_ids)

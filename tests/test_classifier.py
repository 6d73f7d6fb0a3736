"""The classifier: class order, ten crops, targets, scores, schedules, checkpoints."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import confusion_matrix, f1_score, log_loss, recall_score, top_k_accuracy_score
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler

from emodissect.core.errors import UserError
from emodissect.data.images import Batch, ImageSet, image_loader
from emodissect.models.augmentation import Augmentation, FlipShift, Khaireddin2021
from emodissect.models.class_order import output_columns
from emodissect.models.classifier import Classifier
from emodissect.models.predictions import EpochPredictions, Predictions
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG
from emodissect.models.weights import checkpoint_arguments, load_weights, read_state_dict

FER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FOLDER = ["Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]


class Pixels(nn.Module):
    """The logits are the first pixels of the middle row, so the expected output can be read off the image."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x[:, 0, x.shape[2] // 2, : self.classes] * self.scale


def faces(count: int = 20, size: int = 8, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 7, (count,), generator=generator)
    return ImageSet(images, labels, torch.arange(count) + 100)


def whole(image_set: ImageSet) -> Batch:
    return Batch(image_set.images, image_set.labels, image_set.ids)


def small(network: nn.Module | None = None, **arguments: Any) -> Classifier:
    return Classifier(network or Pixels(), arguments.pop("preprocess", Preprocess(8)), FER, **arguments)


def trainer(tmp_path: Path, **arguments: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet | {"max_epochs": 1} | arguments)


# -- class order ----------------------------------------------------------------------------------------------------


def test_outputs_are_put_in_the_datas_order_by_name() -> None:
    assert output_columns(FER, FOLDER).tolist() == [0, 1, 2, 3, 5, 6, 4]
    classifier, batch = small(class_order=FOLDER), whole(faces())
    raw = batch.images[:, 0, 4, :7].float() / 255
    torch.testing.assert_close(classifier(batch.images), raw[:, [0, 1, 2, 3, 5, 6, 4]])
    torch.testing.assert_close(small()(batch.images), raw)


def test_spelling_does_not_matter_and_more_outputs_may_be_known() -> None:
    order = ["Contempt", "SADNESS", "anger ", "happiness", "Dis-gust", "Fearful", "surprised", "Neutral"]
    columns = output_columns(FER, order)
    assert columns.tolist() == [2, 4, 5, 3, 1, 6, 7]
    logits = small(Pixels(8), class_order=order)(faces().images)
    assert logits.shape == (20, 7)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["angry", "disgust", "fear", "happy", "neutral", "sad", "suprise"], "no output.*'surprise'.*Did you mean 'su"),
        (["angry", "Anger", "fear"], "'Anger' twice"),
    ],
)
def test_a_wrong_order_is_refused(order: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(class_order=order)


def test_a_wrong_number_of_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"Pixels gives 5 logits for 7 classes.*model\.num_classes=7"):
        small(Pixels(5))(faces().images)
    with pytest.raises(UserError, match="not logits"):
        small(nn.Identity())(faces().images)


# -- views ----------------------------------------------------------------------------------------------------------


def test_ten_crop_logits_are_the_mean_of_a_loop() -> None:
    torch.manual_seed(0)
    images = faces(3, size=48).images
    network = VGG(width=0.0625)
    classifier = small(network, preprocess=Preprocess(40, views="ten_crop")).eval()
    values, total = images.float() / 255, torch.zeros(3, 7)
    with torch.no_grad():
        for picture in (values, values.flip(-1)):
            for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
                total += network(picture[:, :, top : top + 40, left : left + 40])
        torch.testing.assert_close(classifier(images), total / 10, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            classifier.single_view(images), network(Preprocess(40)(images)), rtol=1e-4, atol=1e-6
        )


def test_ten_crop_training_sees_ten_views_with_the_labels_repeated() -> None:
    network, image_set = Pixels(), faces(4, size=10)
    classifier = small(network, ten_crop=True)
    loss = classifier.training_step(whole(image_set), 0)
    assert network.seen == [(40, 1, 8, 8)]
    crops = Preprocess(8).crops(image_set.images)
    expected = torch.stack([F.cross_entropy(crop[:, 0, 4, :7], image_set.labels) for crop in crops]).mean()
    torch.testing.assert_close(loss, expected)


def test_augmentation_is_for_training_only_and_erases_crops() -> None:
    class Mark(Augmentation):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros_like(images)

        def after_crop(self, inputs: Tensor) -> Tensor:
            return inputs + 1

    class Kept(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return super().forward(x)

    network = Kept()
    classifier = small(network, augment=Mark())
    batch = whole(faces())
    classifier.training_step(batch, 0)
    assert torch.equal(network.last, torch.ones(20, 1, 8, 8))
    classifier.eval()(batch.images)
    torch.testing.assert_close(network.last, batch.images.float() / 255)


# -- targets --------------------------------------------------------------------------------------------------------


def test_soft_labels_are_placed_by_id_and_the_rest_keep_their_class() -> None:
    classifier, batch = small(), whole(faces(3))
    votes = torch.tensor([[0, 0, 0, 0, 2, 0, 2], [5, 5, 0, 0, 0, 0, 0]], dtype=torch.float)
    classifier.set_soft_labels(torch.tensor([102, 100]), votes)
    loss = classifier.training_step(batch, 0)
    log_p = F.log_softmax(batch.images[:, 0, 4, :7].float() / 255, dim=1)
    expected = -((log_p[0, 0] + log_p[0, 1]) / 2 + log_p[1, int(batch.labels[1])] + (log_p[2, 4] + log_p[2, 6]) / 2) / 3
    torch.testing.assert_close(loss, expected)
    classifier.set_soft_labels(torch.tensor([]), None)
    torch.testing.assert_close(
        classifier.training_step(batch, 0), F.nll_loss(log_p, batch.labels), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_is_that_of_its_formula(soft: bool) -> None:
    classifier, batch = small(label_smoothing=0.2), whole(faces())
    targets = F.one_hot(batch.labels, 7).float()
    if soft:
        targets = torch.rand(20, 7, generator=torch.Generator().manual_seed(1))
        targets /= targets.sum(1, keepdim=True)
        classifier.set_soft_labels(batch.ids, targets)
    log_p = F.log_softmax(batch.images[:, 0, 4, :7].float() / 255, dim=1)
    expected = -((targets * 0.8 + 0.2 / 7) * log_p).sum(1).mean()
    torch.testing.assert_close(classifier.training_step(batch, 0), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_mixup_is_that_of_its_formula(soft: bool) -> None:
    classifier, batch = small(mixup=0.4), whole(faces())
    targets = F.one_hot(batch.labels, 7).float()
    if soft:
        targets = torch.softmax(torch.randn(20, 7, generator=torch.Generator().manual_seed(1)), dim=1)
        classifier.set_soft_labels(batch.ids, targets)
    torch.manual_seed(3)
    loss = classifier.training_step(batch, 0)
    torch.manual_seed(3)
    share = torch.distributions.Beta(0.4, 0.4).sample()
    inputs = batch.images[:, 0, 4, :7].float() / 255
    inputs, targets = (share * part + (1 - share) * part.roll(1, 0) for part in (inputs, targets))
    torch.testing.assert_close(loss, -(targets * F.log_softmax(inputs, dim=1)).sum(1).mean())
    assert 0.01 < share < 0.99
    with pytest.raises(UserError, match=r"mixup=-1"):
        small(mixup=-1.0)


def test_wrong_soft_labels_are_refused() -> None:
    ids = torch.arange(2)
    with pytest.raises(UserError, match=r"\(2, 6\) for 2 images and 7 classes"):
        small().set_soft_labels(ids, torch.ones(2, 6))
    with pytest.raises(UserError, match="1 soft labels are all zero"):
        small().set_soft_labels(ids, torch.eye(7)[:2] * torch.tensor([[1.0], [0.0]]))
    with pytest.raises(UserError, match=r"label_smoothing=1\.5"):
        small(label_smoothing=1.5)


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path) -> None:
    network = Pixels()
    with torch.no_grad():
        network.scale.fill_(math.nan)
    with pytest.raises(UserError, match=r"loss is nan at step 0 \(epoch 0\).*smaller optimizer\.lr"):
        trainer(tmp_path, enable_checkpointing=False).fit(small(network), image_loader(faces(), 10))


# -- scores ---------------------------------------------------------------------------------------------------------


def slow_ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    confidence, called = probabilities.max(dim=1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            accuracy = (called[inside] == labels[inside]).double().mean()
            total += float(inside.double().mean() * (confidence[inside].double().mean() - accuracy).abs())
    return total


def test_a_confidence_of_exactly_one_is_in_the_last_bin() -> None:
    logits = torch.tensor([[200.0, 0.0], [200.0, 0.0], [3.0, 0.0], [3.0, 0.0]])  # confidences 1, 1, .953, .953
    labels = torch.tensor([1, 1, 0, 0])  # sure and wrong, less sure and right: two bins would give .52
    sure = 1 / (1 + math.exp(-3))
    assert logits.softmax(1)[0, 0] == 1
    expected = pytest.approx((1 + sure) / 2 - 0.5, abs=1e-6)
    assert Predictions(torch.arange(4), labels, logits).measures()["ece"] == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 200), count=st.integers(2, 60))
def test_scores_equal_scikit_learns(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 7, generator=generator) * 2
    labels = torch.randint(0, 7, (count,), generator=generator)
    found = Predictions(torch.arange(count), labels, logits)
    values, confusion = found.logged(FER), found.confusion()
    called, every = logits.argmax(1), list(range(7))
    p = logits.double().softmax(1)
    p /= p.sum(1, keepdim=True)
    assert float(values["acc"]) == pytest.approx(float((called == labels).float().mean()))
    assert float(values["acc_top2"]) == pytest.approx(top_k_accuracy_score(labels, logits, k=2, labels=every), abs=1e-6)
    assert float(values["f1"]) == pytest.approx(f1_score(labels, called, average="macro"), abs=1e-6)
    assert float(values["nll"]) == pytest.approx(log_loss(labels, p, labels=every), rel=1e-4)
    assert float(values["ece"]) == pytest.approx(slow_ece(logits.softmax(1), labels), abs=1e-5)
    assert torch.equal(confusion, torch.as_tensor(confusion_matrix(labels, called, labels=every)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recall = recall_score(labels, called, labels=every, average=None, zero_division=0.0)
    for row, name in enumerate(FER):
        if (labels == row).any():
            assert float(values[f"recall/{name}"]) == pytest.approx(recall[row], abs=1e-6)
        else:
            assert f"recall/{name}" not in values


def test_scores_worked_out_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 1, 0], [1, 2, 0]])
    found = Predictions(torch.arange(4), torch.tensor([0, 1, 2, 0]), logits)
    values, confusion = found.logged(("a", "b", "c")), found.confusion()
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert float(values["acc"]) == 0.5
    assert float(values["acc_top2"]) == 1.0  # the third's class ties for second place
    # f1: a 2*1/(2+1), b 2*1/(1+3), c 0
    assert float(values["f1"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert [float(values[f"recall/{c}"]) for c in "abc"] == [0.5, 1.0, 0.0]


def test_an_image_that_came_twice_counts_once_and_order_does_not_matter() -> None:
    kept = EpochPredictions()
    logits = torch.randn(4, 7)
    kept.update(Predictions(torch.tensor([7, 3]), torch.tensor([1, 0]), logits[:2]))
    kept.update(Predictions(torch.tensor([5, 7]), torch.tensor([2, 1]), logits[2:]))
    ids, labels, found = kept.compute()
    assert ids.tolist() == [3, 5, 7]
    assert labels.tolist() == [0, 2, 1]
    assert torch.equal(found, logits[[1, 2, 0]])


# -- under a trainer ------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A network that quickly learns whether the left or the right half is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_a_split_of_one_image_is_scored(tmp_path: Path) -> None:
    one = faces(1)
    classifier = small()
    figures = trainer(tmp_path).validate(classifier, image_loader(one, 4), verbose=False)[0]
    right = bool((classifier(one.images).argmax(1) == one.labels).all())
    assert figures["val/acc"] == float(right)
    assert classifier.results["val"].logits.shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"optimizer": functools.partial(optim.SGD, lr=0.1, momentum="abc")}, r"optimizer cannot be created"),
        (
            {"scheduler": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5, pct_start=7)},
            r"schedule cannot be created .*pct_start",
        ),
    ],
)
def test_an_optimizer_or_schedule_that_refuses_is_reported(
    tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        trainer(tmp_path).fit(small(**arguments), image_loader(faces(), 8))


def bright_columns(count: int = 140) -> ImageSet:
    """Class c has column c bright."""
    labels = torch.arange(count) % 7
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[torch.arange(count), 0, :, labels] = 200
    return ImageSet(images, labels, torch.arange(count))


def test_it_learns_logs_and_its_checkpoint_loads_safely(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image_set = bright_columns()
    config = {"_target_": "toy.Toy", "width": 0.25, "sizes": (1, 2), "preprocess": {"size": 8}}
    classifier = small(
        Toy(),
        model_config=config,
        optimizer=functools.partial(optim.SGD, lr=1.0),
        scheduler=functools.partial(lr_scheduler.OneCycleLR, max_lr=None, total_steps=None),
        augment=FlipShift(shift=0, flip=0.0),
    )
    run = trainer(tmp_path, max_epochs=3)
    run.fit(classifier, image_loader(image_set, 20, shuffle=True), image_loader(image_set, 50))
    metrics = run.callback_metrics
    assert float(metrics["val/acc"]) == 1.0
    assert float(metrics["train/loss"]) < 1.9
    wanted = {"acc", "acc_top2", "f1", "nll", "ece", *(f"recall/{name}" for name in FER)}
    assert {f"val/{name}" for name in wanted} | {"train/loss", "train/acc"} <= set(metrics)
    assert classifier.results["val"].confusion().tolist() == (torch.eye(7, dtype=torch.int64) * 20).tolist()

    path = tmp_path / "toy.ckpt"
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == {"network.fc.weight", "network.fc.bias"}
    held = checkpoint_arguments(path)
    assert held["class_names"] == list(FER)
    assert held["model"] == {**config, "sizes": [1, 2]}
    again = small(Toy())
    load_weights(again.network, path)
    torch.testing.assert_close(again(image_set.images), classifier(image_set.images))
    assert set(read_state_dict(path)) == {"fc.weight", "fc.bias"}
    fresh = small(Toy())
    loader = image_loader(image_set, 50)
    (tested,) = trainer(tmp_path).test(fresh, loader, ckpt_path=path, weights_only=True, verbose=False)
    assert tested["test/acc"] == 1.0
    assert {f"test/{name}" for name in wanted} == set(tested)
    batches = trainer(tmp_path).predict(fresh, loader, ckpt_path=path, weights_only=True)
    assert torch.equal(torch.cat([b.ids for b in batches]), image_set.ids)
    assert torch.equal(torch.cat([b.labels for b in batches]), image_set.labels)
    torch.testing.assert_close(torch.cat([b.logits for b in batches]), classifier(image_set.images))


def test_a_checkpoint_keeps_plain_values_only() -> None:
    with pytest.raises(TypeError, match="not Linear"):
        small(model_config={"head": nn.Linear(1, 1)})


def rates(tmp_path: Path, scheduler: Any, epochs: int = 4) -> list[float]:
    """The learning rate at each step, with 2 steps per epoch."""
    seen: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    classifier = small(Toy(), optimizer=functools.partial(optim.SGD, lr=0.1), scheduler=scheduler)
    run = trainer(tmp_path, max_epochs=epochs, callbacks=[Watch()], enable_checkpointing=False, num_sanity_val_steps=0)
    image_set = bright_columns(20)
    run.fit(classifier, image_loader(image_set, 10), image_loader(image_set, 20))
    return seen


def test_schedules_are_filled_in_from_the_trainer(tmp_path: Path) -> None:
    cosine = rates(tmp_path, functools.partial(lr_scheduler.CosineAnnealingLR, T_max=None, eta_min=0.0))
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(2)]
    assert cosine == pytest.approx(expected)
    cycle = rates(
        tmp_path,
        functools.partial(lr_scheduler.OneCycleLR, max_lr=None, total_steps=None, pct_start=0.25, div_factor=10),
    )
    assert cycle[0] == pytest.approx(0.01)
    assert max(cycle) == pytest.approx(0.1)
    assert cycle[-1] == pytest.approx(1e-6)
    step = rates(tmp_path, functools.partial(lr_scheduler.StepLR, step_size=2, gamma=0.5))
    assert step == pytest.approx([0.1] * 4 + [0.05] * 4)
    assert rates(tmp_path, None, 1) == [0.1, 0.1]


def test_plateau_follows_validation_accuracy(tmp_path: Path) -> None:
    # A rate of zero learns nothing: accuracy stands still, so the rate falls after `patience` epochs.
    plateau = functools.partial(lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.5, patience=0)
    classifier = small(Pixels(), optimizer=functools.partial(optim.SGD, lr=1e-12), scheduler=plateau)
    run = trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    run.fit(classifier, image_loader(faces(), 10), image_loader(faces(), 20))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25e-12)
    assert run.lr_scheduler_configs[0].monitor == "val/acc"


def test_a_checkpoint_of_an_epoch_holds_what_the_plateau_made_of_it(tmp_path: Path) -> None:
    plateau = functools.partial(lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.5, patience=0)
    classifier = small(Pixels(), optimizer=functools.partial(optim.SGD, lr=1e-12), scheduler=plateau)
    last = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_epochs=1, save_on_train_epoch_end=True)
    run = trainer(tmp_path, max_epochs=3, callbacks=[last])
    run.fit(classifier, image_loader(faces(), 10), image_loader(faces(), 20))
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert held["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.25e-12)


def test_a_schedule_over_an_endless_training_is_refused(tmp_path: Path) -> None:
    endless = trainer(tmp_path, max_epochs=-1, enable_checkpointing=False)
    for name, made in (("one_cycle", lr_scheduler.OneCycleLR), ("cosine", lr_scheduler.CosineAnnealingLR)):
        with pytest.raises(UserError, match=f"scheduler={name} needs the length of the training"):
            endless.fit(small(Toy(), scheduler=functools.partial(made)), image_loader(bright_columns(), 10))


def test_the_published_recipe_trains_in_ten_crops(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image_set = faces(8, size=48)
    classifier = small(
        VGG(width=0.03125),
        preprocess=Preprocess(40, views="ten_crop"),
        augment=Khaireddin2021(),
        ten_crop=True,
        scheduler=functools.partial(lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.75, patience=5),
    )
    before = classifier.network.lin3.weight.detach().clone()
    run = trainer(tmp_path, precision="bf16-mixed", enable_checkpointing=False)
    run.fit(classifier, image_loader(image_set, 4), image_loader(image_set, 8))
    assert not torch.equal(before, classifier.network.lin3.weight)
    assert classifier.results["val"].logits.dtype == torch.float32
    assert run.callback_metrics["train/loss"].item() == pytest.approx(1.95, abs=0.5)


def test_compiled_gives_the_same_and_leaves_the_network_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Captures the graph as ever, without a minute of C++ compilation.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    image_set = bright_columns(28)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        classifier = small(Toy(), compile=compiled)
        run = trainer(tmp_path, enable_checkpointing=False)
        run.fit(classifier, image_loader(image_set, 14), image_loader(image_set, 14))
        assert set(classifier.state_dict()) == {"network.fc.weight", "network.fc.bias"}
        assert classifier._fast == []
        results.append(classifier(image_set.images))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)

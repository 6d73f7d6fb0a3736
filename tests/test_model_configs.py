"""Every YAML file of the groups model, optimizer, scheduler and augment builds its object, and trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from emodissect.data.images import Batch, ImageSet, image_loader
from emodissect.models.augmentation import Augmentation
from emodissect.models.classifier import Classifier
from emodissect.models.preprocessing import Preprocess
from emodissect.models.schedules import schedule

CONF = Path(__file__).parent.parent / "conf"
FER = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def entries(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read(group: str, name: str) -> Any:
    OmegaConf.register_new_resolver("len", len, replace=True)
    return OmegaConf.load(CONF / group / f"{name}.yaml")


def faces(count: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 48, 48), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 7, torch.arange(count))


@pytest.mark.parametrize("name", entries("model"))
def test_each_model_takes_what_its_preprocess_gives(name: str) -> None:
    model = read("model", name)
    if name == "custom":
        model.target, model.arguments, model.preprocess.size = "emodissect.models.vgg.VGG", {"width": 0.0625}, 40
    config = OmegaConf.create({"data": {"class_names": FER}, "model": model})
    resolved: DictConfig = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[assignment]
    preprocess, order = instantiate(resolved.model.pop("preprocess")), resolved.model.pop("class_order")
    resolved.model.pop("output", None)
    network = instantiate(resolved.model)
    assert isinstance(network, nn.Module)
    assert isinstance(preprocess, Preprocess)
    classifier = Classifier(network, preprocess, FER, class_order=order).eval()
    with torch.inference_mode():
        assert classifier(faces(2).images).shape == (2, 7)


@pytest.mark.parametrize("name", entries("optimizer"))
def test_each_optimizer_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(1600, 16), nn.ReLU(), nn.Linear(16, 7))
    classifier = Classifier(network, Preprocess(40), FER, optimizer=instantiate(read("optimizer", name)))
    optimizer, batch = classifier.configure_optimizers(), Batch(*(getattr(faces(), key) for key in Batch._fields))
    classifier.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    losses = []
    for step in range(6):
        loss = classifier.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", entries("scheduler"))
def test_each_scheduler_runs(name: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    classifier = Classifier(network, Preprocess(8), FER, scheduler=instantiate(read("scheduler", name)))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, image_loader(faces(), 2), image_loader(faces(), 4))
    assert trainer.global_step == 4
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == 0.01 if name in ("constant", "plateau", "step") else rate < 0.01


@pytest.mark.parametrize("name", entries("augment"))
def test_each_augmentation_changes_a_batch(name: str) -> None:
    torch.manual_seed(0)
    augment = instantiate(read("augment", name))
    assert isinstance(augment, Augmentation)
    images = faces().images
    inputs = augment.after_crop(Preprocess(40)(augment(images)))
    assert inputs.shape == (4, 1, 40, 40)
    assert torch.equal(inputs, Preprocess(40)(images)) == (name == "none")


@pytest.mark.parametrize("name", entries("optimizer"))
def test_one_cycle_goes_with_each_optimizer(name: str) -> None:
    optimizer = instantiate(read("optimizer", name))([nn.Parameter(torch.ones(1))])
    rate = optimizer.param_groups[0]["lr"]
    trainer = SimpleNamespace(estimated_stepping_batches=100, max_epochs=1)
    made = schedule(instantiate(read("scheduler", "one_cycle")), optimizer, trainer, "val/acc")  # type: ignore[arg-type]
    assert made["interval"] == "step"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 10)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_one_cycle_bears_a_run_of_few_steps(steps: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    classifier = Classifier(network, Preprocess(8), FER, scheduler=instantiate(read("scheduler", "one_cycle")))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, image_loader(faces(), 2))
    assert trainer.global_step == steps

"""Published FER2013 checkpoints, each evaluated by one command; made-up files of the same formats stand in for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from safetensors.torch import save_file
from torch import Tensor, nn

from emodissect.app.train import train
from emodissect.models.deep_emotion import DeepEmotion
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG

ALPHABETICAL = ["Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
FER2013 = ["Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"]


@pytest.fixture
def faces(tmp_path: Path) -> tuple[Path, Tensor, Tensor]:
    """An .npz in the format of FER2013, and its PrivateTest images and labels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (98, 48, 48), dtype=np.uint8)
    labels, usage = np.arange(98) % 7, np.repeat([0, 1, 2], [14, 14, 70])
    np.savez(tmp_path / "fer2013.npz", pixels=pixels, labels=labels, usage=usage)
    return tmp_path / "fer2013.npz", torch.from_numpy(pixels[28:, None]), torch.from_numpy(labels[28:])


def telling(network: nn.Module, inputs: Tensor) -> nn.Module:
    """The network minus its mean logits, so that it predicts all classes and a wrong class order is noticed."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 7][-1]
    with torch.no_grad():
        last.bias -= network.eval()(inputs).mean(dim=0)
        assert len(network(inputs).argmax(dim=1).unique()) > 4
    return network


def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor, order: list[str]) -> float:
    """Accuracy computed image by image, with the network's outputs in the class order ``order``."""
    with torch.no_grad():
        named = [order[int(network(image[None]).argmax())] for image in inputs]
    return sum(name == FER2013[int(label)] for name, label in zip(named, labels, strict=True)) / len(labels)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "released": lambda s: {"params": s, "logs": {"acc_val": [np.float64(0.7)]}},
    "plain": lambda s: s,
    "parallel": lambda s: prefixed(s, "module."),
    "lightning": lambda s: {"state_dict": prefixed(s, "net."), "epoch": 3},
    "model": lambda s: {"model": s},
}


@pytest.fixture
def evaluated(faces: tuple[Path, Tensor, Tensor], tmp_path: Path) -> Callable[..., float]:
    """The accuracy that ``train.py fit=false`` gives for a checkpoint."""

    def run(checkpoint: Path, *overrides: str) -> float:
        words = ["fit=false", "data=fer2013", f"data.path={faces[0]}", f"ckpt_path={checkpoint}", *overrides]
        quick = ["trainer=cpu", "logger=csv", "print_config=false", "saliency.images=0"]
        cfg = composed("train", *words, *quick, f"paths.cache_dir={tmp_path / 'cache'}", run_dir=tmp_path / "run")
        return float(train(cfg)["test/acc"])

    return run


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
def test_a_vgg_of_any_form_needs_its_path_only(
    form: str, faces: tuple[Path, Tensor, Tensor], evaluated: Callable[..., float], tmp_path: Path
) -> None:
    _, images, labels = faces
    network = telling(VGG(width=0.05), Preprocess(40)(images))
    if form == "safetensors":
        save_file(network.state_dict(), tmp_path / "vgg.safetensors")
        path = tmp_path / "vgg.safetensors"
    else:
        path = tmp_path / "VGGNet"
        torch.save(FORMS[form](network.state_dict()), path)
    assert evaluated(path) == pytest.approx(accuracy(network, Preprocess(40)(images), labels, FER2013))


def test_deep_emotion_has_the_class_order_of_an_image_folder(
    faces: tuple[Path, Tensor, Tensor], evaluated: Callable[..., float], tmp_path: Path
) -> None:
    _, images, labels = faces
    inputs = Preprocess(48, channels=3)(images)
    network = telling(DeepEmotion(), inputs)
    torch.save(network.state_dict(), tmp_path / "deep_emotion.pt")
    expected, misread = (accuracy(network, inputs, labels, order) for order in (ALPHABETICAL, FER2013))
    assert expected != misread
    found = evaluated(tmp_path / "deep_emotion.pt", "model=deep_emotion_image_folder")
    assert found == pytest.approx(expected)

"""The public library on a user's networks, images and words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

import emodissect as emo
from emodissect.core.errors import UserError

WORDS = ["top", "bottom", "left"]
CLASSES = ("dim", "bright")


class Net(LightningModule):
    """Four neurons on 8 x 8 grey images in [0, 1]: brightness of the upper, lower and left half, and a dead one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.head = nn.Linear(4, 2)
        weight = torch.zeros(4, 8, 8)
        weight[0, :4], weight[1, 4:], weight[2, :, :4] = 1, 1, 1
        with torch.no_grad():
            self.features[1].weight.copy_(weight.flatten(1))
            self.features[1].bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0, -1, 0, 0], [1, 1, 0, 0]]))
            self.head.bias.copy_(torch.tensor([32.0, -32]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    halves = torch.rand(60, 1, 2, 2, generator=generator) * 200
    noise = torch.rand(60, 1, 8, 8, generator=generator) * 40
    return (halves.repeat_interleave(4, 2).repeat_interleave(4, 3) + noise).to(torch.uint8)


@pytest.fixture
def labels(images: Tensor) -> Tensor:
    return (images.float().mean((1, 2, 3)) > 110).long()


@pytest.fixture
def scores(images: Tensor) -> Tensor:
    x = images[:, 0].float()
    return torch.stack([x[:, :4].mean((1, 2)), x[:, 4:].mean((1, 2)), x[:, :, :4].mean((1, 2))], 1)


class Pairs(Dataset[Any]):
    classes = CLASSES

    def __init__(self, images: Tensor, labels: Tensor, form: Callable[[Tensor], Any]) -> None:
        self.images, self.labels, self.form = images, labels, form

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.form(self.images[row]), int(self.labels[row])


class Dicts(Pairs):
    def __getitem__(self, row: int) -> Any:  # type: ignore[override]
        return {"pixel_values": self.form(self.images[row]), "label": int(self.labels[row])}


def as_given(image: Tensor) -> Tensor:
    return image


def to_float(image: Tensor) -> Tensor:
    return image.float() / 255


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataset of tensors": lambda x, y: Pairs(x, y, as_given),
    "dataset of floats": lambda x, y: Pairs(x, y, to_float),
    "dataset of PIL images": lambda x, y: Pairs(x, y, to_pil_image),
    "dataset of dicts": lambda x, y: Dicts(x, y, to_pil_image),
    "loader": lambda x, y: DataLoader(Pairs(x, y, to_float), batch_size=7),
    "loader of dicts": lambda x, y: DataLoader(Dicts(x, y, as_given), batch_size=7),
    "list of pairs": lambda x, y: list(zip(x, y.tolist(), strict=True)),
    "image set": lambda x, y: emo.image_set(x, y),
}


def dissected(images: Any, scores: Any, **further: Any) -> emo.Dissection:
    given = {"layers": "features.1", "scorer": scores, "similarity": "pearson", "null_draws": 200, "progress": False}
    words = {"top": ["bright"], "bottom": ["bright"], "left": ["dim"]}
    network = further.pop("network", None) or Net()
    return emo.dissect(network, images, further.pop("concepts", words), **{**given, **further})


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_gives_the_same_labels(form: str, images: Tensor, labels: Tensor, scores: Tensor) -> None:
    plain = dissected(images, scores, labels=labels, class_names=CLASSES)
    assert plain["features.1"]["concept"].tolist() == ["top", "bottom", "left", ""]
    np.testing.assert_allclose(plain["features.1"]["similarity"][:3], 1, atol=1e-4)
    found = dissected(FORMS[form](images, labels), scores, class_names=CLASSES)
    pd.testing.assert_frame_equal(found.neurons, plain.neurons)
    top = plain["features.1"]["top_ids"][0]
    assert plain["features.1"]["accuracy"][0] == pytest.approx(float((labels[torch.tensor(top)] == 1).float().mean()))


def test_without_labels_there_is_no_neuron_accuracy(images: Tensor, scores: Tensor) -> None:
    found = dissected(images, scores, concepts=WORDS)
    assert found.neurons["accuracy"].isna().all()
    assert found["features.1"]["concept"].tolist() == ["top", "bottom", "left", ""]
    assert "no class labels" in repr(found)


TRANSFORMS: dict[str, Any] = {
    "of a batch": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]),
    "of a PIL image": v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]),
    "of one tensor": lambda image: (image.float() / 255 - 0.5).div(0.5).reshape(1, 8, 8),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_is_given_what_it_takes(transform: str, images: Tensor, scores: Tensor) -> None:
    expected = dissected(images, scores, transform=TRANSFORMS["of a batch"])
    found = dissected(images, scores, transform=TRANSFORMS[transform])
    pd.testing.assert_frame_equal(found.neurons, expected.neurons)


def test_a_transform_that_mixes_images_is_given_one_at_a_time(images: Tensor, scores: Tensor) -> None:
    def centred(image: Tensor) -> Tensor:
        return image.float() - image.float().mean()

    found = dissected(images, scores, transform=centred)
    one_by_one = torch.stack([centred(image) for image in images])
    values = Net().features(one_by_one).detach()
    assert found["features.1"]["top_values"][0][0] == pytest.approx(float(values[:, 0].max()), rel=1e-5)


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ({"layers": "feature.1"}, "Did you mean 'features.1'"),
        ({"similarity": "softwpmi"}, "Did you mean 'soft_wpmi'"),
        ({"scorer": None, "clip": "VIT-B16"}, "Did you mean 'ViT-B-16'"),
        ({"scorer": torch.zeros(3, 3)}, r"shape \(60, 3\)|\(60, 3\)"),
        ({"transform": v2.RandomCrop(4)}, "another result each time"),
        ({"transform": v2.Resize(4)}, "cannot take the images, 1x4x4"),
        ({"concepts": "no_such_file.txt"}, "is not a file"),
        ({"class_names": ("only",), "labels": torch.arange(60) % 3}, "class_names has 1 names"),
    ],
)
def test_mistakes_are_reported_with_what_is_accepted(
    further: dict[str, Any], said: str, images: Tensor, scores: Tensor
) -> None:
    with pytest.raises(UserError, match=said):
        dissected(images, further.pop("scorer", scores), **further)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (torch.randn(4, 1, 8, 8), "normalized already"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)], "differ in size"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "has no images"),
        ([{"pixels": torch.zeros(1, 8, 8)}], "none of which is a known key for images"),
        (3, "not a source of images"),
    ],
)
def test_images_that_cannot_be_taken_are_reported(source: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        emo.image_set(source)


def test_modes_weights_and_the_random_state_are_left_alone(images: Tensor, scores: Tensor) -> None:
    network = Net()
    network.head.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dissected(images, scores, network=network)
    assert torch.equal(torch.rand(3), expected)
    assert (network.training, network.features.training, network.head.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.features[1]._forward_hooks


def test_the_tiny_clip_sees_the_raw_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, (30, 1, 40, 40), dtype=torch.uint8, generator=generator)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, 1, 40, 40))
    given = {"layers": "0", "clip": "tiny", "null_draws": 100, "cache_dir": tmp_path, "progress": False}
    found = emo.dissect(network, faces, ["Smile", "Frown"], **given)  # type: ignore[arg-type]
    dimmed = emo.dissect(network, faces, ["Smile", "Frown"], transform=lambda x: x.float() / 255, **given)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(found.neurons, dimmed.neurons)
    assert set(found.neurons["concept"]) <= {"Smile", "Frown"}
    assert len(list((tmp_path / "clip_images").glob("*/embeddings.safetensors"))) == 1


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, emodissect; assert 'torch' not in sys.modules; assert 'dissect' in dir(emodissect)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    def missing() -> Iterator[str]:
        for name in emo.__all__:
            if getattr(emo, name, None) is None:
                yield name

    assert list(missing()) == []
    with pytest.raises(AttributeError):
        emo.dissekt  # noqa: B018  # type: ignore[attr-defined]


def test_pairs_of_tensors_come_from_a_tensor_dataset(images: Tensor, labels: Tensor) -> None:
    found = emo.image_set(TensorDataset(images, labels))
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)

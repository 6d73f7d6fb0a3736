"""Networks of any origin: their inputs, their outputs, and the checks before any result is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from composing import composed
from torch import Tensor, nn

from emodissect.app.edit import edit
from emodissect.app.train import train
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet, image_loader
from emodissect.models.class_order import better_order
from emodissect.models.classifier import Classifier
from emodissect.models.network_output import described, part_named, probabilities_in, unsteady
from emodissect.models.preprocessing import Preprocess
from emodissect.models.zoo import custom_model

NAMES = ("a", "b", "c")


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Convolved(nn.Module):
    """A convolution, followed by what a subclass defines."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.conv(x).flatten(1))


class Viewing(Convolved):
    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        return self.fc(x.view(len(x), -1))


class Striding(Convolved):
    """Reads memory in storage order, which silently gives different numbers with channels last."""

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        return self.fc(x.as_strided((len(x), 4 * 36), (4 * 36, 1)))


@pytest.mark.parametrize(("kind", "layout"), [(Convolved, True), (Viewing, False), (Striding, False)])
def test_channels_go_last_where_the_output_stays(kind: Callable[[], nn.Module], layout: bool, images: Tensor) -> None:
    network = kind()
    with torch.no_grad():
        expected = network(images.float() / 255)
    classifier = Classifier(network, Preprocess(8), NAMES).train()
    classifier.prepare(images[:2])
    assert classifier.channels_last == layout
    assert classifier.network.training
    torch.testing.assert_close(classifier.eval()(images), expected)
    never = Classifier(kind(), Preprocess(8), NAMES, channels_last=False)
    never.prepare(images[:2])
    assert not never.channels_last


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).flatten(1))


def fitted(network: nn.Module, images: Tensor, tmp_path: Path, **options: Any) -> Classifier:
    classifier = Classifier(network, Preprocess(8), NAMES)
    classifier.prepare(images[:2])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False,
                                **quiet, **options)  # type: ignore[arg-type]  # fmt: skip
    loader = image_loader(ImageSet(images, torch.arange(20) % 3, torch.arange(20)), 10)
    trainer.fit(classifier, loader, loader)
    return classifier


def test_lazy_layers_get_their_shapes_and_train(images: Tensor, tmp_path: Path) -> None:
    classifier = fitted(Lazy(), images, tmp_path)
    assert classifier.network.fc.weight.shape == (3, 144)  # type: ignore[union-attr]
    assert int(classifier.network.norm.num_batches_tracked) == 4  # type: ignore[union-attr, arg-type]


def test_true_half_precision_trains(images: Tensor, tmp_path: Path) -> None:
    classifier = fitted(Convolved(), images, tmp_path, precision="bf16-true")
    assert classifier.network.conv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert classifier(images).isfinite().all()


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Several(Convolved):
    form = "dict"

    def forward(self, x: Tensor) -> Any:
        features = self.conv(x).flatten(1)
        logits = self.fc(features)
        return {
            "dict": {"logits": logits, "features": features},
            "tuple": (logits, features),
            "dataclass": Answer(logits, features),
            "nested": {"head": {"logits": logits}},
        }[self.form]


@pytest.mark.parametrize(
    ("form", "output"),
    [("dict", "logits"), ("tuple", 0), ("tuple", "0"), ("dataclass", "logits"), ("nested", "head.logits")],
)
def test_the_part_with_the_logits_is_named(form: str, output: str | int, images: Tensor) -> None:
    network = Several()
    network.form = form
    expected = network.fc(network.conv(images.float() / 255).flatten(1))
    if form != "nested":
        said = Classifier(network, Preprocess(8), NAMES).check_output(network(images.float()))
        assert f"set model.output={output}" in str(said)
    classifier = Classifier(network, Preprocess(8), NAMES, output=output)
    classifier.prepare(images[:2])
    torch.testing.assert_close(classifier(images), expected)
    torch.testing.assert_close(copy.deepcopy(classifier)(images), expected)
    with pytest.raises(UserError, match=r"model\.output=logit: the network's output has no 'logit'"):
        part_named(Several()(torch.rand(1, 1, 8, 8)), "logit")


def test_outputs_are_described() -> None:
    assert described([torch.zeros(2, 5)], 3) == "a list of 0 (2, 5): set model.output=<one of 0>"
    assert described(torch.zeros(2, 3, 1), 3) == "a tensor of shape (2, 3, 1)"
    assert described("text", 3) == "a str"


OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 3)
    def forward(self, x, scale, shift=0.0):
        return self.fc(x.flatten(1)) * scale + shift
"""


def test_further_arguments_of_the_forward_pass(tmp_path: Path, images: Tensor) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    target = f"{tmp_path}/own_net.py:Net"
    with pytest.raises(
        UserError, match=r"missing 1 required positional argument: 'scale'.*model\.forward=\{name: value\}"
    ):
        Classifier(custom_model(target), Preprocess(8), NAMES).prepare(images[:2])
    network = custom_model(target, forward={"scale": 2.0, "shift": 1.0})
    classifier = Classifier(network, Preprocess(8), NAMES)
    classifier.prepare(images[:2])
    torch.testing.assert_close(classifier(images), network.fc(images.flatten(1).float() / 255) * 2 + 1)  # type: ignore[operator]


def test_probabilities_are_reported_from_logits() -> None:
    logits = torch.randn(16, 7, generator=torch.Generator().manual_seed(0))
    assert probabilities_in(logits) is None
    assert probabilities_in(logits.relu()) is None
    assert probabilities_in(logits.softmax(1)) == "rows sum to 1 (softmax)"
    assert probabilities_in(logits[:2].softmax(1).half()) == "rows sum to 1 (softmax)"
    assert probabilities_in(logits.sigmoid()) == "all values are in [0, 1] (sigmoid)"
    assert probabilities_in(logits.softmax(1).log()) is None
    assert probabilities_in({"logits": logits}) is None


def test_random_and_batch_dependent_answers_are_found(images: Tensor) -> None:
    steady = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    assert unsteady(steady, images.float()) is None
    random = nn.Sequential(*steady, nn.Dropout(0.5)).train()
    assert "differently each time" in str(unsteady(random, images.float()))
    dependent = nn.Sequential(*steady, nn.BatchNorm1d(3, track_running_stats=False)).eval()
    assert "depends on the other images of the batch" in str(unsteady(dependent, images.float()))
    with torch.no_grad():
        steady[1].bias[0] = torch.inf
    assert "NaN or infinite outputs for 20 of 20 images" in str(unsteady(steady, images.float()))


def test_an_order_that_fits_far_better_is_found_and_chance_is_not() -> None:
    labels = torch.arange(140) % 7
    logits = torch.eye(7)[labels] * 3 + torch.rand(140, 7, generator=torch.Generator().manual_seed(0))
    names = tuple("abcdefg")
    assert better_order(logits, labels, names) is None
    turned = logits.roll(1, dims=1)
    found = better_order(turned, labels, names)
    assert found is not None
    assert (found.accuracy, found.best, "".join(found.class_order)) == (0.0, 1.0, "gabcdef")
    assert better_order(turned[:40], labels[:40], names) is None
    noise = torch.rand(256, 7, generator=torch.Generator().manual_seed(1))
    assert better_order(noise, torch.arange(256) % 7, names) is None
    # a network with a class more, whose given order is wrong: 'x' keeps its place
    given = ["b", "a", "x", "c", "d", "e", "f", "g"]
    found = better_order(logits[:, [1, 0, 2, 3, 4, 5, 6]], labels, names, given)
    assert found is not None
    assert found.class_order == ["a", "b", "x", "c", "d", "e", "f", "g"]


# -- through the application ----------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``train.py fit=false`` on random images in the format of FER2013, with a user's network."""
    generator = np.random.default_rng(0)
    labels, usage = np.arange(224) % 7, np.repeat([0, 1, 2], [56, 84, 84])
    # the class is the brightness of the image, so that a network can know it
    pixels = (labels[:, None, None] * 36 + generator.integers(0, 4, (224, 48, 48))).astype(np.uint8)
    np.savez(tmp_path / "fer2013.npz", pixels=pixels, labels=labels, usage=usage)

    def run(source: str, state: dict[str, Tensor], *overrides: str, verb: str = "train") -> dict[str, Any]:
        (tmp_path / "net_of_mine.py").write_text(source)
        torch.save(state, tmp_path / "w.pt")
        words = ["data=fer2013", f"data.path={tmp_path}/fer2013.npz", f"ckpt_path={tmp_path}/w.pt", "model=custom"]
        words += ["fit=false"] if verb == "train" else []
        words += [f"model.target={tmp_path}/net_of_mine.py:Net", "trainer=cpu", "logger=csv", "print_config=false"]
        words += ["saliency.images=0", f"paths.cache_dir={tmp_path / 'cache'}", *overrides]
        return dict({"train": train, "edit": edit}[verb](composed(verb, *words, run_dir=tmp_path / "run")))

    return run


KNOWING = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.order = torch.nn.Parameter(torch.arange(7.0))
    def forward(self, x):
        return {end}
"""
LOGITS = "-(x.mean((1, 2, 3))[:, None] * 255 / 36 - self.order) ** 2"


def test_a_wrong_class_order_is_reported_with_the_one_to_set(evaluated: Any, caplog: Any) -> None:
    figures = evaluated(KNOWING.format(end=LOGITS), {"order": torch.tensor([1.0, 0, 2, 3, 4, 5, 6])})
    assert figures["test/acc"] == pytest.approx(5 / 7)
    said = "accuracy is 71.4 % in the given order and 100.0 % in another. If the network was trained on that order, set"
    assert f"{said} 'model.class_order=[Disgust, Angry, Fear, Happy, Sad, Surprise, Neutral]'." in caplog.text


def test_probabilities_are_reported_before_they_are_used(evaluated: Any, caplog: Any) -> None:
    evaluated(KNOWING.format(end=f"torch.softmax({LOGITS}, 1)"), {"order": torch.arange(7.0)})
    assert "Net gives probabilities, not logits: rows sum to 1 (softmax)." in caplog.text
    assert "seem to be in another class order" not in caplog.text


def test_nan_stops_an_evaluation_as_it_stops_an_edit(evaluated: Any) -> None:
    with pytest.raises(UserError, match=r"w\.pt holds NaN or infinite weights in 1 of 1 tensors: order \(1 of 7\)"):
        evaluated(KNOWING.format(end=LOGITS), {"order": torch.tensor([torch.nan, 1, 2, 3, 4, 5, 6])})
    with pytest.raises(
        UserError, match=r"Net cannot be evaluated: it gives NaN or infinite outputs for 16 of 16 images"
    ):
        evaluated(KNOWING.format(end=f"torch.log(-1 - ({LOGITS}) ** 2)"), {"order": torch.arange(7.0)})


RANDOM = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2304, 7)
    def forward(self, x):
        return torch.nn.functional.dropout(self.fc(x.flatten(1)), 0.5, training=True)
"""


def test_a_random_network_is_a_warning_in_an_evaluation_and_ends_an_edit(evaluated: Any, caplog: Any) -> None:
    state = nn.ModuleDict({"fc": nn.Linear(2304, 7)}).state_dict()
    evaluated(RANDOM, state)
    assert "Net: it answers differently each time" in caplog.text
    with pytest.raises(UserError, match="Net cannot be evaluated: it answers differently each time"):
        evaluated(RANDOM, state, "layer=fc", verb="edit")

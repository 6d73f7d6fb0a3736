"""Running only the layers after an edited layer gives the same logits as the edited weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.editing.fast.cut import cut_behind
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import PARAMETERS, Operation, Scaling
from emodissect.editing.tracing import CannotTrace
from emodissect.models.classifier import Classifier
from emodissect.models.deep_emotion import DeepEmotion
from emodissect.models.inference import Inference
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def faces(count: int = 11, size: int = 48) -> ImageSet:
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 7, torch.randperm(count) + 100)


def scalings(scales: Tensor, parameters: str = "weight") -> list[Operation]:
    return [Scaling(row, parameters) for row in scales]


def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """Sets running statistics and biases to values that are not trivial."""
    network.train()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        network(images)
    return network.eval()


def vgg() -> Inference:
    torch.manual_seed(0)
    network = VGG(width=0.03)
    return Inference(Preprocess(), settle(network, torch.rand(8, 1, 40, 40)))


class InPlace(nn.Module):
    """Shape checks, in-place ReLUs, a batch size read before the layer and a skip connection around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head, self.out = nn.ReLU(inplace=True), nn.Linear(4 * 9, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, *_ = x.shape
        if channels != 1 or x.shape[-1] != 12:
            raise ValueError("wrong shape")
        x = self.relu(self.first(x))
        x = self.relu(self.second(x).add_(x))
        x = torch.max_pool2d(x, 4).reshape(rows, -1)
        return self.out(torch.relu_(self.head(x))).log_softmax(1)


def in_place() -> Inference:
    torch.manual_seed(0)
    return Inference(Preprocess(size=12), settle(InPlace(), torch.rand(8, 1, 12, 12)))


def resnet() -> Inference:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7)
    return Inference(Preprocess(size=32, channels=3), settle(network, torch.rand(8, 3, 32, 32)))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["layer3.1.conv1", "layer4.0.conv2", "layer2.0.downsample.0"])
def test_a_resnet(layer: str) -> None:
    cut = EditedLogits(resnet(), layer, faces(), batch_size=4)
    assert cut.is_cut, cut.reason
    scales = torch.where(torch.rand(1, cut.neurons) < 0.5, 1.7, 1 / 1.7)
    exact = cut.exact(cut.edit(Scaling(scales[0])))
    torch.testing.assert_close(cut.logits(scalings(scales))[0], exact.logits, atol=2e-4, rtol=1e-3)


def deep_emotion() -> Inference:
    torch.manual_seed(0)
    return Inference(Preprocess(size=48, channels=3), settle(DeepEmotion(), torch.rand(8, 3, 48, 48)))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        *((vgg, layer) for layer in ("conv3a", "conv4b", "lin1", "lin2")),
        *((in_place, layer) for layer in ("first", "second", "head")),
        (deep_emotion, "conv4"),
    ],
)
def test_the_cut_gives_what_edited_weights_give(make: Callable[[], Inference], layer: str, parameters: str) -> None:
    inference = make()
    cut = EditedLogits(inference, layer, faces(), batch_size=4)
    assert cut.is_cut, cut.reason
    torch.testing.assert_close(cut.before.logits, cut._full(None).logits, atol=1e-4, rtol=1e-4)
    mask = torch.rand(3, cut.neurons) < 0.5
    scales = torch.where(mask, 1.7, 1 / 1.7)
    scales = torch.cat([scales, torch.ones(1, cut.neurons), scales[:1], torch.rand(1, cut.neurons)])
    unknown_reader = parameters == "outgoing" and layer in (
        "first",
        "second",
        "layer4.0.conv2",
        "layer2.0.downsample.0",
    )
    if unknown_reader:
        with pytest.raises(UserError, match="layer behind"):
            cut.logits(scalings(scales, parameters))
        return
    fast = cut.logits(scalings(scales, parameters))
    assert torch.equal(fast[0], fast[4])
    assert torch.equal(fast[3], cut.before.logits)
    for cell in (0, 1, 2, 5):
        exact = cut.exact(cut.edit(Scaling(scales[cell], parameters)))
        torch.testing.assert_close(fast[cell], exact.logits, atol=2e-4, rtol=1e-3)
        assert torch.equal(fast[cell].argmax(1), exact.predicted)
    assert not torch.allclose(fast[0], cut.before.logits, atol=1e-4)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("layer", ["conv4b", "lin1", "lin2"])
@pytest.mark.parametrize("widest", [0, 128], ids=["differences", "one product"])
def test_many_cells_at_once_give_what_cell_by_cell_gives(
    widest: int, layer: str, parameters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = EditedLogits(vgg(), layer, faces(), batch_size=4)
    assert cut._parts is not None
    assert cut._parts.linear is not None
    scales = torch.where(torch.rand(9, cut.neurons) < 0.4, 2.0, torch.tensor([0.0, 0.5, 1.0]).repeat(3)[:, None])
    scales[8] = torch.tensor([0.5, 1.0, 3.0])[torch.arange(cut.neurons) % 3]
    monkeypatch.setattr("emodissect.editing.fast.edited_logits._WIDEST_PRODUCT", widest)
    size = cut._parts.linear.reader.weight.numel()
    monkeypatch.setattr("emodissect.editing.fast.edited_logits._PRODUCT_BYTES", 2 * size * 4 * 2.5)  # two cells at once
    apart = cut._by_cell(cut._parts, scalings(scales, parameters))
    monkeypatch.setattr(EditedLogits, "_by_cell", None)
    torch.testing.assert_close(cut.logits(scalings(scales, parameters)), apart, atol=1e-5, rtol=1e-4)


def test_scales_of_many_values_go_cell_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = EditedLogits(vgg(), "lin2", faces(), batch_size=4)
    scales = torch.rand(2, cut.neurons)
    expected = torch.stack([cut.exact(cut.edit(Scaling(row))).logits for row in scales])
    for way in ("_by_product", "_by_difference"):
        monkeypatch.setattr(EditedLogits, way, None)
    torch.testing.assert_close(cut.logits(scalings(scales)), expected, atol=1e-5, rtol=1e-4)


class Tokens(nn.Module):
    """The linear layer's neurons are on the last axis; after flattening, they are no longer adjacent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 4), nn.Linear(8 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x[:, 0]).relu().flatten(1))


class Mixing(nn.Module):
    """Pooling over neurons, not over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.out = nn.Linear(64, 8), nn.MaxPool1d(3, 1, 1), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.first(x.flatten(1))))


@pytest.mark.parametrize("network", [Tokens, Mixing])
def test_neurons_that_are_not_alone_in_their_columns_go_cell_by_cell(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    cut = EditedLogits(Inference(Preprocess(size=8), network().eval()), "first", faces(), batch_size=4)
    assert cut._parts is not None
    assert cut._parts.linear is None
    scales = torch.where(torch.rand(3, cut.neurons) < 0.5, 2.0, 0.5)
    expected = torch.stack([cut.exact(cut.edit(Scaling(row))).logits for row in scales])
    torch.testing.assert_close(cut.logits(scalings(scales)), expected, atol=1e-5, rtol=1e-4)


def test_rows_are_ascending_by_id() -> None:
    inference, images = vgg(), faces()
    cut = EditedLogits(inference, "lin1", images, batch_size=3)
    assert cut.before.ids.tolist() == sorted(images.ids.tolist())
    assert torch.equal(cut.before.labels, images.labels[images.rows_of(cut.before.ids)])


def test_large_outputs_lie_on_disk_and_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    inference = vgg()
    with caplog.at_level(logging.DEBUG):
        disk, memory = (
            EditedLogits(inference, "conv4b", faces(), memory_limit=100),
            EditedLogits(inference, "conv4b", faces()),
        )
    assert "on disk" in caplog.text
    assert disk.bytes == memory.bytes == 11 * disk.neurons * 25 * 4
    scales = torch.rand(2, disk.neurons)
    assert torch.equal(disk.logits(scalings(scales)), memory.logits(scalings(scales)))
    folder = disk._folder
    del disk
    folder.cleanup()


def test_outputs_that_find_no_room_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = SimpleNamespace(total=1e9, used=1e9, free=1000)
    monkeypatch.setattr("emodissect.editing.fast.edited_logits.shutil.disk_usage", lambda _: usage)
    full = EditedLogits(vgg(), "conv4b", faces(), memory_limit=100)
    assert not full.is_cut
    assert full.bytes == 0
    assert "are free in" in full.reason
    assert "TMPDIR" in caplog.text
    assert EditedLogits(vgg(), "conv4b", faces()).is_cut  # in memory there is room


class Masked(nn.Module):
    """A mask computed before the layer is used after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lin, self.out = nn.Linear(16, 6), nn.Linear(6, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        bright = x.sum(1, keepdim=True) > 0
        return self.out(torch.where(bright, self.lin(x), x[:, :5]))


def test_masks_are_worked_out_again_behind_the_cut() -> None:
    torch.manual_seed(0)
    cut = EditedLogits(Inference(Preprocess(size=4), Masked().eval()), "lin", faces(), batch_size=4)
    assert cut.is_cut, cut.reason
    scales = torch.rand(2, 5)
    for cell, logits in enumerate(cut.logits(scalings(scales))):
        torch.testing.assert_close(logits, cut.exact(cut.edit(Scaling(scales[cell]))).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("views", ["single", "ten_crop"])
def test_a_classifiers_views_and_class_order(views: str) -> None:
    torch.manual_seed(0)
    network = settle(VGG(width=0.03), torch.rand(8, 1, 40, 40))
    classifier = Classifier(network, Preprocess(how="crop", views=views), CLASSES, class_order=CLASSES[::-1]).eval()
    images = faces()
    cut = EditedLogits(Inference.of(classifier), "lin2", images, batch_size=4)
    with torch.no_grad():
        expected = classifier(cut.images.images)
    torch.testing.assert_close(cut.before.logits, expected, atol=1e-5, rtol=1e-4)
    scales = torch.where(torch.rand(2, cut.neurons) < 0.5, 2.0, 0.5)
    torch.testing.assert_close(
        cut.logits(scalings(scales))[1],
        cut.exact(cut.edit(Scaling(scales[1]))).logits,
        atol=1e-4,
        rtol=1e-4,
    )


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(16, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.lin(x.flatten(1)))
        for _ in range(int(float(x.detach().abs().sum()) * 0) + 1):
            x = x + 1
        return self.out(x)


def test_an_untraceable_network_is_evaluated_in_full_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    inference = Inference(Preprocess(size=4), Untraceable())
    full = EditedLogits(inference, "lin", faces(), batch_size=4)
    assert not full.is_cut
    assert full.bytes == 0
    assert "Every edit is evaluated in full" in caplog.text
    assert "torch.fx cannot trace Untraceable" in full.reason
    scales = torch.rand(2, 5)
    logits = full.logits(scalings(scales, "weight_and_bias"))
    assert torch.equal(logits[1], full.exact(full.edit(Scaling(scales[1], "weight_and_bias"))).logits)
    assert inference.network.training  # the mode it came in


def test_arguments_that_may_be_left_out_have_their_defaults() -> None:
    """For example the mask of timm's transformers."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, times: float = 3.0) -> Tensor:
            x = self.lin(x) * times
            return self.out(x if mask is None else x * mask)

    network, images = Masked().eval(), torch.rand(3, 4)
    parts = cut_behind(network, "lin", images)
    torch.testing.assert_close(parts.tail(*parts.head(images)), network(images))


def test_what_cannot_be_cut() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.free = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(self.lin(x) + x.shape[0])

    class ByBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lin(x)
            return x * 2 if x.shape[0] > 1 else x

    for network, layer, message in [(Twice(), "lin", "called 2 times"), (Twice(), "free", "called 0 times")]:
        with pytest.raises(CannotTrace, match=message):
            cut_behind(network.eval(), layer, torch.rand(3, 4))
    with pytest.raises(CannotTrace, match="differ from the whole"):
        cut_behind(ByBatch().eval(), "lin", torch.rand(3, 4))


def test_an_unknown_layer() -> None:
    with pytest.raises(UserError, match="Did you mean 'lin2'"):
        EditedLogits(vgg(), "lin_2", faces())

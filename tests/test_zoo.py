"""torchvision and timm networks: heads and stems fit, and an error for an unknown name suggests the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from emodissect.core.errors import UserError
from emodissect.models import zoo
from emodissect.models.zoo import custom_model, replace_head, timm_model, torchvision_model


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_by_name(name: str) -> None:
    network = torchvision_model(name, 5).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_torchvision_in_training_gives_logits_alone() -> None:
    network = torchvision_model("googlenet", 5).train()
    assert isinstance(network(torch.rand(2, 3, 64, 64)), torch.Tensor)


def test_a_grey_stem_gives_what_three_equal_channels_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: whole)
    grey = torch.rand(2, 1, 32, 32)
    expected = whole.conv1(grey.expand(-1, 3, -1, -1)).detach()
    network = torchvision_model("resnet18", 4, pretrained=True, channels=1)
    torch.testing.assert_close(network.conv1(grey), expected)
    assert network.fc.weight.shape == (4, 512)


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "densenet121", "squeezenet1_0", "efficientnet_b0", "vit_b_32", "swin_t", "mnasnet0_5"]
)
def test_the_new_head_stands_where_the_old_one_stood(name: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
        before = {n: p.shape for n, p in network.named_parameters()}
        replace_head(network, 3)
        after = {n: p.shape for n, p in network.named_parameters()}
        expected = {
            n: p.shape for n, p in torchvision.models.get_model(name, weights=None, num_classes=3).named_parameters()
        }
    assert after == expected
    assert sum(before[n] != after[n] for n in before) == 2


def test_a_published_head_of_the_asked_size_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torchvision.models.resnet18()
    head = whole.fc.weight.detach().clone()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: whole)
    assert torch.equal(torchvision_model("resnet18", 1000, pretrained=True).fc.weight, head)


def test_unknown_torchvision_name() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.name=resnet81 is not a torchvision classifier\. Did you mean "
        r"'resnet18'",
    ):
        torchvision_model("resnet81", 7)


def test_timm_by_name() -> None:
    network = timm_model("resnet10t", 5, channels=1).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 1, 48, 48)).shape == (2, 5)
    tokens = timm_model("vit_tiny_patch16_224.augreg_in21k", 5, arguments={"img_size": 48}).eval()
    with torch.inference_mode():
        assert tokens(torch.rand(1, 3, 48, 48)).shape == (1, 5)


def test_unknown_timm_name_and_argument() -> None:
    with pytest.raises(UserError, match=r"model\.name=resnett10 is not a timm model\. Did you mean"):
        timm_model("resnett10", 7)
    with pytest.raises(UserError, match="image_sise"):
        timm_model("resnet10t", 7, arguments={"image_sise": 3})


def test_weights_out_of_reach_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> nn.Module:
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    for make in (zoo.timm_model, zoo.torchvision_model):
        with pytest.raises(UserError, match=r"cannot be downloaded.*model\.pretrained=false"):
            make("resnet18", 7, pretrained=True)


NETWORK = """
import torch
class Small(torch.nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.fc = torch.nn.Linear(4, classes)
    def forward(self, x):
        return self.fc(x)
number = 3
def made(): return "no module"
"""


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_net_of_mine.py").write_text(NETWORK)
    by_file = custom_model(f"{tmp_path}/small_net_of_mine.py:Small", {"classes": 5})
    assert by_file(torch.rand(1, 4)).shape == (1, 5)
    monkeypatch.syspath_prepend(tmp_path)
    assert custom_model("small_net_of_mine.Small")(torch.rand(1, 4)).shape == (1, 2)
    assert isinstance(custom_model("torch.nn.Linear", {"in_features": 2, "out_features": 3}), nn.Linear)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("Small", {}, "give package.module.Name"),
        ("no_such_package.Net", {}, "No module named 'no_such_package'"),
        ("/nowhere/net.py:Net", {}, "there is no file /nowhere/net.py"),
        ("{file}:Smal", {}, "Did you mean 'Small'"),
        ("{file}:Small", {"clases": 3}, "clases"),
        ("{file}:number", {}, "is a int"),
        ("{file}:made", {}, "made a str, not a torch.nn.Module"),
    ],
)
def test_what_is_wrong_with_ones_own_network(target: str, arguments: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    with pytest.raises(UserError, match=message):
        custom_model(target.format(file=tmp_path / "net.py"), arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import layers_beside_it", r"in line 2: ModuleNotFoundError: .*PYTHONPATH=/"),
        ("1 / 0", r"in line 2: ZeroDivisionError: division by zero\.$"),
        ("class Net(:", r"cannot be run: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_run_is_reported(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken_net.py").write_text(f"import torch\n{line}\n")
    with pytest.raises(UserError, match=message):
        custom_model(f"{tmp_path}/broken_net.py:Net")

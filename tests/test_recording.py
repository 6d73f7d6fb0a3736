"""Layers by name, pooling and hooks, on networks small enough to work out by hand."""

from __future__ import annotations

import logging
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from emodissect.core.errors import UserError
from emodissect.recording import reached_layers, record, resolve_layers
from emodissect.recording.pooling import neuron_axis, pooled, prefix_tokens


class Tiny(nn.Module):
    """conv (1x1, weights 1 and -2) -> in-place ReLU -> mean over space -> linear (identity, bias 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Sequential(OrderedDict(fc=nn.Linear(2, 2), act=nn.ReLU(inplace=True)))
        self.unused = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
            self.conv.bias.zero_()
            self.body.fc.weight.copy_(torch.eye(2))
            self.body.fc.bias.copy_(torch.tensor([1.0, -9.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(self.act(self.conv(images)).mean((2, 3)))


# one image of 1 x 2 x 2 pixels: conv gives [1 2 3 4] and [-2 -4 -6 -8]
PIXELS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


# --- which layers


def test_all_is_every_convolution_and_linear_in_module_order_with_the_logits() -> None:
    assert resolve_layers(Tiny(), "all") == ["conv", "body.fc", "unused"]
    resnet = torchvision.models.resnet18(weights=None)
    names = resolve_layers(resnet, "all")
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert len(names) == 21  # 17 convolutions, 3 downsampling convolutions, 1 linear


def test_all_leaves_out_what_attention_reads_without_calling() -> None:
    vit = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    assert resolve_layers(vit, "all") == ["0"]


def test_paths_globs_and_lists_keep_their_order_and_come_once() -> None:
    resnet = torchvision.models.resnet18(weights=None)
    assert resolve_layers(resnet, "layer4.1.conv2") == ["layer4.1.conv2"]
    assert resolve_layers(resnet, "layer4.*.conv?") == [f"layer4.{b}.conv{c}" for b in (0, 1) for c in (1, 2)]
    assert resolve_layers(resnet, ["fc", "layer4.1.conv2", "layer4.1.conv*"]) == [
        "fc",
        "layer4.1.conv2",
        "layer4.1.conv1",
    ]
    assert resolve_layers(resnet, "layer4.1.*") == [
        f"layer4.1.{name}" for name in ("conv1", "bn1", "relu", "conv2", "bn2")
    ]


def test_a_glob_takes_blocks_only_where_it_matches_nothing_without_children() -> None:
    assert resolve_layers(torchvision.models.resnet18(weights=None), "layer4.?") == ["layer4.0", "layer4.1"]


def test_a_container_by_its_path_and_wrapped_networks() -> None:
    assert resolve_layers(Tiny(), "body") == ["body"]
    assert resolve_layers(torch.compile(Tiny(), backend="eager"), "body.fc") == ["body.fc"]
    with pytest.raises(UserError, match="DataParallel cannot be recorded"):
        resolve_layers(nn.DataParallel(Tiny()), "conv")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "cnov",
            "layer='cnov': Tiny has no module of that path. Did you mean 'conv'? Known: conv, body.fc, unused, act",
        ),
        ("bodi.*", "layer='bodi.*': no module of Tiny matches this glob. Did you mean 'body.fc'?"),
        ("conv.weight", "has no module of that path. Did you mean"),
        ("", "has no module of that path"),
        ([], "the list is empty"),
        (["conv", "nowhere"], "layer='nowhere'"),
    ],
)
def test_an_unknown_layer_is_reported_with_the_nearest(spec: str | list[str], words: str) -> None:
    with pytest.raises(UserError) as told:
        resolve_layers(Tiny(), spec)
    assert words in str(told.value)


def test_a_list_of_modules_has_no_output() -> None:
    network = nn.Module()
    network.stages = nn.ModuleList([nn.Linear(1, 1)])
    with pytest.raises(UserError, match=r"layer='stages' is a ModuleList.*Known: stages.0"):
        resolve_layers(network, "stages")


def test_all_of_a_network_without_weights() -> None:
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        resolve_layers(nn.Sequential(nn.ReLU()), "all")


# --- what is recorded


def test_hand_worked_network_behind_in_place_operations() -> None:
    network = Tiny()
    with record(network, ["conv", "act", "body.fc", "body"], "avg") as recorded:
        network(PIXELS)
    assert recorded["conv"].tolist() == [[2.5, -5.0]]  # before the ReLU that overwrites it
    assert recorded["act"].tolist() == [[2.5, 0.0]]
    assert recorded["body.fc"].tolist() == [[3.5, -9.0]]
    assert recorded["body"].tolist() == [[3.5, 0.0]]
    with record(network, ["conv", "body.fc"], "max") as recorded:
        network(torch.cat([PIXELS, 2 * PIXELS]))
    assert recorded["conv"].tolist() == [[4.0, -2.0], [8.0, -4.0]]
    assert recorded["body.fc"].tolist() == [[3.5, -9.0], [6.0, -9.0]]


@pytest.mark.parametrize("pool", ["avg", "max", "class_token", "token_mean"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 1, 3), (2,)])
def test_what_is_kept_never_shares_memory(pool: str, shape: tuple[int, ...]) -> None:
    output = torch.ones(shape)
    kept = pooled(output, neuron_axis(nn.Sequential(nn.Identity()), "0", shape), pool, prefix=0)
    output.zero_()
    assert kept.shape == (2, 3 if len(shape) > 1 else 1)
    assert (kept == 1).all()


@pytest.mark.parametrize("fail", [False, True])
def test_hooks_are_gone_and_nothing_else_is_touched(fail: bool) -> None:
    network = Tiny().train()
    network.body.eval()
    handle = network.conv.register_forward_hook(lambda *_: None)
    before = hooks_of(network)
    try:
        with record(network, "body.fc") as recorded:
            assert hooks_of(network) == before + 3
            out = network(PIXELS.requires_grad_())
            assert torch.is_grad_enabled()
            assert out.requires_grad
            assert not recorded["body.fc"].requires_grad
            if fail:
                raise KeyError("any mistake of the caller")
    except KeyError:
        assert fail
    PIXELS.requires_grad_(False)
    assert hooks_of(network) == before
    assert network.training
    assert not network.body.training
    handle.remove()


def test_hooks_are_gone_when_the_forward_fails() -> None:
    network = Tiny()
    with pytest.raises(RuntimeError), record(network, "conv"):
        network(torch.zeros(1, 5, 2, 2))
    assert hooks_of(network) == 0


def test_the_output_is_bit_identical_and_gradients_flow_as_without() -> None:
    network = Tiny()
    plain = network(PIXELS)
    plain.sum().backward()
    gradient = network.conv.weight.grad.clone()
    network.zero_grad()
    with record(network, ["conv", "act", "body"]):
        out = network(PIXELS)
        out.sum().backward()
    assert torch.equal(out, plain)
    assert torch.equal(network.conv.weight.grad, gradient)


def test_values_from_inference_mode_are_ordinary_tensors() -> None:
    network = Tiny()
    with torch.inference_mode(), record(network, ["conv", "body.fc"]) as recorded:
        network(PIXELS)
    recorded["conv"].add_(1)  # an inference tensor would refuse
    assert recorded["conv"].tolist() == [[3.5, -4.0]]
    assert recorded["body.fc"].tolist() == [[3.5, -9.0]]


def test_channels_last_memory_is_not_channels_last_axes() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    images = torch.randn(4, 3, 6, 5)
    with record(conv, "0") as recorded:
        conv(images)
        plain = recorded["0"]
        conv.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        assert recorded["0"].shape == (4, 5)
        torch.testing.assert_close(recorded["0"], plain)


def test_half_precision_is_averaged_in_float32() -> None:
    wide = torch.full((1, 1, 64, 64), 16.0).bfloat16()
    wide[..., 0, 0] = 272.0
    kept = pooled(wide, 1, "avg")
    assert kept.dtype == torch.float32
    assert kept.item() == 16 + 256 / 4096  # bfloat16 cannot hold it


# --- layouts


def test_tokens() -> None:
    tokens = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]]])
    assert pooled(tokens, -1, "avg").tolist() == [[3.0, 20.0]]
    assert pooled(tokens, -1, "max").tolist() == [[6.0, 30.0]]
    assert pooled(tokens, -1, "class_token").tolist() == [[1.0, 10.0]]
    assert pooled(tokens, -1, "token_mean", prefix=1).tolist() == [[4.0, 25.0]]
    assert pooled(tokens, -1, "token_mean", prefix=0).tolist() == [[3.0, 20.0]]
    assert pooled(tokens, 1, "avg").tolist() == [[5.5, 11.0, 18.0]]  # a 1-D convolution of three channels


def test_one_space_pooled_by_every_word() -> None:
    space = torch.arange(8.0).view(1, 2, 2, 2)
    for pool in ("avg", "class_token", "token_mean"):
        assert pooled(space, 1, pool, prefix=1).tolist() == [[1.5, 5.5]]
        assert pooled(space, -1, pool, prefix=1).tolist() == [[3.0, 4.0]]
    assert pooled(space, -1, "max").tolist() == [[6.0, 7.0]]


def test_the_axis_rule_by_type_size_and_neighbours() -> None:
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 7, 1),
            relu=nn.ReLU(),
            norm=nn.LayerNorm(7),
            fc=nn.Linear(7, 9),
            gelu=nn.GELU(),
            line=nn.Conv1d(3, 4, 1),
            block=nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 6)),
        )
    )
    assert neuron_axis(network, "conv", (2, 7, 5, 7)) == 1  # 7 on both: a convolution means axis 1
    assert neuron_axis(network, "relu", (2, 7, 5, 5)) == 1  # by the convolution before it
    assert neuron_axis(network, "norm", (2, 5, 5, 7)) == -1
    assert neuron_axis(network, "norm", (2, 7, 5, 7)) == -1  # 7 on both: a LayerNorm means the last
    assert neuron_axis(network, "norm", (2, 7, 5, 5)) == 1  # as in torchvision's LayerNorm2d
    assert neuron_axis(network, "fc", (2, 5, 5, 9)) == -1
    assert neuron_axis(network, "gelu", (2, 5, 5, 9)) == -1  # by the linear before it
    assert neuron_axis(network, "line", (2, 4, 11)) == 1
    assert neuron_axis(network, "fc", (2, 11, 9)) == -1
    assert neuron_axis(network, "block", (2, 5, 5, 6)) == -1
    assert neuron_axis(network, "block", (2, 6, 5, 5)) == 1  # the linear was followed by a permutation
    assert neuron_axis(network, "conv", (2, 50, 51, 52)) == 1  # nothing fits: torch's usual order
    assert neuron_axis(network, "relu", (2, 7, 5, 5), channels_last=True) == -1
    assert neuron_axis(network, "norm", (2, 5, 5, 7), channels_last=False) == 1
    assert neuron_axis(network, "fc", (2, 9)) == 1


@pytest.mark.parametrize(
    ("layer", "neurons"),
    [
        ("features.0", 8),
        ("features.1.0", 8),
        ("features.1.0.block.2", 8),
        ("features.1.0.block.4", 32),
        ("features", 16),
    ],
)
def test_convnext_of_torchvision(layer: str, neurons: int) -> None:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    network = torchvision.models.ConvNeXt(stages, num_classes=3).eval()
    seen = []
    network.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with torch.inference_mode(), record(network, layer) as recorded:
        network(torch.randn(2, 3, 32, 48))
    inner = layer.startswith("features.1.0.block")
    assert recorded[layer].shape == (2, neurons)
    torch.testing.assert_close(recorded[layer], seen[0].mean((1, 2) if inner else (2, 3)))


def test_swin_of_torchvision_and_what_all_can_reach() -> None:
    network = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3).train()
    images = torch.randn(2, 3, 32, 48)
    layers = reached_layers(network, resolve_layers(network, "all"), images)
    assert network.training
    assert hooks_of(network) == 0
    assert "features.1.0.mlp.0" in layers
    assert "features.1.0.attn.qkv" not in layers  # read by a function
    network.eval()
    with torch.inference_mode(), record(network, [*layers, "features.1.0", "features.2"]) as recorded:
        network(images)
        sizes = {layer: values.shape for layer, values in recorded.items()}
    assert sizes["features.0.0"] == (2, 8)  # a convolution: image neuron height width
    assert sizes["features.1.0"] == (2, 8)  # a block: image height width neuron
    assert sizes["features.1.0.mlp.0"] == (2, 32)
    assert sizes["features.2"] == (2, 16)
    assert sizes["head"] == (2, 3)
    with (
        pytest.raises(UserError, match=r"never called 'features.1.0.attn.qkv'"),
        record(network, "features.1.0.attn.*"),
    ):
        network(images)


def test_a_swin_of_timm_whose_windows_share_the_first_axis() -> None:
    network = timm.models.swin_transformer.SwinTransformer(
        32, 4, num_classes=3, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    told = r"gives 8 rows \(8, 16, 24\) for 2 images.*Record the block around it"
    with pytest.raises(UserError, match=told), record(network, "layers.0.blocks.0.attn.qkv"):
        network(images)
    layers = reached_layers(network, resolve_layers(network, "all"), images)
    assert "layers.0.blocks.0.attn.qkv" not in layers
    assert "layers.0.blocks.0.mlp.fc1" in layers
    with torch.no_grad(), record(network, ["layers.0.blocks.0", "layers.1"]) as recorded:
        network(images)
    assert recorded["layers.0.blocks.0"].shape == (2, 8)
    assert recorded["layers.1"].shape == (2, 16)


def test_vit_of_torchvision_with_tuple_outputs() -> None:
    network = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48, num_classes=5).eval()
    block, attention = "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_1.self_attention"
    seen = {}
    for name in (block, attention):
        network.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    assert prefix_tokens(network) == 1
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode(), record(network, [block, attention], "class_token") as recorded:
        network(images)
    assert torch.equal(recorded[block], seen[block][:, 0])
    assert torch.equal(recorded[attention], seen[attention][0][:, 0])
    with torch.inference_mode(), record(network, [block, "conv_proj"], "token_mean") as recorded:
        network(images)
    torch.testing.assert_close(recorded[block], seen[block][:, 1:].mean(1))
    assert recorded["conv_proj"].shape == (3, 24)


def test_timm_vit_and_window_attention() -> None:
    vit = timm.create_model("test_vit", pretrained=False, num_classes=3).eval()
    assert prefix_tokens(vit) == vit.num_prefix_tokens
    with torch.inference_mode(), record(vit, ["patch_embed", "blocks.0", "head"]) as recorded:
        vit(torch.randn(2, 3, 160, 160))
        assert recorded["blocks.0"].shape == (2, vit.num_features)
        assert recorded["head"].shape == (2, 3)


def test_attention_with_tokens_first_is_turned() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            turned = tokens.transpose(0, 1)
            return self.attention(turned, turned, turned)[0].transpose(0, 1)

    network = Sequence()
    with torch.no_grad(), record(network, "attention") as recorded:
        out = network(torch.randn(2, 5, 4))
    torch.testing.assert_close(recorded["attention"], out.mean(1))


# --- mistakes and special cases


def test_a_layer_that_the_forward_never_calls() -> None:
    network = Tiny()
    with pytest.raises(UserError, match="never called 'unused', so there is nothing to record"), record(network, "all"):
        network(PIXELS)
    assert hooks_of(network) == 0
    assert reached_layers(network, ["conv", "unused", "body.fc"], PIXELS) == ["conv", "body.fc"]


def test_reading_before_a_forward_or_by_a_wrong_name() -> None:
    with record(Tiny(), ["conv", "body.fc"]) as recorded:
        with pytest.raises(UserError, match="'conv' has produced no output yet"):
            recorded["conv"]
        with pytest.raises(UserError, match=r"'cnov' is not recorded. Did you mean 'conv'\? Known: conv, body.fc"):
            recorded["cnov"]


def test_pools_are_known_words() -> None:
    with (
        pytest.raises(UserError, match=r"layer.pool='mean' is not a pooling method \(avg: the mean over positions\)"),
        record(Tiny(), "conv", "mean"),
    ):
        pass
    with pytest.raises(UserError, match=r"layer\.channels_last='yes'"), record(Tiny(), "conv", "avg", "yes"):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Unflatten(1, (1, 1, 1, 1)), r"Layer '0' gives 5 axes \(3, 1, 1, 1, 1\); 1 to 4 can be recorded"),
        (nn.Flatten(0), r"Layer '0' gives 6 rows \(6,\) for 3 images: images and positions share its first axis"),
    ],
)
def test_outputs_that_cannot_be_recorded(module: nn.Module, words: str) -> None:
    network = nn.Sequential(module)
    width = 1 if isinstance(module, nn.Unflatten) else 2
    with pytest.raises(UserError, match=words), record(network, "0"):
        network(torch.ones(3, width))


def test_outputs_without_floating_point_numbers() -> None:
    class Answer(nn.Module):
        def __init__(self, answer: object) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, images: torch.Tensor) -> object:
            return self.answer

    for answer, words in [
        (torch.ones(1, 2).long(), "'0' gives torch.int64"),
        (None, "gives NoneType without a tensor"),
    ]:
        network = nn.Sequential(Answer(answer))
        with pytest.raises(UserError, match=words), record(network, "0"):
            network(torch.ones(1, 2))
    nested = {"aux": None, "hidden": ([torch.full((1, 2), 3.0)], torch.zeros(1, 2))}
    network = nn.Sequential(Answer(nested))
    with record(network, "0") as recorded:
        network(torch.ones(1, 2))
    assert recorded["0"].tolist() == [[3.0, 3.0]]


def test_a_shared_module_keeps_its_last_call_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.relu(self.relu(images) - 1)

    network = Twice()
    with caplog.at_level(logging.WARNING), record(network, "relu") as recorded:
        network(torch.tensor([[3.0]]))
        network(torch.tensor([[5.0]]))
    assert recorded["relu"].tolist() == [[4.0]]
    assert [r.message for r in caplog.records] == [
        "Layer relu is called 2 times in a forward pass; its last call is kept."
    ]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_is_recorded(in_place: bool) -> None:
    network = Tiny()
    if in_place:
        network.compile(backend="eager")
        run = network
    else:
        run = torch.compile(network, backend="eager")
    run(PIXELS)  # compiled before there were hooks
    with record(run, "conv") as recorded:
        run(PIXELS)
        assert recorded["conv"].tolist() == [[2.5, -5.0]]
    assert hooks_of(network) == 0
    assert run(PIXELS).tolist() == [[3.5, 0.0]]


def test_two_recordings_at_once() -> None:
    network = Tiny()
    with record(network, "conv", "avg") as mean, record(network, "conv", "max") as largest:
        network(PIXELS)
        assert mean["conv"].tolist() == [[2.5, -5.0]]
        assert largest["conv"].tolist() == [[4.0, -2.0]]

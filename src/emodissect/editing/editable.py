"""Finds layers whose neurons are rows of weights, and the layer that reads their output."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from emodissect.core.errors import UserError, nearest
from emodissect.editing.tracing import CannotTrace, node_of, trace

# Modules and functions that may lie between a layer and the next one because they do not mix its neurons.
_PASSES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardswish),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten),
    *(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
)
_PASSING = {
    *("relu", "relu_", "leaky_relu", "elu", "gelu", "silu", "mish", "tanh", "sigmoid", "hardswish", "contiguous"),
    *("dropout", "dropout2d", "flatten", "view", "reshape", "squeeze", "max_pool2d", "boolean_dispatch", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "batch_norm"),
}


def editable_layer(network: nn.Module, layer: str) -> nn.Module:
    """The module of a layer whose neurons are rows of its weight.

    Raises:
        UserError: the layer is unknown, is neither a convolution nor linear, or its weight is shared or computed.
    """
    modules = dict(network.named_modules())
    fitting = [name for name, module in modules.items() if _has_rows(module)]
    if layer not in modules:
        raise UserError(f"The network has no layer '{layer}'. {nearest(layer, fitting)}")
    module = modules[layer]
    if not _has_rows(module):
        raise UserError(
            f"Layer '{layer}' is a {type(module).__name__}: its neurons are not rows of weights, so there is nothing "
            f"to scale. {nearest(layer, fitting)}"
        )
    if is_parametrized(module) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise UserError(
            f"The weight of layer '{layer}' is computed from other parameters (a parametrization), so an edit of it "
            "would be overwritten. Remove the parametrization first: "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    for part in ("weight", "bias"):
        parameter = module._parameters.get(part)
        tied = [
            name
            for name, other in network.named_parameters(remove_duplicate=False)
            if parameter is not None and name != f"{layer}.{part}".lstrip(".") and _same_storage(parameter, other)
        ]
        if tied:
            raise UserError(
                f"'{layer}.{part}' is shared with {', '.join(tied)}: an edit would change both. Choose another layer."
            )
    return module


def next_layer_of(network: nn.Module, layer: str, example: Tensor | None = None) -> str:
    """Path of the convolution or linear layer that reads the layer, through operations that do not mix its neurons.

    Args:
        example: an input batch, for networks whose control flow depends on its shape.

    Raises:
        UserError: there is no such layer, or more than one, or an operation in between may mix neurons.
    """
    editable_layer(network, layer)
    try:
        graph = trace(network, example)
        return str(path_to_reader(network, node_of(graph, layer))[-1].target)
    except CannotTrace as error:
        raise UserError(
            f"The layer behind '{layer}' cannot be determined, because {error}. "
            "Give the layer that reads it as next_layer (Scaling), or use edit.parameters=weight."
        ) from error


def path_to_reader(network: nn.Module, node: Node) -> list[Node]:
    """The graph nodes from a layer to the convolution or linear layer that reads it; that layer is the last node.

    Raises:
        CannotTrace: no layer or several read it, or an operation in between may mix neurons.
    """
    layer, path = node.target, list[Node]()
    while True:
        users = [user for user in node.users if user.op != "output" and not _reads_shape(user)]
        if len(users) != 1:
            raise CannotTrace(f"'{layer}' is read by {len(users)} operations, not one (at '{node.name}')")
        (node,) = users
        path.append(node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and _has_rows(module):
            return path
        name = getattr(node.target, "__name__", str(node.target))
        if not (isinstance(module, _PASSES) or (module is None and name in _PASSING)):
            raise CannotTrace(f"'{node.name}', between '{layer}' and the next layer, may mix neurons")


def columns_scale(
    reader: nn.Module, scale: Float[Tensor, "*cell neuron"], layer: str, name: str
) -> Float[Tensor, "*cell column"]:
    """The scale of each input of the reading layer; for flattened maps, repeated over the positions.

    Raises:
        UserError: the number of inputs is not a multiple of the number of neurons.
    """
    linear = isinstance(reader, nn.Linear)
    weight = reader._parameters["weight"]
    assert weight is not None
    neurons = scale.shape[-1]
    inputs, positions = weight.shape[1], weight.shape[1] // neurons
    grouped = getattr(reader, "groups", 1) != 1
    if grouped or positions * neurons != inputs or (positions != 1 and not linear):
        raise UserError(
            f"'{name}' takes {inputs} inputs{' in groups' if grouped else ''}, which do not fit the {neurons} "
            f"neurons of '{layer}'. Give another next_layer, or use edit.parameters=weight."
        )
    return scale.repeat_interleave(positions, -1)


def _has_rows(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd))


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.numel() > 0 and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr())


def _reads_shape(node: Node) -> bool:
    return node.target in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim"))

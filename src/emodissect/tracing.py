"""A network as a graph of operations (torch.fx), with branches on shapes decided on an example."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.node import map_arg


class CannotTrace(Exception):  # noqa: N818
    """Why a network has no graph, in words that finish the sentence 'it cannot be cut: …'."""


class _ExampleTracer(Tracer):
    """Traces symbolically; where Python needs a plain value (`if x.shape[1] != 3`), works it out on the example."""

    def __init__(self, example: Tensor | None) -> None:
        super().__init__()
        self.example, self.known = example, dict[Node, Any]()

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self._value(obj.node)) if self.example is not None else super().to_bool(obj)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        if self.example is None:
            return super().iter(obj)
        return iter([obj[position] for position in range(len(self._value(obj.node)))])  # type: ignore[index]

    @torch.no_grad()
    def _value(self, node: Node) -> Any:
        if node not in self.known:
            # A clone: an in-place operation further on must not change what was worked out before it.
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: _copy(self._value(source)))
            self.known[node] = self._result(node, args, kwargs)
        return self.known[node]

    def _result(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            return self.example
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        return target(*args, **kwargs) if node.op == "call_function" else getattr(args[0], target)(*args[1:], **kwargs)


def trace(network: nn.Module, example: Tensor | None = None) -> Graph:
    """The network's graph in eval mode.

    Args:
        network: takes one batch of images and gives one tensor.
        example: a batch of its input; without it a branch on a shape cannot be followed.

    Raises:
        CannotTrace: the network does what a graph cannot hold, e.g. a loop over values.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        graph = _ExampleTracer(example).trace(network)
    except Exception as error:  # Tracing runs the network's own code on stand-ins: whatever it raises, it has no graph.
        raise CannotTrace(f"torch.fx cannot trace {type(network).__name__} ({_first_line(error)})") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise CannotTrace(f"{type(network).__name__} takes more than one input")
    return graph


def node_of(graph: Graph, layer: str) -> Node:
    """The one node that calls the layer.

    Raises:
        CannotTrace: the layer is called never or more than once.
    """
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(nodes) != 1:
        raise CannotTrace(f"layer '{layer}' is called {len(nodes)} times in a forward pass, not once")
    return nodes[0]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")

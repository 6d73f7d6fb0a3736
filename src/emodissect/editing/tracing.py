"""Traces a network into a graph of operations (torch.fx), resolving branches on shapes with an example input."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx._symbolic_trace import _orig_module_call, _orig_module_getattr
from torch.fx.node import map_arg


class CannotTrace(Exception):  # noqa: N818
    """Raised where a network has no usable graph; the message completes the sentence 'it cannot be cut: …'."""


class _ExampleProxy(Proxy):
    """A proxy that knows its length, so that `list(x.shape)` can be unpacked."""

    def __getattr__(self, name: str) -> Any:
        if name != "shape":
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        return len(self.tracer.value(self.node))  # type: ignore[attr-defined]


class _ExampleTracer(Tracer):
    """Traces symbolically; where Python needs a concrete value (`if x.shape[1] != 3`), computes it from the example."""

    def __init__(self, example: Tensor | None) -> None:
        super().__init__()
        self.example, self.known = example, dict[Node, Any]()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Optional arguments (e.g. a mask) take their defaults: the network is called with images only."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        for place, parameter in enumerate(inspect.signature(root_fn).parameters.values()):
            if place > 1 and parameter.default is not parameter.empty:
                self.graph.erase_node(arguments[place].node)
                arguments[place] = parameter.default
        return function, arguments

    def proxy(self, node: Node) -> Proxy:
        return Proxy(node, self) if self.example is None else _ExampleProxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self.value(obj.node)) if self.example is not None else super().to_bool(obj)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        if self.example is None:
            return super().iter(obj)
        return iter([obj[position] for position in range(len(self.value(obj.node)))])  # type: ignore[index]

    @torch.no_grad()
    def value(self, node: Node) -> Any:
        """The operation's result on the example."""
        if node not in self.known:
            # A clone, so that a later in-place operation does not change the cached result.
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: _copy(self.value(source)))
            with _plain_modules():
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


@contextmanager
def _plain_modules() -> Iterator[None]:
    """Context in which modules run normally; a trace in progress patches `__call__` and `__getattr__` of nn.Module."""
    replaced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _orig_module_call, _orig_module_getattr  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = replaced  # type: ignore[method-assign]


def trace(network: nn.Module, example: Tensor | None = None) -> Graph:
    """The network's graph in eval mode.

    Args:
        network: maps one batch of images to one tensor.
        example: an input batch; without it, branches on shapes cannot be resolved.

    Raises:
        CannotTrace: the network cannot be traced, e.g. because of a loop over values, or has more than one input.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        graph = _ExampleTracer(example).trace(network)
    except Exception as error:  # tracing runs the network's own code on proxies, which can raise anything
        raise CannotTrace(f"torch.fx cannot trace {type(network).__name__} ({_first_line(error)})") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise CannotTrace(f"{type(network).__name__} takes more than one input")
    return graph


def node_of(graph: Graph, layer: str) -> Node:
    """The graph node that calls the layer.

    Raises:
        CannotTrace: the layer is never called, or more than once.
    """
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(nodes) != 1:
        raise CannotTrace(f"layer '{layer}' is called {len(nodes)} times in a forward pass, not once")
    return nodes[0]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")

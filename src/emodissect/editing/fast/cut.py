"""Cuts a network behind a layer, so that an edit of the layer re-runs only the part behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from emodissect.editing.editable import path_to_reader
from emodissect.editing.tracing import CannotTrace, node_of, trace


@dataclass(frozen=True, eq=False)
class LinearTail:
    """A tail of the form `rest(reader(between(z)))`: `between` treats neurons independently, `reader` is linear."""

    between: GraphModule
    reader: nn.Linear
    rest: GraphModule
    name: str


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in two parts that share its modules: `tail(*head(x))` equals `network(x)`.

    Attributes:
        head: maps the input to the layer's output z and all other tensors that the tail reads (skip connections).
        tail: maps these to the network's output.
        linear: the tail in three parts, where a linear layer reads z or its flattened maps; otherwise None.
    """

    layer: str
    head: GraphModule
    tail: GraphModule
    linear: LinearTail | None


def cut_behind(network: nn.Module, layer: str, example: Tensor) -> Cut:
    """Cut the network behind a layer, and check on the example that the two parts reproduce the whole.

    Args:
        network: in eval mode.
        layer: path of a module that is called once.
        example: an input batch of at least two rows.

    Raises:
        CannotTrace: the network cannot be traced, or its parts do not reproduce its output.
    """
    graph = trace(network, example)
    cut_node = node_of(graph, layer)
    values = _values(network, graph, example)
    if not isinstance(values.get(cut_node), Tensor):
        raise CannotTrace(f"layer '{layer}' does not return a single tensor")
    behind = _behind(graph, cut_node)
    skips = _read_from_before(graph, behind, cut_node, values, len(example))
    head = _part(network, graph, [], set(graph.nodes) - _behind(graph, cut_node), [cut_node, *skips])
    tail = _part(network, graph, [cut_node, *skips], behind, None)
    linear = None if skips else _linear_tail(network, graph, cut_node, behind, values)
    cut = Cut(layer, head, tail, linear)
    # A second batch size, because the graph must not depend on the example's number of rows.
    for rows in (example, example[:1]):
        _require_equal(cut, network, rows)
    return cut


def _values(network: nn.Module, graph: Graph, example: Tensor) -> dict[Node, Any]:
    """The result of every operation on the example, to read shapes and dtypes from."""
    seen: dict[Node, Any] = {}

    class RecordingInterpreter(Interpreter):
        def run_node(self, n: Node) -> Any:
            seen[n] = super().run_node(n)
            return seen[n]

    try:
        RecordingInterpreter(network, graph=graph, garbage_collect_values=False).run(example)
    except Exception as error:
        raise CannotTrace(f"its graph does not run ({type(error).__name__}: {error})") from error
    return seen


def _behind(graph: Graph, start: Node) -> set[Node]:
    found: set[Node] = set()
    for node in graph.nodes:
        if any(source is start or source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _read_from_before(graph: Graph, behind: set[Node], start: Node, values: dict[Node, Any], rows: int) -> list[Node]:
    """Float tensors with one row per image that the tail reads from before the layer; other inputs move into the tail.

    Integers and masks are recomputed in the tail, since kept tensors are stored as float32. Extends `behind`.
    """
    skips: list[Node] = []
    for node in reversed(list(graph.nodes)):  # reversed, so that readers come before their inputs
        if node is start or node in behind or not any(user in behind for user in node.users):
            continue
        value = values[node]
        rowwise = isinstance(value, Tensor) and value.ndim and len(value) == rows and node.op != "get_attr"
        rowwise = rowwise and value.is_floating_point()
        if node.op == "placeholder" or rowwise:
            skips.append(node)
        else:
            behind.add(node)
    return skips[::-1]


def _part(
    network: nn.Module, graph: Graph, inputs: list[Node], kept: set[Node], outputs: list[Node] | None
) -> GraphModule:
    """A module of the operations `kept`, from `inputs` to `outputs`; None keeps the graph's own output."""
    part, twins = Graph(), dict[Node, Node]()
    for node in inputs:
        twins[node] = part.placeholder(node.name)
    for node in graph.nodes:
        if node in kept and node not in twins and (node.op != "output" or outputs is None):
            twins[node] = part.node_copy(node, lambda source: twins[source])
    if outputs is not None:
        part.output(tuple(twins[node] for node in outputs))
    return GraphModule(network, part)


def _linear_tail(
    network: nn.Module, graph: Graph, start: Node, behind: set[Node], values: dict[Node, Any]
) -> LinearTail | None:
    try:
        *between, reader = path_to_reader(network, start)
    except CannotTrace:
        return None
    module = network.get_submodule(str(reader.target))
    last = between[-1] if between else start
    outputs, inputs = values[start], values[last]
    of_tokens = isinstance(network.get_submodule(str(start.target)), nn.Linear) and outputs.ndim != 2
    if not isinstance(module, nn.Linear) or of_tokens or inputs.ndim != 2 or inputs.shape[1] % outputs.shape[1]:
        return None
    after = _behind(graph, reader)
    if _read_from_before(graph, after, reader, values, len(values[start])):
        return None
    alone = _part(network, graph, [start], set(between), [last])
    if not _treats_neurons_alone(alone, outputs):
        return None
    return LinearTail(alone, module, _part(network, graph, [reader], after, None), str(reader.target))


@torch.no_grad()
def _treats_neurons_alone(between: GraphModule, outputs: Tensor) -> bool:
    """Whether scaling every second neuron changes exactly its own columns, and no others by a single bit."""
    changed = torch.arange(outputs.shape[1], device=outputs.device) % 2 == 0
    mask = changed.reshape(-1, *[1] * (outputs.ndim - 2))
    (before,), (twice,) = between(outputs.clone()), between(outputs * 2)
    (mixed,) = between(torch.where(mask, outputs * 2, outputs))
    columns = changed.repeat_interleave(before.shape[1] // len(changed))
    return torch.equal(mixed, torch.where(columns, twice, before))


@torch.no_grad()
def _require_equal(cut: Cut, network: nn.Module, rows: Tensor) -> None:
    try:
        whole = network(rows)
        before = cut.head(rows)
        parts = cut.tail(*(part.clone() for part in before))
    except Exception as error:
        raise CannotTrace(f"its parts do not run on {len(rows)} rows ({type(error).__name__}: {error})") from error
    if any(len(part) != len(rows) for part in before):
        raise CannotTrace("the tensors before the cut do not have one row per image")
    if not isinstance(whole, Tensor) or whole.shape != parts.shape:
        raise CannotTrace("it does not return a single tensor of logits")
    difference = float((whole - parts).abs().max())
    if not difference <= 1e-4 * max(1.0, float(whole.abs().max())):
        raise CannotTrace(f"its parts differ from the whole by {difference:.2g}")

"""Computes logits of a network under many edits of one layer, re-running as little of it as possible."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.core.evaluation_mode import evaluating
from emodissect.core.progress import tracked
from emodissect.data.images import ImageSet, image_loader
from emodissect.editing.edit import Edit, edited
from emodissect.editing.editable import columns_scale
from emodissect.editing.fast.cut import Cut, LinearTail, cut_behind
from emodissect.editing.fast.linear_reads import BatchedProduct, Between, Differences
from emodissect.editing.operations import Operation, Target, distinct
from emodissect.editing.tracing import CannotTrace
from emodissect.models.inference import Inference, predict
from emodissect.models.predictions import Predictions

log = logging.getLogger(__name__)

_EXAMPLE_IMAGES = 5
_PRODUCT_BYTES = 64 * 2**20  # of masked copies of the reader's weight in memory at once
_WIDEST_PRODUCT = 128  # outputs of the reader up to which many cells go into one product
_VALUES_A_CELL = 4  # cells with more distinct values are faster one by one than as a product
_TOLERANCE = 1e-3  # relative to the largest logit: twenty times the largest float32 rounding error observed


@dataclass(eq=False)
class EditedLogits:
    """A network's logits on some images under any edits of one layer.

    If the network can be cut, the layer's unedited output z is computed once and kept as float32, in memory or, above
    `memory_limit` bytes, in a memory-mapped temporary file; every edit changes z (its operation's `on_output`) and
    re-runs the part behind the layer. Otherwise, every edit is a full forward pass of the edited weights. The first
    operation of each kind is also applied to the weights, and the logits of a few images are compared.

    Args:
        inference: the network with its preprocessing and postprocessing.
        images: sorted by id on construction.
        memory_limit: size in bytes above which z is stored on disk.
        cut: False evaluates every edit in full.

    Attributes:
        is_cut: whether edits re-run only the part behind the layer.
        reason: why not, otherwise empty.
        bytes: size of the stored tensors, 0 where nothing is stored.
        before: predictions of the unedited network.
    """

    inference: Inference
    layer: str
    images: ImageSet
    batch_size: int = 256
    memory_limit: int = 2 * 2**30
    cut: bool = True
    progress: bool = False
    is_cut: bool = field(init=False, default=False)
    reason: str = field(init=False, default="")
    bytes: int = field(init=False, default=0)
    before: Predictions = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.images.subset(torch.argsort(self.images.ids))
        network = self.inference.network
        self.neurons = Target(network, self.layer).neurons
        self._device = next(network.parameters()).device
        self._checked: set[tuple[Any, ...]] = set()
        with evaluating(network), torch.inference_mode():
            some = self.images.images[:_EXAMPLE_IMAGES].to(self._device)
            self.inference = self.inference.image_by_image(some)
            self._example = self.inference.preprocess(some)
        self._target = Target(network, self.layer, self._example.clone())
        self._parts: Cut | None = None
        self._evaluate_unedited()
        if not bool(self.before.logits.isfinite().all()):
            bad = int((~self.before.logits.isfinite()).any(1).sum())
            raise UserError(
                f"The unedited network outputs NaN or infinite logits for {bad:,} of {len(self.images):,} images, so "
                "no edit of it can be evaluated. Check its weights and its preprocessing."
            )

    def _evaluate_unedited(self) -> None:
        network = self.inference.network
        if self.cut:
            try:
                with evaluating(network), torch.no_grad():
                    parts = cut_behind(network, self.layer, self._example.clone())
                self._measure(parts)
                self._parts = parts
            except CannotTrace as error:
                self.reason = str(error)
                log.warning(
                    "%s cannot be cut behind '%s': %s. Every edit is evaluated in full.",
                    *(type(network).__name__, self.layer, error),
                )
        else:
            self.reason = "a full evaluation was requested"
        if self._parts is None:
            self.before = self._full(None)
            return
        self.is_cut = True
        self._keep_outputs(self._parts)
        unedited = self._by_cell(self._parts, [None])[0]
        self.before = Predictions(self.images.ids, self.images.labels, unedited)

    def logits(self, operations: Sequence[Operation]) -> Float[Tensor, "cell image class"]:
        """Logits under each operation on the layer; equal operations are evaluated once.

        Raises:
            UserError: an operation's effects on the layer's output and on the weights differ.
        """
        different, where = distinct(operations)
        found = self.before.logits.expand(len(different), -1, -1).clone()
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for place, operation in enumerate(different):
            if not operation.is_identity:
                kinds.setdefault(operation.kind, []).append(place)
        for places in kinds.values():
            alike = [different[place] for place in places]
            self._check_kind(alike[0])
            found[places] = self._of_one_kind(alike)
        return found if len(different) == len(operations) else found[where]

    def edit(self, operation: Operation) -> Edit:
        """The operation as an edit of the network's weights."""
        return Edit(self.layer, operation.bound(self._target))

    def exact(self, edit: Edit | None) -> Predictions:
        """Predictions by a full forward pass of the edited weights; None is the unedited network."""
        return self.before if edit is None and not self.is_cut else self._full(edit)

    def inputs_of(self, module: str, operation: Operation | None = None) -> Float[Tensor, "image ..."]:
        """Inputs of a module of the network, one row per image, under an operation on the layer; views averaged."""
        seen: list[Tensor] = []
        reader = self.inference.network.get_submodule(module)
        handle = reader.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().float().cpu()))
        try:
            if self._parts is not None:
                self._by_cell(self._parts, [operation])
            if not seen:  # not cut, or the module does not lie behind the layer
                self._full(None if operation is None else self.edit(operation))
        finally:
            handle.remove()
        rows = torch.cat([part.clone() for part in seen])  # clones, since inference tensors cannot be used in autograd
        return rows.unflatten(0, (len(self.images), -1)).mean(1)

    def outputs(self, rows: Int64[Tensor, " row"]) -> Float[Tensor, "view neuron *position"]:
        """The layer's unedited output on some images, one row per view, neurons on axis 1."""
        if self._parts is not None:
            return self._neurons_first(self._rows_kept(rows)[0])
        seen: list[Tensor] = []
        handle = self._target.module.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
        try:
            with evaluating(self.inference), torch.no_grad():
                self.inference(self.images.images[rows].to(self._device))
        finally:
            handle.remove()
        return self._neurons_first(seen[0])

    def differentiable(
        self, rows: Int64[Tensor, " row"]
    ) -> Callable[[Callable[[Tensor], Tensor]], Float[Tensor, "row class"]]:
        """A differentiable function from a change to the layer's output to the logits of some images.

        Its argument `change` maps the output, with neurons on axis 1, to a new tensor.
        """
        if self._parts is None:
            return lambda change: self._full_changed(rows, change)
        parts, (outputs, *skips) = self._parts, self._rows_kept(rows)

        def logits(change: Callable[[Tensor], Tensor]) -> Tensor:
            changed = self._neurons_back(change(self._neurons_first(outputs)))
            with evaluating(self.inference):
                return self.inference.finish(parts.tail(changed, *(skip.clone() for skip in skips))).float()

        return logits

    def _full_changed(self, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return self._neurons_back(change(self._neurons_first(output)))

        handle = self._target.module.register_forward_hook(hook)
        try:
            with evaluating(self.inference):
                return self.inference(self.images.images[rows].to(self._device)).float()
        finally:
            handle.remove()

    def _rows_kept(self, rows: Tensor) -> list[Tensor]:
        views = (rows[:, None] * self._views + torch.arange(self._views)).flatten()
        return [kept[views].to(self._device) for kept in self._kept]

    def _neurons_first(self, outputs: Tensor) -> Tensor:
        """Moves the neurons to axis 1, for linear layers on tokens, which have them last."""
        tokens = isinstance(self._target.module, nn.Linear) and outputs.ndim > 2
        return outputs.movedim(-1, 1) if tokens else outputs

    def _neurons_back(self, outputs: Tensor) -> Tensor:
        tokens = isinstance(self._target.module, nn.Linear) and outputs.ndim > 2
        return outputs.movedim(1, -1) if tokens else outputs

    def _of_one_kind(self, operations: Sequence[Operation]) -> Tensor:
        if self._parts is None or not operations[0].of_neurons:
            rows = tracked(operations, "edits, in full" if self.progress else None)
            return torch.stack([self._full(self.edit(operation)).logits for operation in rows])
        linear, first = self._parts.linear, operations[0]
        if linear is None or first.values.ndim > 1 or (first.reads_next and linear.name != self._target.reader_name):
            return self._by_cell(self._parts, operations)
        distinct = sum(len(operation.values.unique()) for operation in operations) / len(operations)
        if distinct > _VALUES_A_CELL:
            return self._by_cell(self._parts, operations)
        values = torch.stack([operation.values for operation in operations]).to(self._device)
        columns = columns_scale(linear.reader, values, self.layer, linear.name)
        if linear.reader.out_features > _WIDEST_PRODUCT:
            return self._by_difference(linear, columns, first)
        at_once = max(1, int(_PRODUCT_BYTES / (4 * distinct * linear.reader.weight.numel())))
        return torch.cat([self._by_product(linear, part, first) for part in columns.split(at_once)])

    @torch.no_grad()
    def _check_kind(self, operation: Operation) -> None:
        """Checks, for the first operation of a kind, that its effects on the output and on the weights agree."""
        if operation.kind in self._checked or self._parts is None or not operation.of_neurons:
            return
        operation.check(self._target)
        network = self.inference.network
        with evaluating(network):
            outputs, *skips = self._parts.head(self._example.clone())
            fast = self._behind(self._parts, outputs, skips, operation)
            with edited(network, self.edit(operation)):
                exact = network(self._example.clone())
        require_same_logits(fast, exact, f"{type(operation).__name__} on layer '{self.layer}'")
        self._checked.add(operation.kind)

    def _full(self, edit: Edit | None) -> Predictions:
        loader = image_loader(self.images, min(self.batch_size, 64))
        bar = "full evaluation" if self.progress and edit is None else None
        if edit is None:
            return predict(self.inference, loader, self._device, bar)
        with edited(self.inference.network, edit):
            return predict(self.inference, loader, self._device, bar)

    # -- the cut network ---------------------------------------------------------------------------------------------

    def _measure(self, parts: Cut) -> None:
        """Computes the size of the stored tensors, and checks that they fit on disk where they must go there.

        Raises:
            CannotTrace: there is not enough free disk space.
        """
        self._views = len(self._example) // min(_EXAMPLE_IMAGES, len(self.images))
        with evaluating(self.inference), torch.inference_mode():
            self._shapes = [part.shape[1:] for part in parts.head(self._example.clone())]
        needed = sum(4 * len(self.images) * self._views * math.prod(shape) for shape in self._shapes)
        # A memory-mapped file takes up space only when written; a full disk would kill the process without a message.
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if needed > self.memory_limit and needed > 0.95 * free:
            raise CannotTrace(
                f"the layer's output takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
                f"{tempfile.gettempdir()} (set the environment variable TMPDIR to use another folder)"
            )
        self.bytes = needed

    def _keep_outputs(self, parts: Cut) -> None:
        """Runs the part up to the layer once and stores its output. The views of an image are consecutive rows."""
        with evaluating(self.inference), torch.inference_mode():
            self._kept = [self._storage(len(self.images) * self._views, shape) for shape in self._shapes]
            for start, batch in self._batches("before the layer", 64):
                inputs = self.inference.preprocess(batch.to(self._device))
                for kept, part in zip(self._kept, parts.head(inputs), strict=True):
                    kept[start * self._views : start * self._views + len(part)] = part.float().cpu()
        log.debug(
            "The output of '%s' for %d images takes %.0f MB, %s.",
            *(self.layer, len(self.images), self.bytes / 1e6, "on disk" if self._on_disk else "in memory"),
        )

    @property
    def _on_disk(self) -> bool:
        return self.bytes > self.memory_limit

    def _storage(self, rows: int, shape: torch.Size) -> Tensor:
        """An empty tensor to store outputs in; maps in channels-last layout, which convolutions and pooling prefer."""
        stored = (rows, *shape[1:], shape[0]) if len(shape) == 3 else (rows, *shape)
        if self._on_disk:
            # Deleted together with this object, also after an exception.
            self._folder = getattr(self, "_folder", None) or tempfile.TemporaryDirectory(prefix="emodissect-")
            name = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.f32"
            storage = torch.from_numpy(np.memmap(name, np.float32, "w+", shape=stored))
        else:
            storage = torch.empty(stored)
        return storage.permute(0, 3, 1, 2) if len(shape) == 3 else storage

    def _batches(self, description: str, batch_size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        size = batch_size or self.batch_size
        starts = range(0, len(self.images), size)
        for start in tracked(starts, description if self.progress else None):
            yield start, self.images.images[start : start + size]

    def _kept_batches(self, description: str) -> Iterator[tuple[slice, list[Tensor]]]:
        for start, batch in self._batches(description):
            rows = slice(start * self._views, (start + len(batch)) * self._views)
            yield slice(start, start + len(batch)), [kept[rows].to(self._device) for kept in self._kept]

    def _behind(self, parts: Cut, outputs: Tensor, skips: Sequence[Tensor], operation: Operation | None) -> Tensor:
        """The network's output under an operation. Inputs are cloned, since the tail may work in place."""
        here = None if operation is None or operation.reads_next else operation
        changed = outputs.clone() if here is None else self._on_output(here, outputs)
        with _changed_input(self._target, operation):
            return parts.tail(changed, *(skip.clone() for skip in skips))

    def _on_output(self, operation: Operation, outputs: Tensor) -> Tensor:
        return self._neurons_back(operation.on_output(self._neurons_first(outputs), self._target))

    def _by_cell(self, parts: Cut, operations: Sequence[Operation | None]) -> Float[Tensor, "cell image class"]:
        found: list[list[Tensor]] = [[] for _ in operations]
        with evaluating(self.inference), torch.inference_mode():
            for _, (outputs, *skips) in self._kept_batches("behind the layer"):
                for cell, operation in enumerate(operations):
                    logits = self._behind(parts, outputs, skips, operation)
                    found[cell].append(self.inference.finish(logits).float().cpu())
        return torch.stack([torch.cat(batches) for batches in found]).clone()

    def _between(self, tail: LinearTail, outputs: Tensor, alike: Operation) -> Between:
        """The reader's input as a function of one value for all neurons."""
        if not alike.reads_next:
            return lambda value: tail.between(self._on_output(alike.uniform(value), outputs))[0]
        unchanged = tail.between(outputs.clone())[0]
        return lambda value: _on_input(alike.uniform(value), unchanged, self._target, tail.reader)

    def _by_product(self, tail: LinearTail, columns: Tensor, alike: Operation) -> Float[Tensor, "cell image class"]:
        found = torch.empty(len(columns), len(self.images), self.before.logits.shape[1])
        reads = BatchedProduct(tail.reader, columns)
        with evaluating(self.inference), torch.inference_mode():
            for place, (outputs,) in self._kept_batches("behind the layer, in one product"):
                read = reads(self._between(tail, outputs, alike), len(outputs))
                logits = tail.rest(read.transpose(0, 1).flatten(0, 1))  # rows ordered by cell, then image, then view
                found[:, place] = self.inference.finish(logits).float().cpu().unflatten(0, (len(columns), -1))
        return found

    def _by_difference(self, tail: LinearTail, columns: Tensor, alike: Operation) -> Float[Tensor, "cell image class"]:
        found = torch.empty(len(columns), len(self.images), self.before.logits.shape[1])
        reads = Differences(tail.reader, columns)
        with evaluating(self.inference), torch.inference_mode():
            for place, (outputs,) in self._kept_batches("behind the layer"):
                for cell, read in enumerate(reads(self._between(tail, outputs, alike))):
                    found[cell, place] = self.inference.finish(tail.rest(read)).float().cpu()
        return found


@contextmanager
def _changed_input(target: Target, operation: Operation | None) -> Iterator[None]:
    """Context in which the next layer's input is changed, if the operation acts there."""
    if operation is None or not operation.reads_next:
        yield
        return
    reader = target.reader
    handle = reader.register_forward_pre_hook(lambda _, given: (_on_input(operation, given[0], target, reader),))
    try:
        yield
    finally:
        handle.remove()


def _on_input(operation: Operation, given: Tensor, target: Target, reader: nn.Module) -> Tensor:
    """Applies an operation to the next layer's input, with neurons on axis 1 and flattened maps unflattened."""
    if not isinstance(reader, nn.Linear):
        return operation.on_output(given, target)
    neurons = given.movedim(-1, 1).unflatten(1, (target.neurons, -1))
    return operation.on_output(neurons, target).flatten(1, 2).movedim(1, -1)


def require_same_logits(fast: Tensor, exact: Tensor, what: str) -> None:
    """Compares logits of the fast path with those of the edited weights, where these are finite.

    Raises:
        UserError: they differ by more than float32 rounding explains: by more than 1e-3 of the largest logit.
    """
    known = exact.isfinite()
    if not bool(known.any()):
        return
    largest = max(1.0, float(exact[known].abs().max()))
    difference = float((fast - exact)[known].abs().max())
    if not difference <= _TOLERANCE * largest:
        raise UserError(
            f"The fast evaluation and the edited weights disagree for {what}: logits differ by {difference:.2g}, more "
            f"than the tolerance of {_TOLERANCE * largest:.2g}. Either the operation's on_output and on_weights are "
            "not equivalent, or the network changes its own weights between forward passes."
        )

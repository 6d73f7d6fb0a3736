"""Logits of a network under many edits of one layer, by the shortest way."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.core.progress import tracked
from emodissect.data.images import ImageSet, image_loader
from emodissect.editing.editable import columns_scale, editable_layer, next_layer_of
from emodissect.editing.fast.cut import Cut, LinearTail, cut_behind
from emodissect.editing.fast.linear_reads import BatchedProduct, Between, Differences
from emodissect.editing.rules import Edit, edited
from emodissect.editing.tracing import CannotTrace
from emodissect.models.predictions import Inference, Predictions, evaluating, predict

log = logging.getLogger(__name__)

_EXAMPLE_IMAGES = 5
_PRODUCT_BYTES = 64 * 2**20  # of scaled copies of the reader's weight, kept at once
_WIDEST_PRODUCT = 128  # outputs of the reader up to which many cells go into one product
_VALUES_A_CELL = 4  # a cell of more distinct scales costs more as a product than by itself


@dataclass(eq=False)
class EditedLogits:
    """A network's logits on some images under any edits of one layer.

    Where the network can be cut, the layer's unedited output z is computed once and kept as float32, in memory or,
    above `memory_limit` bytes, in a memory-mapped temporary file; every edit rescales it and re-runs what lies
    behind: s z + (1 - s) b for `weight` (b the bias), s z for `weight_and_bias`, and for `outgoing` the input of the
    next layer times s. Where it cannot, every edit is a full forward pass of the really edited weights.

    Args:
        inference: the network with what stands before and behind it.
        layer: whose neurons are edited.
        images: kept ascending by id.
        batch_size: images at a time.
        memory_limit: bytes above which z lies on disk.
        cut: False evaluates every edit in full.

    Attributes:
        is_cut: whether edits re-run only the part behind the layer.
        reason: why not, else empty.
        bytes: size of what is kept of the layer's output, 0 where nothing is.
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
        self._module = editable_layer(network, self.layer)
        self.neurons = len(self._module._parameters["weight"])  # type: ignore[arg-type]
        self._device = next(network.parameters()).device
        self._readers: dict[str, str] = {}
        with evaluating(network), torch.inference_mode():
            some = self.images.images[:_EXAMPLE_IMAGES].to(self._device)
            self.inference = self.inference.image_by_image(some)
            self._example = self.inference.preprocess(some)
        self._parts: Cut | None = None
        self._evaluate_unedited()
        if not bool(self.before.logits.isfinite().all()):
            bad = int((~self.before.logits.isfinite()).any(1).sum())
            raise UserError(
                f"The unedited network gives NaN or infinite logits for {bad:,} of {len(self.images):,} images, so no "
                "edit of it can be judged. Its weights or its preprocessing are at fault."
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
                    "%s cannot be cut behind '%s': %s. Every edit is a full evaluation.",
                    *(type(network).__name__, self.layer, error),
                )
        else:
            self.reason = "a full evaluation was asked for"
        if self._parts is None:
            self.before = self._full(None)
            return
        self.is_cut = True
        self._keep_outputs(self._parts)
        unedited = self._by_cell(self._parts, torch.ones(1, self.neurons), "none")[0]
        self.before = Predictions(self.images.ids, self.images.labels, unedited)

    def logits(self, scales: Float[Tensor, "cell neuron"], parameters: str) -> Float[Tensor, "cell image class"]:
        """Logits under each row of scales; rows that are equal are evaluated once.

        Args:
            parameters: what is scaled, as in :class:`~emodissect.editing.rules.Edit`.
        """
        distinct: dict[bytes, int] = {}
        places = [distinct.setdefault(row.tobytes(), len(distinct)) for row in scales.float().numpy()]
        first = [places.index(place) for place in range(len(distinct))]
        rows, changes = scales[first].float(), (scales[first] != 1).any(1)
        found = self.before.logits.expand(len(rows), -1, -1).clone()
        if bool(changes.any()):
            found[changes] = self._of_distinct(rows[changes], parameters)
        return found if len(first) == len(places) else found[places]

    def edit(self, scale: Float[Tensor, " neuron"], parameters: str) -> Edit:
        """The edit itself, to be put on the network's weights."""
        return Edit(self.layer, scale, parameters, self._reader() if parameters == "outgoing" else None)

    def exact(self, edit: Edit | None) -> Predictions:
        """Predictions by a full forward pass of the really edited weights; None is the unedited network."""
        return self.before if edit is None and not self.is_cut else self._full(edit)

    def _of_distinct(self, scales: Tensor, parameters: str) -> Tensor:
        if self._parts is None:
            rows = tracked(scales, "edits, in full" if self.progress else None)
            return torch.stack([self._full(self.edit(row, parameters)).logits for row in rows])
        linear = self._parts.linear
        if linear is None or (parameters == "outgoing" and linear.name != self._reader()):
            return self._by_cell(self._parts, scales, parameters)
        values = sum(len(row.unique()) for row in scales) / len(scales)
        if values > _VALUES_A_CELL:
            return self._by_cell(self._parts, scales, parameters)
        columns = columns_scale(linear.reader, scales.to(self._device), self.layer, linear.name)
        if linear.reader.out_features > _WIDEST_PRODUCT:
            return self._by_difference(linear, columns, parameters)
        at_once = max(1, int(_PRODUCT_BYTES / (4 * values * linear.reader.weight.numel())))
        return torch.cat([self._by_product(linear, part, parameters) for part in columns.split(at_once)])

    def _full(self, edit: Edit | None) -> Predictions:
        loader = image_loader(self.images, min(self.batch_size, 64))
        bar = "full evaluation" if self.progress and edit is None else None
        if edit is None:
            return predict(self.inference, loader, self._device, bar)
        with edited(self.inference.network, edit):
            return predict(self.inference, loader, self._device, bar)

    def _reader(self) -> str:
        if self.layer not in self._readers:
            self._readers[self.layer] = next_layer_of(self.inference.network, self.layer, self._example.clone())
        return self._readers[self.layer]

    # -- the cut network ---------------------------------------------------------------------------------------------

    def _measure(self, parts: Cut) -> None:
        """How much is kept, and whether there is room for it.

        Raises:
            CannotTrace: it must lie on disk, and the disk is too full.
        """
        self._views = len(self._example) // min(_EXAMPLE_IMAGES, len(self.images))
        with evaluating(self.inference), torch.inference_mode():
            self._shapes = [part.shape[1:] for part in parts.head(self._example.clone())]
        needed = sum(4 * len(self.images) * self._views * math.prod(shape) for shape in self._shapes)
        # A memory-mapped file takes its room when it is written; a full disk would end the process without a word.
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if needed > self.memory_limit and needed > 0.95 * free:
            raise CannotTrace(
                f"what is kept of the layer's output takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in "
                f"{tempfile.gettempdir()} (the environment variable TMPDIR names another folder)"
            )
        self.bytes = needed

    def _keep_outputs(self, parts: Cut) -> None:
        """Run everything before the layer once. Rows of an image's views lie side by side."""
        with evaluating(self.inference), torch.inference_mode():
            self._kept = [self._room(len(self.images) * self._views, shape) for shape in self._shapes]
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

    def _room(self, rows: int, shape: torch.Size) -> Tensor:
        """Maps are kept with their channels innermost, as convolutions and pooling like them."""
        stored = (rows, *shape[1:], shape[0]) if len(shape) == 3 else (rows, *shape)
        if self._on_disk:
            # Unlinked when this object goes, also after an exception.
            self._folder = getattr(self, "_folder", None) or tempfile.TemporaryDirectory(prefix="emodissect-")
            name = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.f32"
            room = torch.from_numpy(np.memmap(name, np.float32, "w+", shape=stored))
        else:
            room = torch.empty(stored)
        return room.permute(0, 3, 1, 2) if len(shape) == 3 else room

    def _batches(self, description: str, batch_size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        size = batch_size or self.batch_size
        starts = range(0, len(self.images), size)
        for start in tracked(starts, description if self.progress else None):
            yield start, self.images.images[start : start + size]

    def _kept_batches(self, description: str) -> Iterator[tuple[slice, list[Tensor]]]:
        for start, batch in self._batches(description):
            rows = slice(start * self._views, (start + len(batch)) * self._views)
            yield slice(start, start + len(batch)), [kept[rows].to(self._device) for kept in self._kept]

    def _rescaled(self, outputs: Tensor, scale: Tensor, parameters: str) -> Tensor:
        """A new tensor, always: the tail may work in place."""
        if parameters in ("none", "outgoing"):
            return outputs.clone()
        scale, bias = scale.to(self._device), self._module._parameters.get("bias")
        shape = (-1, *[1] * (outputs.ndim - 2)) if not isinstance(self._module, nn.Linear) else (-1,)
        if parameters == "weight" and bias is not None:
            return torch.addcmul(((1 - scale) * bias).reshape(shape), outputs, scale.reshape(shape))
        return outputs * scale.reshape(shape)

    def _by_cell(self, parts: Cut, scales: Tensor, parameters: str) -> Float[Tensor, "cell image class"]:
        found: list[list[Tensor]] = [[] for _ in scales]
        with evaluating(self.inference), torch.inference_mode():
            for _, (outputs, *skips) in self._kept_batches("behind the layer"):
                for cell, scale in enumerate(scales):
                    with _scaled_input(*self._hooked(scale, parameters)):
                        logits = parts.tail(
                            self._rescaled(outputs, scale, parameters), *(skip.clone() for skip in skips)
                        )
                    found[cell].append(self.inference.finish(logits).float().cpu())
        return torch.stack([torch.cat(batches) for batches in found]).clone()

    def _hooked(self, scale: Tensor, parameters: str) -> tuple[nn.Module | None, Tensor]:
        if parameters != "outgoing":
            return None, scale
        name = self._reader()
        reader = editable_layer(self.inference.network, name)
        columns = columns_scale(reader, scale, self.layer, name).to(self._device)
        weight = reader._parameters["weight"]
        assert weight is not None
        return reader, columns.reshape(-1, *[1] * (weight.ndim - 2))

    def _between(self, tail: LinearTail, outputs: Tensor, parameters: str) -> Between:
        """What the reader is given where all neurons have one scale."""
        if parameters == "outgoing":  # the reader's own columns are scaled, which is the same as scaling its input
            unscaled = tail.between(outputs.clone())[0]
            return lambda value: unscaled * value
        ones = torch.ones(self.neurons)
        return lambda value: tail.between(self._rescaled(outputs, value * ones, parameters))[0]

    def _by_product(self, tail: LinearTail, columns: Tensor, parameters: str) -> Float[Tensor, "cell image class"]:
        found = torch.empty(len(columns), len(self.images), self.before.logits.shape[1])
        reads = BatchedProduct(tail.reader, columns)
        with evaluating(self.inference), torch.inference_mode():
            for place, (outputs,) in self._kept_batches("behind the layer, in one product"):
                read = reads(self._between(tail, outputs, parameters), len(outputs))
                logits = tail.rest(read.transpose(0, 1).flatten(0, 1))  # rows: cell by cell, an image's views together
                found[:, place] = self.inference.finish(logits).float().cpu().unflatten(0, (len(columns), -1))
        return found

    def _by_difference(self, tail: LinearTail, columns: Tensor, parameters: str) -> Float[Tensor, "cell image class"]:
        found = torch.empty(len(columns), len(self.images), self.before.logits.shape[1])
        reads = Differences(tail.reader, columns)
        with evaluating(self.inference), torch.inference_mode():
            for place, (outputs,) in self._kept_batches("behind the layer"):
                for cell, read in enumerate(reads(self._between(tail, outputs, parameters))):
                    found[cell, place] = self.inference.finish(tail.rest(read)).float().cpu()
        return found


class _scaled_input:  # noqa: N801 - a context, read as a verb
    """A layer whose input is multiplied: the same as scaling the columns of its weight."""

    def __init__(self, module: nn.Module | None, columns: Tensor) -> None:
        self.handle = None if module is None else module.register_forward_pre_hook(lambda _, x: (x[0] * columns,))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()

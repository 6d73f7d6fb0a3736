"""Learns a scale and a shift per neuron on images: the best that a per-neuron edit of the layer can do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emodissect.core.errors import UserError
from emodissect.data.datamodule import stratified_rows
from emodissect.editing.editable import editable_layer
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import Operation, ScalingAndShifting, by_neuron
from emodissect.editing.rules import Rule

STRENGTHS = (1.0, 0.1, 0.01, 0.001, 0.0001)

_KEPT_NUMBERS = 20_000_000  # values of the layer's output that a fit keeps in memory: 80 MB
_FEWEST_ROWS = 200
_NUMBERS_AT_ONCE = 2**18  # values of the layer's output per batch on a CPU: they fit its cache, three times as fast
_FEWEST_AT_ONCE = 16  # rows per batch, so that the overhead of each operation stays small


class LearnedScale(NamedTuple):
    """The result of a fit: the operation, and the chosen regularisation strength (infinite: no change)."""

    operation: ScalingAndShifting
    strength: float


def learn_scale(
    kept: EditedLogits,
    *,
    shift: bool = True,
    strengths: Sequence[float] = STRENGTHS,
    iterations: int = 25,
    seed: int = 0,
) -> LearnedScale:
    """Fit a scale s and a shift t per neuron by cross-entropy, regularised towards s = 1, t = 0.

    With d a neuron's standard deviation on these images, L-BFGS minimises::

        mean cross-entropy + strength * sum over neurons of ((s - 1)^2 + (t / d)^2)

    The strength is the one with the lowest cross-entropy in 3-fold cross-validation, or no change at all where none
    beats that. Layers with large maps are fitted on fewer images (20 million values of their output), stratified by
    class.

    Args:
        shift: False learns only the scale.
        strengths: regularisation strengths to try; a single one is used without cross-validation.
    """
    labels = kept.before.labels
    rows = _rows(kept, seed)
    shift = shift and getattr(editable_layer(kept.inference.network, kept.layer), "bias", None) is not None
    fit = _Fit(kept, rows, shift, iterations)
    descending = sorted(strengths, reverse=True)
    strength = descending[0]
    if len(descending) > 1:
        losses = {math.inf: 0.0, **dict.fromkeys(descending, 0.0)}
        for train, held_out in folds_of(labels[rows], 3, seed):
            losses[math.inf] += fit.loss(fit.start, held_out)
            for found, candidate in zip(fit.path(train, descending), descending, strict=True):
                losses[candidate] += fit.loss(found, held_out)
        strength = min(losses, key=lambda candidate: losses[candidate])
    if math.isinf(strength):
        return LearnedScale(fit.operation(fit.start), strength)
    everything = torch.arange(len(rows))
    *_, found = fit.path(everything, [candidate for candidate in descending if candidate >= strength])
    return LearnedScale(fit.operation(found), strength)


class _Fit:
    """A fit with parameters (s - 1, t / d) per neuron, so that 0 is no change and one penalty suits both."""

    def __init__(self, kept: EditedLogits, rows: Tensor, shift: bool, iterations: int) -> None:
        self.kept, self.rows, self.iterations = kept, rows, iterations
        self.labels = kept.before.labels[rows]
        outputs = kept.outputs(rows)
        self.deviation = outputs.transpose(0, 1).flatten(1).std(1).nan_to_num().clamp_min(0).cpu()
        self.start = torch.zeros(kept.neurons, 2 if shift else 1)
        numbers = max(1, outputs.numel() // len(rows))
        self.at_once = max(_FEWEST_AT_ONCE, _NUMBERS_AT_ONCE // numbers) if outputs.device.type == "cpu" else len(rows)

    def operation(self, parameters: Float[Tensor, "neuron number"]) -> ScalingAndShifting:
        shift = parameters[:, 1] * self.deviation if parameters.shape[1] > 1 else torch.zeros(len(parameters))
        return ScalingAndShifting(torch.stack([1 + parameters[:, 0], shift], 1))

    def _changed(self, parameters: Tensor, outputs: Tensor) -> Tensor:
        scale = by_neuron(1 + parameters[:, 0], outputs)
        if parameters.shape[1] == 1:
            return outputs * scale
        return torch.addcmul(by_neuron(parameters[:, 1] * self.deviation.to(parameters), outputs), outputs, scale)

    def path(self, part: Int64[Tensor, " row"], strengths: Sequence[float]) -> Iterator[Tensor]:
        """The regularisation path: parameters at each strength, strongest first, each warm-started from the last."""
        losses = [self._summed_loss(rows) for rows in part.split(self.at_once)]
        found = self.start
        for strength in strengths:

            def penalty(parameters: Tensor, strength: float = strength) -> Tensor:
                return len(part) * strength * (parameters**2).sum()

            found = minimum([*losses, penalty], found, self.iterations, len(part))
            yield found

    @torch.no_grad()
    def loss(self, parameters: Tensor, part: Int64[Tensor, " row"]) -> float:
        """Summed cross-entropy on some of the rows."""
        return sum(float(self._summed_loss(rows)(parameters)) for rows in part.split(self.at_once))

    def _summed_loss(self, part: Int64[Tensor, " row"]) -> Callable[[Tensor], Tensor]:
        logits, labels = self.kept.differentiable(self.rows[part]), self.labels[part]

        def loss(parameters: Tensor) -> Tensor:
            changed = logits(lambda outputs: self._changed(parameters, outputs))
            return cross_entropy(changed.double(), labels.to(changed.device), reduction="sum")

        return loss


def minimum(losses: Sequence[Callable[[Tensor], Tensor]], start: Tensor, iterations: int, images: int = 1) -> Tensor:
    """Minimise the sum of some losses, divided by the number of images, with L-BFGS (strong Wolfe); returns parameters.

    Each loss is differentiated separately, so that only one graph at a time is in memory.
    """
    parameters = nn.Parameter(start.detach().clone())
    solver = torch.optim.LBFGS(
        [parameters], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        value, gradient = 0.0, torch.zeros_like(parameters)
        for loss in losses:
            part = loss(parameters)
            gradient += torch.autograd.grad(part, parameters)[0]
            value += float(part.detach())
        parameters.grad = gradient / images
        return torch.tensor(value / images, dtype=torch.float64)

    with torch.enable_grad():
        solver.step(closure)
    return parameters.detach()


def folds_of(
    labels: Int64[Tensor, " image"], folds: int, seed: int
) -> Iterator[tuple[Int64[Tensor, " train"], Int64[Tensor, " held"]]]:
    """Training and held-out rows of each fold, stratified by class; classes with too few images are allowed."""
    from sklearn.model_selection import StratifiedKFold  # imported here because it takes a second

    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*least populated class.*")
        parts = list(split.split(np.zeros(len(labels)), labels.numpy()))
    for train, held_out in parts:
        yield torch.from_numpy(train), torch.from_numpy(held_out)


def _rows(kept: EditedLogits, seed: int) -> Int64[Tensor, " row"]:
    images = len(kept.before.labels)
    numbers = kept.outputs(torch.arange(1)).numel()
    limit = max(_FEWEST_ROWS, _KEPT_NUMBERS // numbers)
    return torch.arange(images) if images <= limit else stratified_rows(kept.before.labels, limit, seed)


@dataclass(frozen=True)
class Learned(Rule):
    """Chosen neurons get the scale and shift that :func:`learn_scale` fits on the images the edit is chosen on.

    They are learned for the whole layer at once; the other neurons are unchanged.

    Args:
        shift: False learns only the scale.
        strengths: regularisation strengths to try, chosen by cross-validation.
    """

    name: ClassVar[str] = "learned"
    needs_images: ClassVar[bool] = True
    shift: bool = True
    strengths: Sequence[float] = STRENGTHS
    seed: int = 0
    found: ScalingAndShifting | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strengths", tuple(float(strength) for strength in self.strengths))
        if not self.strengths or any(not (strength > 0 and math.isfinite(strength)) for strength in self.strengths):
            raise UserError(f"edit.strengths={list(self.strengths)} must be numbers above 0, e.g. [0.1,0.01].")

    def fitted(self, kept: EditedLogits) -> Learned:
        learned = learn_scale(kept, shift=self.shift, strengths=self.strengths, seed=self.seed)
        return replace(self, found=learned.operation)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        if self.found is None:
            raise UserError("edit=learned needs images: call rule.fitted(EditedLogits(...)) first.")
        return ScalingAndShifting(torch.where(selected[:, None], self.found.values, torch.tensor([1.0, 0.0])))

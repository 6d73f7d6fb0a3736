"""Evaluates edits of any network on any data: a single comparison, or a whole study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from emodissect.core.errors import UserError
from emodissect.core.evaluation_mode import evaluating
from emodissect.data.batches import class_labels, images_of, labels_of, placed_ids
from emodissect.data.image_source import image_set
from emodissect.data.images import ImageSet, image_loader
from emodissect.dissection.labels import Dissection
from emodissect.editing.edit import Edit, edited
from emodissect.editing.from_function import FromFunction
from emodissect.editing.rules import Rule, Scale
from emodissect.editing.selection import AllNeurons, Selection, Tau
from emodissect.models.inference import Inference
from emodissect.models.network_input import NetworkInput, Transform, on_device
from emodissect.models.network_output import LogitsOf, as_logits, logits_of
from emodissect.models.predictions import Predictions
from emodissect.studies.baselines import LADDER, Alternatives, Baseline
from emodissect.studies.comparison import Comparison, compare
from emodissect.studies.result import EditStudy
from emodissect.studies.run import run_study

log = logging.getLogger(__name__)

Change = Rule | Callable[[nn.Module], nn.Module | None]
"""A rule, or a function that edits a copy of the network."""


def evaluate_edit(
    network: nn.Module,
    edit: Edit | Sequence[Edit],
    data: Any,
    *,
    transform: Transform | None = None,
    class_names: Sequence[str] | None = None,
    logits: LogitsOf | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Comparison:
    """Accuracy with and without an edit on the same images, with an interval and the exact McNemar p-value.

    Args:
        network: any module that returns logits (image, class); its weights are restored bit for bit.
        edit: one edit, or several that are applied together; layer paths are relative to the network.
        data: a ``DataLoader`` of ``(x, y)`` batches or dicts, or a ``Dataset`` of such items; x is the network's
            input.
        transform: maps a raw image to the network's input, where x is a raw image.
        class_names: in the order of the logits; checked against their number.
        logits: called as ``logits(module, x)`` where ``module(x)`` does not return logits.
        batch_size: for data that is not a loader.
        device: where the network runs; None leaves it where it is.
        seed: random seed for data with random augmentation.

    Raises:
        UserError: an edit that does not fit the network, data without labels, labels that are not class indices.

    Example:
        >>> from emodissect.editing.rules import Scale
        >>> network = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(network.weight)
        >>> data = [(torch.tensor([[1.0, 0.9], [0.2, 1.0]]), torch.tensor([1, 1]))]
        >>> evaluate_edit(nn.Sequential(network), Edit("0", [1.0, 2.0]), data).gained
        1
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit)
    rows: list[tuple[Tensor, ...]] = []
    seen = 0
    with on_device(network, device), evaluating(network), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for one in edits:
            one.changes(network)
        inputs: Callable[[Tensor], Tensor] | None = None
        for batch in _batches(data, batch_size):
            images = images_of(batch)
            inputs = inputs or NetworkInput(network, transform, images)
            network_input = inputs(images)
            before = logits_of(network, network_input, logits)
            with edited(network, *edits):
                after = logits_of(network, network_input, logits)
            rows.append(evaluated_row(batch, before, after, seen))
            seen += len(before)
    if not rows:
        raise UserError("data contains no images, so the edit cannot be evaluated.")
    return compare(*predictions_of(rows, class_names))


def study(
    network: nn.Module,
    labels: Dissection,
    val: Any,
    test: Any,
    *,
    layers: str | Sequence[str] | None = None,
    selections: Selection | Sequence[Selection] | None = None,
    rules: Change | Sequence[Change] | None = None,
    baselines: Sequence[Baseline] = LADDER,
    train: Any = None,
    transform: Transform | None = None,
    class_names: Sequence[str] | None = None,
    metric: str = "accuracy",
    alpha: float = 0.05,
    controls: int = 200,
    select_on_test: bool = False,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EditStudy:
    """Run a whole study of your own network: the grid on validation, one evaluation on test, controls, a verdict.

    Args:
        network: any module that returns logits; its weights are restored bit for bit.
        labels: labels of its neurons, from :func:`emodissect.dissect`.
        val: labelled images that the edit is chosen on, in any form that ``evaluate_edit`` takes.
        test: images that are used once, for the chosen edit and its controls.
        layers: the layers whose neurons are edited, one at a time; None takes every layer of the labels.
        selections: which neurons are chosen; None is the published selection, similarity above the labels' tau, or
            every neuron if all rules are functions.
        rules: how they are edited; None is the published rule, chosen neurons times 1.5 and the others divided by it.
            A function gets a copy of the network and returns it edited, or edits it in place: see
            :class:`~emodissect.editing.from_function.FromFunction`. Several rules form a grid.
        baselines: cheap alternatives that are fitted on `val` and compared on `test`, `[]` for none. They take seconds
            where the network can be cut behind the layer, and many full forward passes where it cannot.
        train: training images that they are fitted on as well, in any form that `val` takes.
        transform, class_names, device: as in ``evaluate_edit``.
        metric: the metric that the edit is chosen by on validation.
        alpha: significance level for claiming a gain.
        controls: number of random edits of the same size, and of studies with shuffled labels.
        select_on_test: choose on the test images, only to show how optimistic that is.
        batch_size: images per forward pass.
        seed: random seed of the controls.
        progress: show progress bars.

    Returns:
        The study; ``study.verdict`` is one sentence, ``study.test`` the comparison, ``study.edit`` the chosen edit.

    Raises:
        UserError: as ``evaluate_edit``, and where every image of test is in val. If some are, a warning says how many.
    """
    # ids only need to be unique: those of test continue those of validation, unless both come with their own
    chosen_on = image_set(val, as_given=True, progress=progress)
    tested_on = image_set(test, as_given=True, progress=progress)
    if not (isinstance(val, ImageSet) and isinstance(test, ImageSet)):
        if not select_on_test:
            _check_pixels_apart(chosen_on, tested_on)
        tested_on = ImageSet(tested_on.images, tested_on.labels, tested_on.ids + int(chosen_on.ids.max()) + 1)
    learned_on = None if train is None else image_set(train, as_given=True, progress=progress)
    given = {"val": chosen_on, "test": tested_on} | ({} if learned_on is None else {"train": learned_on})
    for name, images in given.items():
        if not images.labelled:
            raise UserError(f"{name} has no labels, so accuracy is not defined. Give (image, label) pairs.")
    listed = [rule if isinstance(rule, Rule) else FromFunction(rule) for rule in _listed(rules)] or [Scale(1.5)]
    by_function = all(isinstance(rule, FromFunction) for rule in listed)
    with on_device(network, device):
        inputs = NetworkInput(network, transform, chosen_on.images[:2])
        with evaluating(network), torch.no_grad():
            classes = logits_of(network, inputs(chosen_on.images[:2])).shape[1]
        for images in given.values():
            check_classes(images.labels, classes, class_names)
        return run_study(
            Inference(inputs, network, as_logits),
            [layers] if isinstance(layers, str) else list(layers or labels.layers["layer"]),
            labels.neurons,
            _listed(selections) or [AllNeurons() if by_function else Tau(labels.tau)],
            listed,
            chosen_on,
            tested_on,
            alternatives=Alternatives(baselines, learned_on),
            metric=metric,
            select_on_test=select_on_test,
            alpha=alpha,
            controls=controls,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )


def _check_pixels_apart(val: ImageSet, test: ImageSet) -> None:
    """Compares pixels, since data without ids of its own gets new ones."""
    known = set(val.pixel_hashes())
    shared = sum(pixels in known for pixels in test.pixel_hashes())
    if shared == len(test) > 0:
        raise UserError("Every image of test is in val: the edit would be evaluated on images it was chosen on.")
    if shared:
        log.warning(
            "%d of the %d images of test are in val too (the same pixels), so the result is optimistic: leave them out "
            "of one of the two.",
            *(shared, len(test)),
        )


def check_classes(labels: Tensor, classes: int, class_names: Sequence[str] | None = None) -> None:
    """Raises UserError for labels without a logit, or if the number of class names is not that of the logits."""
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"class_names has {len(class_names)} names for {classes} logits: name one class per logit.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"Labels range from {int(labels.min())} to {int(labels.max())}, but the network has {classes} logits: each "
            f"label must be the index of a logit, 0..{classes - 1}."
        )


def _batches(data: Any, batch_size: int) -> Iterable[Any]:
    """Batches of a loader, an iterable of batches, or a data set."""
    if isinstance(data, ImageSet):
        return image_loader(data, batch_size)
    if isinstance(data, DataLoader) or not hasattr(data, "__getitem__"):
        return data
    first = data[0] if len(data) else None
    if isinstance(data, list | tuple) and isinstance(images_of(first), Tensor) and images_of(first).ndim in (2, 4):
        return data
    return image_loader(image_set(data, as_given=True), batch_size)


def predictions_of(
    rows: Sequence[tuple[Tensor, ...]], class_names: Sequence[str] | None = None
) -> tuple[Predictions, Predictions]:
    """Predictions before and after an edit, from the rows of all batches. Raises UserError as :func:`check_classes`."""
    ids, labels, before, after = (torch.cat(parts) for parts in zip(*rows, strict=True))
    check_classes(labels, before.shape[1], class_names)
    return Predictions.placed(ids, labels, before), Predictions.placed(ids, labels, after)


def evaluated_row(
    batch: Any, before: Tensor, after: Tensor, seen: int, rank: int = 0, processes: int = 1
) -> tuple[Tensor, ...]:
    """Ids (see ``placed_ids``), labels, and logits before and after of a batch, on the CPU.

    Raises:
        UserError: the batch has no labels.
    """
    labels = labels_of(batch)
    if labels is None:
        raise UserError("The batches have no labels, so accuracy is not defined. Give (image, label) pairs or dicts.")
    ids, known = placed_ids(batch, len(before), seen, rank, processes), class_labels(labels, len(before))
    return ids, known, before.detach().float().cpu(), after.detach().float().cpu()


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]

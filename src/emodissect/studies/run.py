"""Runs an edit study: a grid on validation, one evaluation on test, controls and an exact check."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from emodissect.concepts import ConceptScores
from emodissect.core.errors import UserError
from emodissect.core.statistics import detectable_delta
from emodissect.data.images import ImageSet
from emodissect.editing.edit import Edit
from emodissect.editing.effects import estimate_effects
from emodissect.editing.fast.edited_logits import EditedLogits, require_same_logits
from emodissect.editing.rules import Rule, Scale
from emodissect.editing.selection import AllNeurons, Selection, needs_images
from emodissect.models.inference import Inference
from emodissect.models.predictions import Predictions
from emodissect.studies.baselines import Alternatives
from emodissect.studies.cells import grid, grid_frame, labels_of
from emodissect.studies.comparison import compare
from emodissect.studies.decision import Decision, Question, decide, optimism
from emodissect.studies.label_effects import neuron_effects
from emodissect.studies.metrics import MetricChange, check_metric, group_table, groups_of, metric_change
from emodissect.studies.result import EditStudy

log = logging.getLogger(__name__)

_NO_ALTERNATIVES = Alternatives()
_FEWEST_DRAWS = 99  # p < .05 even if three draws are as good; with 39, one such draw gives (1 + 1) / 40, not below .05


class _LogitsByLayer(dict[str, EditedLogits]):
    """The network's logits under edits of each layer, computed on first access."""

    def __init__(
        self, inference: Inference, images: ImageSet, batch_size: int, memory_limit: int, progress: bool
    ) -> None:
        super().__init__()
        self._arguments = (inference, images, batch_size, memory_limit, progress)

    def __missing__(self, layer: str) -> EditedLogits:
        inference, images, batch_size, memory_limit, progress = self._arguments
        self[layer] = EditedLogits(inference, layer, images, batch_size, memory_limit, progress=progress)
        return self[layer]


def warn_of_few_draws(alpha: float, controls: int) -> None:
    """Warns if no p-value could fall below alpha, or none could with a single draw as good as the edit."""
    if 2 / (1 + controls) >= alpha:
        best = "no edit" if 1 / (1 + controls) >= alpha else "only an edit that no draw equals"
        log.warning(
            "With study.controls=%d draws, %s can reach p < %g. Give %d or more to claim a gain.",
            *(controls, best, alpha, math.ceil(5 / alpha) - 1),
        )


def check_apart(val: ImageSet, test: ImageSet) -> None:
    """Raises UserError where the validation and test images overlap."""
    shared = int(torch.isin(val.ids, test.ids).sum())
    if shared:
        raise UserError(
            f"{shared:,} of the {len(val):,} images that the edit is chosen on are among those it is evaluated on, so "
            "its result would be optimistic. Set study.selection_split and study.test_split to splits that share no "
            "images, or study.select_on_test=true to repeat the published mistake."
        )


def _metric_row(change: MetricChange | None, decision: Decision) -> dict[str, Any] | None:
    if change is None:
        return None
    chance = {f"p_{name}": decision.p(name, "metric_test") for name in ("random", "shuffled")}
    return change.row() | chance


def check_grid(
    network: nn.Module,
    layers: Sequence[str],
    neurons: pd.DataFrame,
    selections: Sequence[Selection],
    rules: Sequence[Rule],
) -> None:
    """Builds the grid without the selections and rules that need images. Raises UserError where it cannot be built."""
    if selections and rules:
        selections = [selection for selection in selections if not needs_images(selection)] or [AllNeurons()]
        rules = [rule for rule in rules if not needs_images(rule)] or [Scale(factor=1.0)]
    grid(network, layers, neurons, selections, rules)


def run_study(
    inference: Inference,
    layers: Sequence[str],
    neurons: pd.DataFrame,
    selections: Sequence[Selection],
    rules: Sequence[Rule],
    val: ImageSet,
    test: ImageSet,
    *,
    metric: str = "accuracy",
    select_on_test: bool = False,
    alpha: float = 0.05,
    controls: int = 200,
    control_cells: int = 4000,
    seed: int = 0,
    batch_size: int = 256,
    memory_limit: int = 2 * 2**30,
    progress: bool = False,
    groups: str | None = None,
    alternatives: Alternatives = _NO_ALTERNATIVES,
    effects: int = 0,
    concept_scores: ConceptScores | None = None,
    run_on_test: Callable[[Edit], tuple[Predictions, Predictions]] | None = None,
) -> EditStudy:
    """Try every layer x selection x rule on validation, choose the best, and evaluate it once on test.

    Args:
        inference: the network with its preprocessing and postprocessing; its weights are restored exactly.
        layers: the layers whose neurons are edited, one at a time.
        test: used once, for the chosen edit, the unedited network and the controls of that edit.
        metric: the metric that the edit is chosen by on validation, see
            :data:`~emodissect.studies.metrics.METRICS`; ties go to the smallest change.
        select_on_test: choose on the test images, only to repeat the published study; the result is marked.
        alpha: significance level for claiming a gain.
        controls: number of draws of random neurons, and of shuffled labels.
        control_cells: maximum number of cells evaluated for shuffled labels. Each of their draws repeats the whole
            grid, so a large grid gets fewer draws, but never fewer than 99 (or `controls`, if that is smaller).
        batch_size, memory_limit: see :class:`~emodissect.editing.fast.edited_logits.EditedLogits`.
        groups: an annotated concept of the images; its presence x class defines the groups of `worst_group`.
        alternatives: what the edit is compared with on test.
        effects: number of random edits used to estimate each neuron's effect, see
            :func:`~emodissect.editing.effects.estimate_effects`; 0 skips this.
        concept_scores: concept scores of the images that the edit is chosen on, for the held-out score of each
            neuron's label.
        run_on_test: returns the predictions of the unedited and of the edited network on the test images, e.g. from a
            trainer with ``EvaluateEdit``; None runs both here.

    Raises:
        UserError: before any forward pass: unknown layer, metric or concept, empty image sets, overlapping validation
            and test images, a grid that cannot be built; and where the unedited network's logits are not finite.
    """
    check_metric(metric, groups)
    if groups is not None:
        for images in (val, test):
            groups_of(images, groups)
    for name, images in (("validation", val), ("test", test)):
        if not len(images):
            raise UserError(f"The {name} set is empty, so no edit can be evaluated.")
    optimistic = select_on_test
    if not optimistic:
        check_apart(val, test)
    layers = list(dict.fromkeys(layers))
    check_grid(inference.network, layers, neurons, selections, rules)
    cells = len(layers) * len(selections) * len(rules)
    if optimistic:
        log.warning(
            "select_on_test=true: the edit is chosen on the images it is evaluated on; its result is optimistic."
        )

    # Layers share the memory; test outputs are computed only for layers in which a chosen edit lies.
    limit = memory_limit // (2 * len(layers))
    on_test = _LogitsByLayer(inference, test, batch_size, limit, progress)
    question = Question(
        layers=layers,
        val=on_test if optimistic else _LogitsByLayer(inference, val, batch_size, limit, progress),
        test=on_test,
        network=inference.network,
        selections=selections,
        rules=rules,
        metric=metric,
        random_draws=controls,
        shuffled_draws=min(controls, max(_FEWEST_DRAWS, control_cells // cells)),
        seed=seed,
        groups=groups,
    )
    decision = decide(question, neurons)
    cell = decision.cells[decision.chosen]
    chosen_val, chosen_test = question.val[cell.layer], question.test[cell.layer]
    edit = chosen_test.edit(cell.operation)

    def after(logits: EditedLogits) -> Predictions:
        found = logits.logits([cell.operation])[0]
        return Predictions(logits.before.ids, logits.before.labels, found)

    fast = after(chosen_test)
    before, exact = run_on_test(edit) if run_on_test else (chosen_test.exact(None), chosen_test.exact(edit))
    difference = float((fast.logits - exact.logits).abs().max())
    identical = torch.equal(fast.predicted, exact.predicted)
    require_same_logits(fast.logits, exact.logits, f"{cell.rule.name} on layer '{cell.layer}'")
    comparison = compare(before, exact)
    shown = question.shown_metric
    on_groups = question.groups_in(question.test)

    def change(predictions: Predictions) -> MetricChange | None:
        return None if shown == "accuracy" else metric_change(shown, before, predictions, on_groups, seed=seed)

    chosen_on = {"test" if optimistic else "val": chosen_val}
    ladder = alternatives.ladder(edit, chosen_on, chosen_test, before, exact, change, seed)
    of_neurons = pd.DataFrame()
    if effects:
        estimated = estimate_effects(chosen_val, draws=effects, seed=seed)
        of_neurons = neuron_effects(labels_of(neurons, cell.layer), estimated, chosen_val, concept_scores)
    return EditStudy(
        grid=grid_frame(decision.cells, decision.results, decision.chosen),
        controls=decision.controls,
        edit=edit,
        selected=cell.selected,
        selection=cell.selection.name,
        rule=cell.rule.name,
        settings=cell.settings,
        val=comparison if optimistic else compare(chosen_val.before, after(chosen_val)),
        test=comparison,
        before=before,
        after=exact,
        metric=metric,
        select_on_test=select_on_test,
        alpha=alpha,
        p_random=decision.p("random"),
        p_shuffled=decision.p("shuffled"),
        detectable_delta=detectable_delta(len(test), (comparison.gained + comparison.lost) / len(test), alpha),
        logit_difference=difference,
        identical_predictions=identical,
        is_cut=all(part.is_cut for part in (chosen_val, chosen_test)),
        cut_reason=chosen_test.reason,
        kept_bytes=sum(part.bytes for split in (question.val, question.test) for part in split.values()),
        ladder=ladder,
        neuron_effects=of_neurons,
        groups=groups,
        of_metric=_metric_row(change(exact), decision),
        group_table=pd.DataFrame() if on_groups is None else group_table(before, exact, on_groups),
        optimism=optimism(question, decision, neurons, min(controls, max(_FEWEST_DRAWS, control_cells // (2 * cells)))),
    )

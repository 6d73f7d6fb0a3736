"""The result of an edit study: tables, comparisons and a one-sentence verdict."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from emodissect.core.number_format import p_sentence
from emodissect.core.tensor_files import save_tensors
from emodissect.editing.edit import Edit
from emodissect.editing.operations import Operation, Scaling
from emodissect.models.predictions import Predictions
from emodissect.studies.baselines.ladder import best_alternative
from emodissect.studies.claim import claims_gain
from emodissect.studies.comparison import Comparison, with_nan, without_nan
from emodissect.studies.metrics import METRIC_WORDS

_PLAIN = (
    *("select_on_test", "metric", "alpha", "selection", "rule", "settings", "p_random", "p_shuffled"),
    *("detectable_delta", "logit_difference", "identical_predictions", "is_cut", "cut_reason", "kept_bytes"),
    *("optimism", "groups", "of_metric"),
)


@dataclass(frozen=True, eq=False, repr=False)
class EditStudy:
    """The chosen edit, its effect on test, and its controls.

    Attributes:
        grid: one row per cell, evaluated on the selection images.
        controls: one row per draw: control (`random`, `shuffled`, `all`, `inverse`), draw, delta_test, metric_test.
        edit: the chosen edit.
        selected: mask of the neurons that its selection chose.
        selection, rule, settings: its coordinates in the grid; `settings` by name, e.g. tau and factor.
        val, test: the edited network compared with the unedited one.
        before, after: predictions on test.
        metric, select_on_test, alpha: how the edit was chosen, and the significance level.
        p_random: p-value against the same number of random living neurons: how often they give as large a delta on
            test; NaN where none were drawn.
        p_shuffled: p-value against whole studies with shuffled labels, each with its own choice; NaN where the edit
            uses no labels.
        detectable_delta: the smallest delta that the test images could have shown with power .8, at this
            share of flips.
        logit_difference, identical_predictions: the chosen cell compared with a full forward pass of the edited
            weights.
        is_cut, cut_reason, kept_bytes: whether the grid re-ran only the part behind the layer, why not, and the memory
            used.
        ladder: results of the cheap alternatives, see :func:`emodissect.studies.baselines.climb`; empty where none
            were requested.
        optimism: the "gain" that choosing on test would show for random edits: the largest delta on test of as many
            random edits as the grid has cells, mean over draws.
        groups: the annotated concept that, with the classes, defines the groups.
        of_metric: where the metric is not accuracy, or groups are given: the fields of
            :class:`emodissect.studies.metrics.MetricChange` on test, with p_random and p_shuffled of the controls.
        neuron_effects: each neuron's effect and the quality of its label, see
            :func:`emodissect.studies.label_effects.neuron_effects`; empty where it was not requested.
        group_table: accuracy of each group on test, see :func:`emodissect.studies.metrics.group_table`.
        tested_on: display name of the test images, e.g. `validation and test`.
    """

    grid: pd.DataFrame
    controls: pd.DataFrame
    edit: Edit
    selected: torch.Tensor
    selection: str
    rule: str
    settings: dict[str, Any]
    val: Comparison
    test: Comparison
    before: Predictions
    after: Predictions
    metric: str
    select_on_test: bool
    alpha: float
    p_random: float
    p_shuffled: float
    detectable_delta: float
    logit_difference: float
    identical_predictions: bool
    is_cut: bool
    cut_reason: str
    kept_bytes: int
    ladder: pd.DataFrame = field(default_factory=pd.DataFrame)
    optimism: float = math.nan
    groups: str | None = None
    of_metric: dict[str, Any] | None = None
    group_table: pd.DataFrame = field(default_factory=pd.DataFrame)
    neuron_effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    tested_on: str = "test"

    def __repr__(self) -> str:
        return f"EditStudy of {self.edit.layer} ({len(self.grid)} cells): {self.verdict}"

    @property
    def optimistic(self) -> bool:
        """Whether the edit was chosen on the images it is evaluated on."""
        return self.select_on_test

    @property
    def claims_gain(self) -> bool:
        """Whether the study claims that this edit, rather than any edit of its size, improved the network.

        On test: delta > 0, exact McNemar p < alpha, better than the same number of random neurons (p < alpha) and,
        where the edit uses labels, better than studies with shuffled labels (p < alpha). The last is an exact
        permutation test of the whole procedure, so uninformative labels lead to a claim in at most a share alpha of
        all studies. A study that chose on the test images claims nothing.
        """
        test = self.test
        claimed = claims_gain(test.delta, test.p_value, self.p_random, self.p_shuffled, self.alpha)
        return claimed and not self.optimistic

    @property
    def claims_metric(self) -> bool:
        """Whether the same rule claims a gain in the study's own metric, where it is not accuracy."""
        of = self.of_metric
        if of is None:
            return False
        claimed = claims_gain(of["delta"], of["p_value"], of["p_random"], of["p_shuffled"], self.alpha)
        return claimed and not self.optimistic

    @property
    def verdict(self) -> str:
        """The outcome as a sentence."""
        sentence = self._with_alternatives(self._sentence()) + self._of_one_scale() + self._of_metric()
        if not self.optimistic:
            return sentence
        chosen = f"Optimistic, because it was chosen on the same {self.tested_on} images"
        return f"{chosen}: {sentence[0].lower()}{sentence[1:]}"

    def _sentence(self) -> str:
        test, alpha = self.test, self.alpha
        chance = f"within what the same number of random neurons give, {p_sentence(self.p_random)}"
        if self.edit.operation.is_identity:
            return self._nothing()
        images = "image" if test.gained == 1 else "images"
        flips = f"{test.gained} {images} newly correct, {test.lost} newly wrong"
        figures = f"{100 * test.delta:+.2f} points on {self.tested_on} ({flips}, {p_sentence(test.p_value)})"
        if test.delta < 0:
            word = "Loss" if test.p_value < alpha else "No gain"
            return f"{word}: {figures}."
        if test.delta == 0:
            return f"No gain: {figures}."
        if not self.edit.operation.of_neurons:
            word = "Better than the unedited network" if test.p_value < alpha else "No gain beyond chance"
            return f"{word}: {figures}; this edit does not act on the neurons of one layer, so it has no controls."
        if math.isnan(self.p_random):
            return f"No claim, because no controls were drawn: {figures}."
        beyond_random, beyond_shuffled = self.p_random < alpha, not self.p_shuffled >= alpha
        if test.p_value >= alpha:
            tail = (
                chance
                if not beyond_random
                else f"which chance explains, though random neurons give less, {p_sentence(self.p_random)}"
            )
            return f"No gain beyond chance: {figures}, {tail}."
        if not beyond_random:
            return f"Gain {chance}: {figures}, so the choice of neurons does not explain it."
        if not beyond_shuffled:
            return (
                f"Gain within what the same study with shuffled labels gives, {p_sentence(self.p_shuffled)}: {figures}."
            )
        shuffled = "" if math.isnan(self.p_shuffled) else f" and shuffled labels ({p_sentence(self.p_shuffled)})"
        random = f"the same number of random neurons ({p_sentence(self.p_random)})"
        return f"Gain: {figures}, more than {random}{shuffled} give."

    def _with_alternatives(self, sentence: str) -> str:
        """Adds the change in accuracy of the best cheap alternative to the sentence."""
        best = best_alternative(self.ladder)
        if best is None:
            return sentence
        gives = f"{best['words']} gives ({100 * best['delta']:+.2f})"
        if not sentence.startswith("Gain"):
            figure = f"{100 * best['delta']:+.2f} ({p_sentence(best['p_value'])})"
            return f"{sentence} {best['words'].capitalize()} gives {figure}."
        if best["delta"] > self.test.delta:
            return f"{sentence.removesuffix('.')}; less than {gives}."
        word = "as much as" if best["delta"] == self.test.delta else "more than"
        return f"{sentence.removesuffix('.')}; {word} the best cheap alternative, {gives}."

    def _of_metric(self) -> str:
        """A sentence about the study's own metric, where it is not accuracy."""
        of = self.of_metric
        if of is None or self.edit.operation.is_identity:
            return ""
        word = METRIC_WORDS[of["metric"]]
        if of["metric"] == "nll":
            change = f" {word}: {-of['before']:.4f} before, {-of['after']:.4f} after ({p_sentence(of['p_value'])})."
            return change if not self.claims_metric else f"{change[:-1]}: better."
        sentence = (
            f" {word}: {100 * of['before']:.1f} % before, {100 * of['after']:.1f} % after "
            f"({100 * of['delta']:+.2f} points, {p_sentence(of['p_value'])})"
        )
        if not math.isnan(of["p_random"]):
            sentence += f"; against the same number of random neurons {p_sentence(of['p_random'])}"
        best = best_alternative(self.ladder, "metric_delta")
        if best is not None:
            sentence += f"; the best cheap alternative, {best['words']}, gives {100 * best['metric_delta']:+.2f}"
        return f"{sentence}."

    def _of_one_scale(self) -> str:
        """A note where the selection took all neurons or none."""
        chosen, neurons = int(self.selected.sum()), len(self.selected)
        if self.selection == "all" or chosen not in (0, neurons) or self.edit.operation.is_identity:
            return ""
        return f" The selection took {'every' if chosen else 'no'} neuron of {self.edit.layer}."

    def _nothing(self) -> str:
        """The verdict on an edit that changes no neuron."""
        if len(self.grid) > 1:
            return "No edit of the grid was better than the unedited network, so nothing was changed."
        chosen, all_of_them = int(self.selected.sum()), len(self.selected)
        why = "the selection chose no neuron" if not chosen else self._neutral()
        return f"The edit changes nothing: {why} ({chosen} of {all_of_them} neurons of {self.edit.layer} chosen)."

    def _neutral(self) -> str:
        """Why the chosen neurons are unchanged, e.g. `each neuron's scale is 1`."""
        operation = self.edit.operation
        word = "scale" if isinstance(operation, Scaling) else "value"
        neutral = operation.neutral if isinstance(operation.neutral, tuple) else (operation.neutral,)
        return f"each neuron's {word} is {', '.join(f'{value:g}' for value in neutral)}"

    def row(self) -> dict[str, Any]:
        """Plain JSON values of everything except the tables and the tensors."""
        plain = {name: without_nan(getattr(self, name)) for name in _PLAIN}
        return {
            **plain,
            "layer": self.edit.layer,
            "operation": self.edit.operation.plain(),
            "selected": int(self.selected.sum()),
            "neurons": len(self.selected),
            "tested_on": self.tested_on,
            "optimistic": self.optimistic,
            "claims_gain": self.claims_gain,
            "verdict": self.verdict,
            "val": self.val.row(),
            "test": self.test.row(),
        }

    def save(self, folder: str | Path) -> None:
        """Writes `study.json`, the tables, `edit.safetensors` and the predictions on test to the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json.dumps(self.row(), indent=1, ensure_ascii=False), encoding="utf-8")
        self.grid.to_csv(folder / "grid.csv", index=False)
        self.controls.to_csv(folder / "controls.csv", index=False)
        self.group_table.to_csv(folder / "groups.csv", index=False)
        self.neuron_effects.to_csv(folder / "neuron_effects.csv", index=False)
        self.ladder.to_json(folder / "ladder.json", orient="records", indent=1, double_precision=15)
        tensors = {"values": self.edit.operation.values.contiguous(), "selected": self.selected.contiguous()}
        save_tensors(tensors, str(folder / "edit.safetensors"))
        self.before.save(folder / "test_before.safetensors")
        self.after.save(folder / "test_after.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> EditStudy:
        """The inverse of :meth:`save`."""
        folder = Path(folder)
        row = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        tensors = load_file(str(folder / "edit.safetensors"))
        plain: dict[str, Any] = {name: with_nan(row[name]) for name in _PLAIN}
        plain |= {name: None for name in ("groups", "of_metric") if row[name] is None}
        return cls(
            grid=pd.read_csv(folder / "grid.csv", float_precision="round_trip"),
            controls=pd.read_csv(folder / "controls.csv", float_precision="round_trip"),
            edit=Edit(row["layer"], Operation.from_plain(row["operation"], tensors["values"])),
            group_table=_read_table(folder / "groups.csv"),
            neuron_effects=_read_table(folder / "neuron_effects.csv"),
            ladder=pd.DataFrame(json.loads((folder / "ladder.json").read_text(encoding="utf-8"))),
            selected=tensors["selected"],
            val=Comparison.from_row(row["val"]),
            test=Comparison.from_row(row["test"]),
            before=Predictions.load(folder / "test_before.safetensors"),
            after=Predictions.load(folder / "test_after.safetensors"),
            tested_on=row.get("tested_on", "test"),
            **plain,
        )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, float_precision="round_trip")
    except pd.errors.EmptyDataError:  # the table was not requested
        return pd.DataFrame()

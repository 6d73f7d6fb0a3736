"""What edit.py asks of a network: the study, ablated concepts, null studies; each kept in the cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from emodissect.app.session import Session, resolved
from emodissect.app.stages.classifier import Trained, untrained
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.data.images import ImageSet
from emodissect.editing.editable import editable_layer, next_layer_of
from emodissect.models.predictions import Inference
from emodissect.recording import resolve_layers
from emodissect.study import ConceptAblation, EditStudy, ablate_concepts, null_studies, run_study

AXES = ("tau", "factor", "level")
"""Top-level values that a list turns into an axis of the grid."""


def grid_of(cfg: DictConfig, group: str) -> list[Any]:
    """One object of a group for every value of the lists among tau, factor and level that it refers to."""
    axes = {name: list(cfg[name]) for name in AXES if isinstance(cfg[name], ListConfig)}
    made: dict[str, Any] = {}
    for values in itertools.product(*axes.values()):
        cell = OmegaConf.merge(cfg, dict(zip(axes, values, strict=True)))
        assert isinstance(cell, DictConfig)
        plain = cell[group]
        described = json.dumps(resolved(plain), sort_keys=True)
        if described not in made:
            made[described] = instantiate(plain)
    return list(made.values())


def check_editable(run: Session, plan: Plan, rules: Sequence[Any]) -> None:
    """Tries the layers of an untrained network. Raises UserError for one that cannot be edited as asked."""
    if run.cfg.layer.get("keep"):
        return  # which one is not known yet
    classifier = untrained(run)
    network = classifier.network
    for layer in resolve_layers(network, plan.layer_words):
        editable_layer(network, layer)
        if any(rule.parameters == "outgoing" for rule in rules):
            with torch.inference_mode():
                example = classifier.inputs(plan.probe.images[:2])
            next_layer_of(network, layer, example)


@dataclass(frozen=True)
class Asked:
    """What a run asks of a network's edits; every answer is kept in the cache."""

    run: Session
    found: Dissected
    trained: Trained
    layers: Sequence[str]
    selections: Sequence[Any]
    rules: Sequence[Any]
    splits: Mapping[str, ImageSet]

    @property
    def inference(self) -> Inference:
        """The classifier where the trainer would run it."""
        return Inference.of(self.trained.classifier.to(self.run.device))

    def study(self) -> EditStudy:
        """The grid, the choice and the look at test."""
        asked = self.run.cfg.study
        key = self._key("metric", "select_on_test", "alpha", "controls", "bootstrap")
        self.run.inputs["study"] = key

        def write(folder: Path) -> None:
            run_study(
                *(self.inference, self.layers, self.found.dissection.neurons, self.selections, self.rules),
                *(self.splits["selection_split"], self.splits["test_split"]),
                metric=asked.metric,
                select_on_test=asked.select_on_test,
                alpha=asked.alpha,
                controls=asked.controls,
                bootstrap=asked.bootstrap,
                seed=self.run.cfg.seed,
                progress=True,
            ).save(folder)

        return EditStudy.load(self.run.made("studies", key, write))

    def null_studies(self) -> pd.DataFrame:
        """How often the same study claims a gain when the labels say nothing."""
        asked = self.run.cfg.study

        def write(folder: Path) -> None:
            null_studies(
                *(self.inference, self.layers, self.found.dissection.neurons, self.selections, self.rules),
                *(self.splits["selection_split"], self.splits["test_split"]),
                studies=asked.null_studies,
                controls=asked.controls,
                metric=asked.metric,
                alpha=asked.alpha,
                seed=self.run.cfg.seed,
                progress=True,
            ).to_csv(folder / "null_studies.csv", index=False)

        key = self._key("metric", "alpha", "controls", "null_studies")
        return pd.read_csv(self.run.made("null-studies", key, write) / "null_studies.csv")

    def ablations(self) -> dict[str, ConceptAblation]:
        """By layer, each class's fall of recall when the neurons of one concept are silenced."""
        found = {}
        for layer in self.layers:
            key = {**self._key("controls"), "layers": [layer], "selections": None, "rules": None}

            def write(folder: Path, layer: str = layer) -> None:
                ablate_concepts(
                    *(self.inference, layer, self.found.dissection.neurons, self.splits["selection_split"]),
                    self.run.data.splits.class_names,
                    draws=self.run.cfg.study.controls,
                    seed=self.run.cfg.seed,
                    progress=True,
                ).save(folder)

            found[layer] = ConceptAblation.load(self.run.made("ablations", key, write))
        return found

    def _key(self, *of_study: str) -> dict[str, Any]:
        """Everything that an answer depends on."""
        return {
            "labels": self.found.key,
            "layers": list(self.layers),
            "selections": [repr(selection) for selection in self.selections],
            "rules": [repr(rule) for rule in self.rules],
            "images": {name: images.fingerprint() for name, images in self.splits.items()},
            "study": {name: self.run.cfg.study[name] for name in of_study},
            "seed": self.run.cfg.seed,
        }

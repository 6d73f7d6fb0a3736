"""The computations of edit.py: the study, concept ablations and null studies, each cached."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pandas as pd
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from emodissect.app.session import Session, resolved
from emodissect.app.stages.classifier import Trained, untrained
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.concepts import ConceptScores
from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import fingerprint, source_hash
from emodissect.data.images import ImageSet, image_loader
from emodissect.editing.edit import Edit
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import learn_scale
from emodissect.editing.operations import Target
from emodissect.editing.selection import needs_images
from emodissect.lightning.evaluate_edit import EvaluateEdit
from emodissect.models.inference import Inference
from emodissect.models.predictions import Predictions
from emodissect.recording import resolve_layers
from emodissect.studies import ConceptAblation, EditStudy, ablate_concepts, null_studies, run_study
from emodissect.studies.baselines import Alternative, Alternatives, Baseline, climb


def grid_of(cfg: DictConfig, group: str) -> list[Any]:
    """One object of a group for each combination of its lists, e.g. `selection.tau=[0,0.5]` or `edit.factor=[1.5,2]`.

    A list, in the group or at the top level (`tau=[0,0.5]`), is an axis of the grid, unless its argument accepts a list
    (`selection.concepts=[Tears,Frown]`; a list of lists is an axis then).
    """
    written = OmegaConf.to_container(cfg[group], resolve=False)
    axes: dict[str, tuple[list[tuple[str, ...]], list[Any]]] = {}  # a list that two fields refer to is one axis
    for path, values in _lists(resolved(cfg[group])):
        source = str(_at(written, path))
        axes.setdefault(source if source.startswith("${") else ".".join(path), ([], values))[0].append(path)
    made: dict[str, Any] = {}
    for combination in itertools.product(*(values for _, values in axes.values())):
        plain = resolved(cfg[group])
        for (paths, _), value in zip(axes.values(), combination, strict=True):
            for path in paths:
                _at(plain, path[:-1])[path[-1]] = value
        described = json.dumps(plain, sort_keys=True)
        if described not in made:
            made[described] = instantiate(plain)
    return list(made.values())


def baselines_of(cfg: DictConfig) -> list[Baseline]:
    """The entries of the group `baseline` that `study.baselines` names; null takes all.

    Raises:
        UserError: an unknown name.
    """
    known = resolved(cfg.baseline) if cfg.get("baseline") else {}
    wanted = list(known) if cfg.study.baselines is None else [str(name) for name in cfg.study.baselines]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"study.baselines has the unknown entry '{unknown[0]}'. {nearest(unknown[0], known)}")
    return [instantiate(known[name]) for name in wanted]


def _lists(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The paths of all lists that are axes, with their values."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _lists(value, (*path, name))
        elif isinstance(value, list) and (
            any(isinstance(item, list) for item in value) or not _takes_lists(node, name)
        ):
            if not value:
                raise UserError(f"{'.'.join((*path, name))}=[] is an empty grid: give at least one value.")
            yield (*path, name), value


def _takes_lists(node: Mapping[str, Any], name: str) -> bool:
    """Whether an argument of an object's class or function is annotated as a sequence."""
    try:
        parameters = inspect.signature(get_object(str(node.get("_target_"))), eval_str=True).parameters
        annotation = parameters[name].annotation
    except Exception:  # a user's annotations may raise anything; instantiating the class reports wrong arguments
        return False
    kinds = (
        get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else [annotation]
    )
    origins = [get_origin(kind) or kind for kind in kinds]
    return any(isinstance(o, type) and issubclass(o, Sequence) and not issubclass(o, str) for o in origins)


def _at(node: Any, path: Sequence[str]) -> Any:
    for name in path:
        node = node[name]
    return node


def check_editable(run: Session, plan: Plan, rules: Sequence[Any]) -> None:
    """Try the rules on the layers of an untrained network. Raises UserError for a layer that cannot be edited so."""
    if run.cfg.layer.get("keep"):
        return  # the layer is not known yet
    classifier = untrained(run)
    network = classifier.network
    with torch.inference_mode():
        example = classifier.inputs(plan.probe.images[:2])
    for layer in resolve_layers(network, plan.layer_words):
        neurons = Target(network, layer).neurons
        for rule in (rule for rule in rules if not needs_images(rule)):
            operation = rule(torch.ones(neurons, dtype=torch.bool), torch.linspace(0, 1, neurons))
            Edit(layer, operation).changes(network, example.clone())


@dataclass(frozen=True)
class Asked:
    """The inputs of an edit run, and its computations; each result is cached."""

    run: Session
    found: Dissected
    trained: Trained
    layers: Sequence[str]
    selections: Sequence[Any]
    rules: Sequence[Any]
    splits: Mapping[str, ImageSet]

    @property
    def inference(self) -> Inference:
        """The classifier on the trainer's device."""
        return Inference.of(self.trained.classifier.to(self.run.device))

    def study(self) -> EditStudy:
        """Evaluate the grid, choose an edit and evaluate it on test."""
        settings = self.run.cfg.study
        baselines, train = baselines_of(self.run.cfg), self.run.data.fitted()
        key = self._key("metric", "groups", "select_on_test", "alpha", "controls")
        key["study"] |= {name: settings[name] for name in ("refit_head", "recalibrate", "effects")}
        scores = self._scores() if settings.effects else None
        key["concept_scores"] = None if scores is None else fingerprint([scores.values, scores.names])
        key |= {"baselines": [fingerprint(baselines), source_hash(learn_scale)] if baselines else []}
        key["images"]["train"] = train.fingerprint() if baselines or settings.recalibrate else None
        self.run.inputs["study"] = key
        recall = partial(self._alternative, key["images"])
        alternatives = Alternatives(baselines, train, settings.refit_head, settings.recalibrate, recall)

        def write(folder: Path) -> None:
            run_study(
                *(self.inference, self.layers, self.found.dissection.neurons, self.selections, self.rules),
                *(self.splits["selection_split"], self.splits["test_split"]),
                metric=settings.metric,
                select_on_test=settings.select_on_test,
                alpha=settings.alpha,
                controls=settings.controls,
                seed=self.run.cfg.seed,
                progress=True,
                groups=settings.groups,
                alternatives=alternatives,
                effects=settings.effects,
                concept_scores=scores,
                run_on_test=self.run_on_test,
            ).save(folder)

        return self.run.made("studies", key, write, EditStudy.load)

    def _alternative(
        self,
        images: Mapping[str, Any],
        layer: str,
        baseline: Baseline | None,
        fitted_on: str,
        make: Callable[[], Alternative],
    ) -> Alternative:
        """A cheap alternative, from the cache if another edit of the layer was compared with it."""
        key = {
            "classifier": self.trained.identity,
            "layer": layer,
            "baseline": None if baseline is None else fingerprint(baseline),
            "fitted_on": [fitted_on, images],
            "seed": self.run.cfg.seed,
            "made_by": [source_hash(code) for code in (climb, learn_scale, EditedLogits)],
        }
        return self.run.made("alternatives", key, lambda folder: make().save(folder), Alternative.load)

    def _scores(self) -> ConceptScores | None:
        """Concept scores of the images that the edit is chosen on; None if any of them is a probe image."""
        images, plan = self.splits["selection_split"], Plan(self.run)
        if torch.isin(images.ids, plan.probe.ids).any():
            return None
        return plan.scorer.score(images, plan.concepts, self.run.data.splits.class_names, self.run.cache)

    def run_on_test(self, edit: Edit) -> tuple[Predictions, Predictions]:
        """Predictions of the unedited and the edited network in the only pass over the test images."""
        callback, images = EvaluateEdit(edit, root="network"), self.splits["test_split"]
        classifier = self.trained.classifier
        # one process, in the study's precision: other ranks of a distributed run have ended by now
        trainer = self.run.evaluating_trainer(
            [callback], logger=False, strategy="auto", devices=1, num_nodes=1, precision="32-true"
        )
        trainer.test(classifier, image_loader(images, self.run.cfg.probe.batch_size), verbose=False)
        classifier.to(self.run.device)
        assert callback.before is not None
        assert callback.after is not None
        return callback.before, callback.after

    def null_studies(self) -> pd.DataFrame:
        """Repetitions of the study with uninformative labels: how often do they claim a gain?"""
        settings = self.run.cfg.study

        def write(folder: Path) -> None:
            null_studies(
                *(self.inference, self.layers, self.found.dissection.neurons, self.selections, self.rules),
                *(self.splits["selection_split"], self.splits["test_split"]),
                studies=settings.null_studies,
                controls=settings.controls,
                metric=settings.metric,
                alpha=settings.alpha,
                seed=self.run.cfg.seed,
                groups=settings.groups,
                progress=True,
            ).to_csv(folder / "null_studies.csv", index=False)

        key = self._key("metric", "groups", "alpha", "controls", "null_studies")
        return self.run.made("null-studies", key, write, _read_null_studies)

    def ablations(self) -> dict[str, ConceptAblation]:
        """Layer -> drop in each class's recall when the neurons of one concept are silenced."""
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

            found[layer] = self.run.made("ablations", key, write, ConceptAblation.load)
        return found

    def _key(self, *of_study: str) -> dict[str, Any]:
        """Everything that a result depends on."""
        return {
            "labels": self.found.key,
            "layers": list(self.layers),
            "selections": fingerprint(self.selections),
            "rules": fingerprint(self.rules),
            "images": {name: images.fingerprint() for name, images in self.splits.items()},
            "study": {name: self.run.cfg.study[name] for name in of_study},
            "annotations": {name: images.annotations_fingerprint() for name, images in self.splits.items()},
            "seed": self.run.cfg.seed,
            "studied_by": [source_hash(study) for study in (run_study, null_studies, ablate_concepts, EditedLogits)],
        }


def _read_null_studies(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "null_studies.csv")
    table["claims_gain"] = table["claims_gain"].astype(bool)
    return table

"""The classifier of a run: loaded from a checkpoint or the cache, or trained."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import get_object, instantiate
from lightning import seed_everything
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from emodissect.app.manifest import versions, write_json
from emodissect.app.session import Session, resolved
from emodissect.app.stages.network_checks import check_answers, report_class_order, some_images
from emodissect.core.atomic_files import atomic_write
from emodissect.core.cache import file_hash
from emodissect.core.distributed import first_rank
from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import architecture_hash, content_key, fingerprint, source_hash, weights_hash
from emodissect.core.statistics import wilson
from emodissect.data.datamodule import PairsDataModule
from emodissect.data.ferplus import soft_labels
from emodissect.lightning.callbacks import LogAccuracy
from emodissect.lightning.epoch_history import EpochHistory
from emodissect.lightning.resuming import KeepEarlierBest, require_own_paths
from emodissect.lightning.sinks import Artifact
from emodissect.lightning.tracking import log_artifact, log_history, log_metrics
from emodissect.models.checkpoints import read_checkpoint
from emodissect.models.classifier import Classifier
from emodissect.models.file_arguments import filled_from_file
from emodissect.models.weights import checkpoint_arguments, load_weights, read_state_dict
from emodissect.models.zoo import require_network_maker

log = logging.getLogger(__name__)

NOT_THE_NETWORKS = ("preprocess", "class_order", "output")
"""Keys of the model group that are not arguments of the network."""

WHERE_THE_DATA_LIES = ("cache_dir", "path", "data_dir", "ferplus", "num_workers", "audit", "in_memory_gib")
"""Keys of the data group that only affect how images are loaded; the images' content is hashed separately."""

WITH_CODE = ("model", "module", "augment", "optimizer", "scheduler", "trainer", "callbacks", "data")
"""Groups whose objects affect the result of a training."""

CHECKPOINT = "classifier.ckpt"
HISTORY = "history.csv"
"""The metrics of a training by epoch, in the folder of its checkpoint."""


@dataclass(frozen=True)
class Trained:
    """A classifier and where its weights came from.

    Attributes:
        classifier: with its weights, on the CPU.
        checkpoint: the file; None for a network used as constructed.
        weights: SHA-256 of the network's state.
        metrics: of the training; empty for a given checkpoint.
    """

    classifier: Classifier
    checkpoint: Path | None
    weights: str
    metrics: Mapping[str, float]

    @property
    def kept(self) -> list[Artifact]:
        """The checkpoint as a W&B artifact; empty without a checkpoint."""
        return [classifier_artifact(self.checkpoint, self.weights)] if self.checkpoint else []

    @property
    def history(self) -> pd.DataFrame | None:
        """The metrics by epoch, if the checkpoint comes from a training by this project."""
        path = self.checkpoint.parent / HISTORY if self.checkpoint else None
        return pd.read_csv(path) if path and path.exists() else None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that its outputs depend on, for the cache keys of results computed with it."""
        return {
            "weights": self.weights,
            "architecture": architecture_hash(self.classifier.network),
            "run_by": source_hash(type(self.classifier)),
            "model": dict(self.classifier.hparams["model"]),
            "class_names": list(self.classifier.class_names) if self.classifier.knows_classes else None,
        }


def evaluate(run: Session, classifier: Classifier) -> dict[str, float]:
    """Metrics ``test/*`` on the test split, with a Wilson interval of the accuracy."""
    # not logged by the trainer: each metric would be a curve of one point
    results = run.evaluating_trainer(logger=False).test(classifier, datamodule=run.data, verbose=False)
    figures = {name: float(value) for name, value in results[0].items()}
    images = len(classifier.results["test"].ids)  # fewer than the split with trainer.limit_test_batches
    low, high = wilson(round(figures["test/acc"] * images), images)
    return {**figures, "test/acc_low": float(low), "test/acc_high": float(high)}


def trained_classifier(run: Session, fit: bool = True, needs_classes: bool = True) -> Trained:
    """The classifier described by the config.

    Weights come from ``ckpt_path`` if given (and are trained further with ``fit``), else from the cache if the same
    training was done before, else from a new training. An interrupted training resumes at its last epoch; the config's
    ``resume`` resumes the one in ``ckpt_path``, with its optimizer, schedule and epoch. With the config's
    ``fit=false`` and no checkpoint the network is used as constructed: with published weights, or random ones.

    Args:
        fit: whether to train the weights of ``ckpt_path`` further.
        needs_classes: whether the network must output logits of the data's classes.
    """
    cfg = run.cfg
    given = Path(cfg.ckpt_path).expanduser() if cfg.ckpt_path else None
    if given is not None and not (fit and cfg.task_name == "train"):
        classifier = untrained(run, needs_classes)
        load_weights(classifier.network, given, cfg.ckpt_part)
        report_class_order(classifier, run)
        run.inputs["checkpoint"] = {"path": str(given), "sha256": file_hash(given)}
        return _finished(run, classifier, given, {})
    if given is None and not cfg.get("fit", True):
        seed_everything(cfg.seed, workers=True, verbose=False)
        return _finished(run, untrained(run, needs_classes), None, {})
    key = training_key(run, given)
    run.inputs["training"] = key
    cached = bool(run.cfg.reuse) and run.cache.holds("training", key)
    folder, metrics = run.made("training", key, lambda out: _fit(run, given, key, out), _training, jointly=True)
    classifier = _build(run, folder / CHECKPOINT)
    load_weights(classifier.network, folder / CHECKPOINT)
    trained = _finished(run, classifier, folder / CHECKPOINT, metrics)
    curves = trained.history
    if cached and curves is not None:
        log_history(run.loggers, curves)
    log_metrics(run.loggers, {f"best/{name}": value for name, value in metrics.items()})
    for artifact in trained.kept:
        log_artifact(run.loggers, artifact)
    return trained


def _training(folder: Path) -> tuple[Path, dict[str, float]]:
    """The folder of a finished training, and the metrics of its best epoch. Raises if the files are not valid."""
    read_state_dict(folder / CHECKPOINT)
    metrics = torch.load(folder / "metrics.pt", weights_only=True)
    return folder, {str(name): float(value) for name, value in metrics.items() if name.startswith("val/")}


def _finished(run: Session, classifier: Classifier, checkpoint: Path | None, metrics: Mapping[str, float]) -> Trained:
    check_answers(classifier.eval(), run)
    trained = Trained(classifier.eval(), checkpoint, weights_hash(classifier.network), metrics)
    run.inputs["weights"] = trained.weights
    run.inputs["data_config"] = resolved(run.cfg.data)
    run.inputs["data"] = {name: getattr(run.data.splits, name).fingerprint() for name in ("train", "val", "test")}
    return trained


def training_key(run: Session, given: Path | None) -> dict[str, Any]:
    """Everything that a training's result depends on."""
    cfg = run.cfg
    groups = resolved(cfg)
    return {
        "model": groups["model"],
        "architecture": architecture_hash(untrained(run).network),
        "trained_by": source_hash(Classifier),
        "sources": sources(*(groups.get(group) for group in WITH_CODE)),
        "module": groups["module"],
        "training": groups.get("training"),
        "soft_labels": run.data.fitted().annotations_fingerprint() if cfg.soft_labels else None,
        "augment": groups.get("augment"),
        "optimizer": groups.get("optimizer"),
        "scheduler": groups.get("scheduler"),
        "trainer": _without(groups["trainer"], ("default_root_dir", "log_every_n_steps", "dirpath")),
        "callbacks": _without(groups.get("callbacks") or {}, ("dirpath", "cache_dir", "progress")),
        "data": _without(groups["data"], WHERE_THE_DATA_LIES),
        "images": [run.data.fitted().fingerprint(), run.data.splits.val.fingerprint()],
        "from": [file_hash(given), cfg.ckpt_part] if given else None,
        "resume": bool(cfg.get("resume")),
        "seed": cfg.seed,
        "versions": {name: versions()[name] for name in ("torch", "lightning", "emodissect")},
    }


def sources(*nodes: Any) -> dict[str, str]:
    """``_target_`` -> hash of its source, for all targets in parts of a config, so that code changes the key."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, Mapping):
            found |= sources(*node.values())
            if "_target_" in node:
                found[str(node["_target_"])] = source_hash(_constructor(node))
        elif isinstance(node, list):
            found |= sources(*node)
    return found


def _soft_labels(run: Session) -> tuple[Tensor, Tensor]:
    """Ids and class distributions of the training images."""
    images = run.data.fitted()
    return images.ids, soft_labels(images, run.data.splits.class_names)


def _without(node: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        key: _without(value, names) if isinstance(value, Mapping) else value
        for key, value in node.items()
        if key not in names
    }


def untrained(run: Session, needs_classes: bool = True) -> Classifier:
    """The classifier described by the config, without a checkpoint's weights, after a dry run on two images.

    Args:
        needs_classes: whether the network must output logits of the data's classes. If not required, and it does not
            or was never trained (the config's ``fit=false`` without a checkpoint), ``knows_classes`` is False.

    Raises:
        UserError: no file at ``ckpt_path``, a network that does not accept the images, or outputs of the wrong shape.
    """
    given = Path(run.cfg.ckpt_path).expanduser() if run.cfg.ckpt_path else None
    if given is not None and not given.exists():
        raise UserError(f"ckpt_path={given} does not exist. Give a checkpoint file, or null to train one.")
    classifier = _build(run, given).eval()
    mismatch = classifier.check_output(classifier.dry_run(some_images(run, 2)))
    is_trained = given is not None or run.cfg.get("fit", True)
    if mismatch and (needs_classes or (given is None and is_trained)):
        raise UserError(mismatch)
    classifier.knows_classes = is_trained and not mismatch
    return classifier


def _build(run: Session, checkpoint: Path | None = None) -> Classifier:
    """The classifier described by the config; null arguments are read from the checkpoint."""
    cfg = run.cfg
    model = resolved(cfg.model)
    require_network_maker(_constructor(resolved(cfg.module)), f"module._target_={cfg.module.get('_target_')}")
    module = instantiate(cfg.module)
    if isinstance(module, LightningModule):  # it is the network and defines its own training
        model = {"_target_": cfg.module._target_, **{name: model.get(name) for name in NOT_THE_NETWORKS}}
        network, module = module, partial(Classifier, channels_last=False)
    else:
        if checkpoint is not None:
            model = _completed(model, checkpoint)
        require_network_maker(_constructor(model), f"model._target_={model.get('_target_')}")
        network = instantiate({k: v for k, v in model.items() if k not in NOT_THE_NETWORKS})
    classifier = module(
        network,
        instantiate(model["preprocess"]),
        run.data.splits.class_names,
        augment=instantiate(cfg.augment) if cfg.get("augment") else None,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler) if cfg.get("scheduler") else None,
        class_order=model.get("class_order"),
        model_config=model,
        output=model.get("output"),
    )
    classifier.prepare(some_images(run, 2))
    return classifier


def _completed(model: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The model group with null arguments filled from the checkpoint: its hyperparameters, else its tensor shapes.

    Hyperparameters in a file are untrusted: ``filled_from_file`` accepts numbers only.
    """
    constructor = _constructor(model)
    stored = checkpoint_arguments(checkpoint).get("model")
    if isinstance(stored, Mapping) and stored.get("_target_") == model.get("_target_"):
        return filled_from_file(model, stored, constructor, checkpoint)
    arguments_of = getattr(constructor, "arguments_of", None)
    shapes = arguments_of(read_state_dict(checkpoint)) if arguments_of else {}
    return filled_from_file(model, shapes, constructor, checkpoint)


def _constructor(node: Mapping[str, Any]) -> Callable[..., Any]:
    try:
        return get_object(str(node.get("_target_")))
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"_target_={node.get('_target_')} cannot be found: {error}") from error


def _callbacks(run: Session) -> list[Callback]:
    return [instantiate(entry) for entry in (run.cfg.get("callbacks") or {}).values()]


def _fit(run: Session, given: Path | None, key: Mapping[str, Any], folder: Path) -> None:
    """Train, and write the best checkpoint and its metrics to ``folder``."""
    # seeded again, so that the weights do not depend on random numbers that the verb drew before
    seed_everything(run.cfg.seed, workers=True, verbose=False)
    classifier = _build(run, given)
    if given is not None:
        load_weights(classifier.network, given, run.cfg.ckpt_part)
    if run.cfg.task_name != "train":
        log.info(
            "ckpt_path is null: %s is trained first, for %s epochs on %s images, and cached. "
            "Use ckpt_path=<file> for your own weights, or dissect.py fit=false for the network as constructed.",
            *(type(classifier.network).__name__, run.cfg.trainer.max_epochs, f"{len(run.data.splits.train):,}"),
        )
    check_answers(classifier, run)
    own = classifier.network if isinstance(classifier.network, LightningModule) else None
    if own is not None and run.cfg.soft_labels:
        raise UserError("soft_labels=true needs module=classifier: your own LightningModule gets class indices.")
    if run.cfg.soft_labels:
        classifier.set_soft_labels(*_soft_labels(run))
    curves = EpochHistory()
    callbacks = [*_callbacks(run), curves]
    data: LightningDataModule = run.data
    if own is None:
        check_monitors(callbacks, classifier)
    else:
        data = PairsDataModule(run.data, classifier.preprocess, classifier.augment)
        callbacks.append(LogAccuracy())
    resumed = str(given) if given is not None and run.cfg.get("resume") else None
    if resumed:
        callbacks.append(KeepEarlierBest(Path(resumed)))
    trainer = run.trainer(callbacks, logger=[*run.loggers, curves.logger])
    resume = _Resume(run, key)
    if resumed:
        require_resumable(Path(resumed), trainer.max_epochs)
    trainer.fit(own or classifier, datamodule=data, ckpt_path=resume.point_to(callbacks) or resumed, weights_only=True)
    best = next((c.best_model_path for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor), "")
    if "val" in run.data.fitted_splits:
        log.warning(
            "data.fit_on=%s: the validation images are trained on, so val/* is uninformative about new faces, and the "
            "weights of the last epoch are kept instead of the best by validation.",
            run.data.fit_on,
        )
        best = ""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if best:
        load_weights(classifier.network, Path(best))
        # not logged: a new trainer counts from epoch 0, so its metrics would be logged for the first epoch
        checked = run.evaluating_trainer(logger=False).validate(classifier, datamodule=run.data, verbose=False)
        metrics |= {name: float(value) for name, value in checked[0].items()}
    trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True) if not best else _copy(best, folder / CHECKPOINT)
    if first_rank():
        curves.frame().to_csv(folder / HISTORY, index=False)
        torch.save(metrics, folder / "metrics.pt")
        write_json(folder / "key.json", fingerprint(key))
    resume.done()


def check_monitors(callbacks: Sequence[Callback], classifier: Classifier) -> None:
    """Raise UserError for a monitored metric that will never be logged, before the first epoch.

    Not checked if there are user-defined callbacks: they may log anything.
    """
    if any(type(callback).__module__.split(".")[0] not in ("lightning", "emodissect") for callback in callbacks):
        return
    logged = (*classifier.logged, "train/lr")
    followers = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in callbacks]
    for follower, monitor in (*followers, ("The schedule", classifier.monitor)):
        if monitor is not None and monitor not in logged:
            raise UserError(f"{follower} has monitor={monitor}, which is never logged. {nearest(monitor, logged)}")


def require_resumable(path: Path, max_epochs: int | None) -> None:
    """Raise UserError for a file from which training to ``max_epochs`` cannot resume."""
    held = read_checkpoint(path)
    needed = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops")
    if missing := [name for name in needed if not isinstance(held, Mapping) or name not in held]:
        raise UserError(
            f"resume=true needs a Lightning checkpoint of a training, and {path} lacks {', '.join(missing)}. "
            "resume=false starts a new training from its weights."
        )
    require_own_paths(held, path)
    try:
        done = int(held["epoch"]) + 1
        by_epoch = max(int(held["global_step"]) // done, 1)
        ends = [int(s["T_max"]) for s in held["lr_schedulers"] if "T_max" in s]
        ends += [int(s["total_steps"]) // by_epoch for s in held["lr_schedulers"] if "total_steps" in s]
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"resume=true: the training state in {path} is damaged ({type(error).__name__}: {error}). "
            "resume=false starts a new training from its weights."
        ) from error
    if max_epochs is not None and 0 <= max_epochs <= done:
        raise UserError(
            f"{path} has already been trained for {done} epochs, and trainer.max_epochs={max_epochs}: "
            f"give a larger one."
        )
    if ends and (max_epochs is None or max_epochs == -1 or max_epochs > min(ends)):
        raise UserError(
            f"The schedule in {path} is for {min(ends)} epochs, and trainer.max_epochs={max_epochs}. Resume to that "
            "number of epochs, or use resume=false for a new training from its weights."
        )


def classifier_artifact(checkpoint: Path, weights: str) -> Artifact:
    """A classifier as a W&B artifact."""
    return Artifact("classifier", "checkpoint", [checkpoint], {"weights": weights})


def _copy(source: str, target: Path) -> None:
    if first_rank():
        shutil.copyfile(source, target)


class _Resume:
    """A pointer from a training's key to the last checkpoint of its unfinished run."""

    def __init__(self, run: Session, key: Mapping[str, Any]) -> None:
        self.run = run
        self.pointer = run.cache.root / "training" / f"{content_key(key)}.resume"

    def point_to(self, callbacks: list[Callback]) -> str | None:
        """Point to this run's last checkpoint; returns that of an interrupted earlier run, if there is one."""
        found = self._last_state() if self.run.cfg.reuse else None
        keepers = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
        if found:  # continue in the interrupted run's folder, which has the best checkpoint so far
            for keeper in keepers:
                keeper.dirpath = str(Path(found).parent)
        kept = [c for c in keepers if c.monitor is None and c.dirpath]
        if kept and first_rank():
            self.pointer.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.pointer) as unfinished:
                unfinished.write_text(str(Path(str(kept[0].dirpath)) / f"{kept[0].filename}.ckpt"), encoding="utf-8")
        return found

    def _last_state(self) -> str | None:
        """The last checkpoint of an interrupted training; None if there is none, or it is unusable."""
        try:
            last = Path(self.pointer.read_text(encoding="utf-8").strip())
            held = read_checkpoint(last)
            require_own_paths(held, last)
            epoch = int(held["epoch"])
        except FileNotFoundError:
            return None
        except (UserError, OSError, ValueError, LookupError, TypeError) as error:
            log.warning("The last checkpoint of the interrupted training is unusable (%s): starting over.", error)
            return None
        log.warning("Resuming the training that was interrupted after epoch %d (%s).", epoch, last)
        return str(last)

    def done(self) -> None:
        """Delete the pointer."""
        if first_rank():
            self.pointer.unlink(missing_ok=True)

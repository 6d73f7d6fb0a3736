"""train.py: train a classifier, test its best checkpoint once, write and log the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from emodissect.app.session import Session, session
from emodissect.app.stages.classifier import Trained, evaluate, trained_classifier
from emodissect.app.stages.pages import confusion_file, train_page, write_page
from emodissect.app.stages.saliency_maps import chosen_ids
from emodissect.core.distributed import first_rank
from emodissect.core.errors import UserError
from emodissect.core.number_format import percent
from emodissect.core.statistics import wilson
from emodissect.lightning.tracking import log_images, log_metrics
from emodissect.report.terminal import figures_table


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, keep the best checkpoint by validation accuracy, and test it once.

    With ``task`` set, that function is run instead; with ``fit=false`` ``ckpt_path`` is only evaluated.
    """
    if cfg.get("task"):
        return instantiate(cfg.task, cfg, _recursive_=False) or {}
    if not cfg.fit and cfg.ckpt_path is None:
        raise UserError("fit=false evaluates a checkpoint, and ckpt_path is null. Give ckpt_path=<file>.")
    if cfg.resume and cfg.ckpt_path is None:
        raise UserError(
            "resume=true resumes the training in ckpt_path, and ckpt_path is null. Give "
            "ckpt_path=<run folder>/checkpoints/last.ckpt. (An interrupted training resumes automatically when the "
            "same command is given again.)"
        )
    with session(cfg) as run:
        if cfg.test:
            chosen_ids(run.data.splits.test, cfg.saliency)  # reported before the training
        trained = trained_classifier(run, fit=cfg.fit)
        figures: dict[str, Any] = dict(trained.metrics)
        if cfg.test:
            figures |= evaluate(run, trained.classifier)
        shown = {**_last_epoch(trained), **_readable(figures, run)}
        run.console.print(figures_table(shown, f"{type(trained.classifier.network).__name__}"))
        write_page(run, train_page(run, trained, figures))
        if trained.checkpoint:
            run.add_output("checkpoint", trained.checkpoint)
        run.summary(figures)
        log_metrics(run.loggers, {name: value for name, value in figures.items() if name.startswith("test/")})
        if cfg.test and first_rank():
            log_images(
                run.loggers, {f"test/{name}": path for name, path in confusion_file(run, trained.classifier).items()}
            )
        return {**figures, "objective": figures.get("val/acc")}


def _readable(figures: Mapping[str, float], run: Session) -> dict[str, Any]:
    """Metrics for the terminal; validation accuracy has no interval if only some batches were validated."""
    shown: dict[str, Any] = {}
    few = any(run.cfg.trainer.get(name) for name in ("limit_val_batches", "overfit_batches", "fast_dev_run"))
    for split in ("val", "test"):
        if f"{split}/acc" in figures:
            low, high = figures.get(f"{split}/acc_low"), figures.get(f"{split}/acc_high")
            if split == "val" and not few:
                images = len(run.data.splits.val)
                low, high = (float(bound) for bound in wilson(round(figures["val/acc"] * images), images))
            interval = "" if low is None else f" (95 % {percent(low, 2)} to {percent(high, 2)})"
            shown[f"{split} accuracy"] = f"{percent(figures[f'{split}/acc'], 2)}{interval}"
            for name, key in (("top-2 accuracy", "acc_top2"), ("macro F1", "f1"), ("ECE", "ece")):
                if f"{split}/{key}" in figures:
                    shown[f"{split} {name}"] = percent(figures[f"{split}/{key}"], 2)
            if f"{split}/nll" in figures:
                shown[f"{split} NLL"] = figures[f"{split}/nll"]
    return shown


def _last_epoch(trained: Trained) -> dict[str, Any]:
    curves = trained.history
    if curves is None or "train/acc" not in curves or curves["train/acc"].isna().all():
        return {}
    return {"training accuracy, last epoch": percent(curves["train/acc"].dropna().iloc[-1], 2)}

"""Composes a command's config as Hydra would, without a command line."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from emodissect.app.arguments import prepared

CONF = Path(__file__).parents[1] / "conf"
VERBS = ("train", "dissect", "edit")

SMALL = (
    "data.train=400",
    "data.val=150",
    "data.test=150",
    "model.width=0.05",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "probe.null_draws=100",
    "study.controls=20",
    "logger=csv",
    "print_config=false",
    "saliency.samples=0",
)
"""Overrides that make a whole job take seconds."""


def small_checkpoint(cache: Path) -> Path:
    """The checkpoint of the network in :data:`SMALL`, trained on drawn faces; the cache may hold other trainings."""
    for path in sorted((cache / "training").glob("*/classifier.ckpt")):
        model = torch.load(path, weights_only=True)["hyper_parameters"]["model"]
        if (model["_target_"], model.get("width")) == ("emodissect.models.vgg.VGG", 0.05):
            return path
    raise FileNotFoundError(f"no training of the small network in {cache}")


def composed(verb: str, *overrides: str, run_dir: Path) -> DictConfig:
    """The config of ``python <verb>.py <overrides>`` for a run in ``run_dir``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(verb, prepared(overrides, CONF), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.paths.run_dir = str(run_dir)
        del cfg["hydra"]
    return cfg

"""The application in a notebook or a script: compose a config as the command line would, and run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, open_dict

from emodissect.app.arguments import prepared
from emodissect.app.cli import VERBS, composing_mistake, register_resolvers, user_error_message
from emodissect.app.user_paths import settle_paths
from emodissect.core.errors import UserError, nearest
from emodissect.core.places import config_groups


def compose(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of ``python <verb>.py <overrides>``, to inspect, change and pass to :func:`run`.

    Args:
        verb: train, dissect or edit.
        overrides: as on the command line. Sweeps (``-m``) work on the command line only.

    Returns:
        the config; ``cfg.paths.run_dir`` is the folder that results will be written to.

    Raises:
        UserError: an unknown verb, a misspelt key or choice.

    >>> compose("edit", ["layer=lin1", "tau=0.5"]).layer.names
    'lin1'
    """
    if verb not in VERBS:
        raise UserError(f"Unknown verb '{verb}'. {nearest(verb, VERBS)}")
    register_resolvers()
    conf = config_groups()
    words = prepared(overrides, conf)
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            cfg = hydra_compose(verb, words, return_hydra_config=True)
    except Exception as error:
        raise UserError(composing_mistake(error, conf, verb, words)) from error
    known = HydraConfig.instance()
    outer = known.cfg
    known.set_config(cfg)  # only while the next line resolves ${hydra:...}
    try:
        folder = cfg.hydra.run.dir
    finally:
        known.cfg = outer
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.paths.run_dir = folder
    return cfg


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run a composed config; files go to ``cfg.paths.run_dir``, as from the command line.

    Returns:
        the metrics of summary.json, and ``objective``: the value that a sweep would optimise.

    Raises:
        UserError: a mistake in the config, with the message that the command line would print.
    """
    settle_paths(cfg)
    try:
        return get_object(VERBS[cfg.task_name])(cfg)
    except UserError:
        raise
    except Exception as error:
        if (message := user_error_message(error)) is None:
            raise
        raise UserError(message) from error

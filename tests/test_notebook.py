"""A config composed and run without a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from composing import SMALL, VERBS
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from emodissect.app.notebook import compose, run
from emodissect.core.errors import UserError


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_config_is_the_command_lines(verb: str, tmp_path: Path) -> None:
    known = HydraConfig.instance().cfg
    cfg = compose(verb, ["layer=conv4*", "logger=null", f"paths.log_dir={tmp_path}"])
    assert HydraConfig.instance().cfg is known
    assert "hydra" not in cfg
    assert cfg.layer.names == "conv4*"
    assert Path(cfg.paths.run_dir).parent == tmp_path / verb / "runs"
    OmegaConf.to_container(cfg, resolve=True)


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown verb 'edits'\. Did you mean 'edit'"):
        compose("edits")
    with pytest.raises(UserError, match=r"no key 'tua'\. Did you mean 'tau'"):
        compose("edit", ["tua=1"])
    with pytest.raises(UserError, match="was renamed: use label_quality"):
        compose("dissect", ["evaluate=true"])
    cfg = compose("train", [*SMALL, "trainer.precision=33", f"paths.log_dir={tmp_path}", f"paths.cache_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"trainer = .*Trainer cannot be instantiated as configured: Precision 33"):
        run(cfg)


def test_a_config_is_changed_and_run(tmp_path: Path) -> None:
    cfg = compose("train", [*SMALL, f"paths.log_dir={tmp_path}", f"paths.cache_dir={tmp_path / 'cache'}"])
    cfg.optimizer.lr = 0.02
    found = run(cfg)
    summary = json.loads((Path(cfg.paths.run_dir) / "summary.json").read_text())
    assert summary["val/acc"] == found["objective"] == found["val/acc"]

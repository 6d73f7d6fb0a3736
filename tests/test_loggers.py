from __future__ import annotations

from pathlib import Path

import pytest
import wandb
from wandb_file import read_run

from emodissect.core.errors import UserError
from emodissect.lightning.sinks import sink_for
from emodissect.lightning.sinks.wandb import logged_in_to_wandb, wandb_logger, wandb_mode


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.usefixtures("logged_out")
def test_auto_is_offline_where_nobody_is_logged_in() -> None:
    assert wandb_mode("auto") == "offline"


@pytest.mark.usefixtures("logged_out")
def test_auto_is_online_with_a_key_or_a_netrc_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").unlink()
    assert not logged_in_to_wandb()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online"


@pytest.mark.usefixtures("logged_out")
def test_the_environment_decides_over_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"


@pytest.mark.usefixtures("logged_out")
def test_online_without_login_is_reported_how_to_log_in() -> None:
    with pytest.raises(UserError, match="wandb login"):
        wandb_mode("online")
    with pytest.raises(UserError, match="Did you mean 'offline'"):
        wandb_mode("offlin")


@pytest.mark.usefixtures("logged_out")
@pytest.mark.parametrize(
    ("message", "said"), [("online", "not logged in"), ("run", "not logged in"), ("onlien", "unknown")]
)
def test_the_environment_never_makes_wandb_ask_for_a_key(
    message: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", message)
    with pytest.raises(UserError, match=f"WANDB_MODE={message}.*{said}"):
        wandb_mode("auto")
    assert wandb_mode("offline") == "offline"


def test_a_server_that_cannot_be_reached_is_reported_with_a_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise wandb.errors.CommError("Run initialization has timed out")

    monkeypatch.setattr("wandb.init", refused)
    with pytest.raises(UserError, match=r"timed out.*logger\.wandb\.mode=offline"):
        wandb_logger(project="p", save_dir=str(tmp_path), mode="offline")


@pytest.mark.usefixtures("logged_out")
def test_a_disabled_run_writes_nothing(tmp_path: Path) -> None:
    logger = wandb_logger(project="p", save_dir=str(tmp_path), mode="disabled")
    logger.log_metrics({"a": 1.0})
    assert sink_for(logger).finish(failed=False) == "disabled"
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.usefixtures("logged_out")
def test_a_run_goes_on_under_its_id(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        logger = wandb_logger(project="p", save_dir=str(tmp_path / folder), mode="offline", id="abc123")
        logger.experiment.finish()
        assert read_run(tmp_path / folder).run.run_id == "abc123"


@pytest.mark.usefixtures("logged_out")
def test_an_offline_run_says_how_to_sync(tmp_path: Path) -> None:
    logger = wandb_logger(project="p", save_dir=str(tmp_path), mode="offline", tags=["a"], group="g", job_type="train")
    run = logger.experiment
    try:
        assert run.offline
        assert (run.group, run.job_type, run.tags) == ("g", "train", ("a",))
    finally:
        place = sink_for(logger).finish(failed=False)
    assert place is not None
    assert place.startswith("kept offline; upload it with: wandb sync")

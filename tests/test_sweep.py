from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from composing import CONF, composed
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from emodissect.app.sweep import SweepTable, job_folders, sweep_table, swept_words
from emodissect.app.sweep_results import resolvable, show
from emodissect.report import SweepPage


def _job(folder: Path, number: int, overrides: list[str]) -> Path:
    job = folder / str(number)
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {word}" for word in overrides))
    return job


def test_finished_failed_and_killed_jobs_are_rows(tmp_path: Path) -> None:
    done = _job(tmp_path, 0, ["layer=lin2", "tau=0.5"])
    (done / "summary.json").write_text(json.dumps({"task": "edit", "delta_val": 0.01, "layers": [{"x": 1}]}))
    failed = _job(tmp_path, 1, ["layer=lin9", "tau=-1"])
    (failed / "error.json").write_text(json.dumps({"error": "no layer lin9"}))
    _job(tmp_path, 10, ["layer=lin1"])
    table = sweep_table(tmp_path, list(job_folders(tmp_path)))
    assert list(table["job"]) == ["0", "1", "10"]
    assert list(table["layer"]) == ["lin2", "lin9", "lin1"]
    assert table["tau"].tolist()[:2] == [0.5, -1]
    assert table["delta_val"][0] == 0.01
    assert "layers" not in table
    assert table["error"].tolist()[1:] == ["no layer lin9", "no summary: killed, or still running"]


def _finished(folder: Path, number: int, overrides: list[str], **summary: object) -> Path:
    job = _job(folder, number, overrides)
    (job / "summary.json").write_text(json.dumps({"task": "edit", "layer": "lin2", **summary}))
    return job


def test_settings_are_the_overrides_in_which_jobs_differ(tmp_path: Path) -> None:
    jobs = [
        _finished(tmp_path, 0, ["data.train=100", "layer=named", "layer.names=layer4.1", "concepts=fer7", "seed=1"]),
        _finished(tmp_path, 1, ["data.train=100", "layer=named", "layer.names=layer4.0", "concepts=fer7", "seed=2"]),
    ]
    assert swept_words(jobs) == ["layer", "seed"]
    assert sweep_table(tmp_path, jobs)["concepts"].tolist() == ["fer7", "fer7"]


def test_jobs_that_an_earlier_multirun_left_in_the_folder_are_not_this_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        _finished(tmp_path, number, [f"tau={number}"], tau=number, factor=1.5, delta_val=0.5, delta=0.5)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "paths": {"root_dir": str(tmp_path)}})
    callback = SweepTable()
    callback.on_multirun_start(config)
    for number, value in enumerate((0.01, 0.02)):
        path = tmp_path / str(number) / ".hydra" / "overrides.yaml"
        path.unlink()
        _overwritten(tmp_path, number, tau=number, factor=1.5, delta_val=value, delta=-value)
    callback.on_multirun_end(config)
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert table["delta_val"].tolist() == [0.01, 0.02]
    assert "on test it gives −2.00 points" in " ".join(capsys.readouterr().out.split())


def test_the_sweeps_own_config_resolves_where_hydra_has_set_none(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("WANDB_DIR", raising=False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("edit", ["logger=many", f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
    try:
        plain = OmegaConf.to_container(resolvable(config, tmp_path), resolve=True)
    finally:
        HydraConfig.instance().cfg = before
    assert plain["logger"]["wandb"]["save_dir"] == plain["paths"]["run_dir"] == str(tmp_path)
    assert plain["callbacks"]["best"]["dirpath"] == f"{tmp_path}/checkpoints"
    assert "hydra" not in plain


def _overwritten(folder: Path, number: int, **summary: object) -> None:
    job = folder / str(number)
    (job / ".hydra" / "overrides.yaml").write_text(f"- tau={number}")
    (job / "summary.json").write_text(json.dumps({"task": "edit", "layer": "lin2", **summary}))


def test_the_table_and_heat_maps_fit_the_terminal() -> None:
    jobs = pd.DataFrame(
        [
            {"job": str(n), "layer": layer, "tau": tau, "factor": factor, "similarity": similarity, "seed": 1}
            | {"delta_val": 0.001 * n, "delta": -0.002, "p_value": 0.0123}
            for n, (layer, tau, factor, similarity) in enumerate(
                (layer, tau, factor, similarity)
                for layer in ("conv4b", "lin2")
                for similarity in ("pearson", "soft_wpmi")
                for tau in (-0.5, 0.0)
                for factor in (1.5, 2.0)
            )
        ]
    )
    page = SweepPage(jobs, swept=["layer", "similarity", "tau", "factor"])
    assert list(page.grids()) == [f"{a} · {b}" for a in ("conv4b", "lin2") for b in ("pearson", "soft_wpmi")]
    assert page.grids()["lin2 · soft_wpmi"]["delta"].tolist() == pytest.approx([0.012, 0.013, 0.014, 0.015])
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(page, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "lin2 · soft_wpmi" in text
    assert "+1.50" in text
    assert "Best by validation: lin2, soft_wpmi, τ = 0, factor 2" in " ".join(text.split())


def test_jobs_that_differ_in_their_seed_are_one_cell() -> None:
    jobs = pd.DataFrame(
        [
            {"job": f"{seed}", "layer": "lin2", "tau": tau, "factor": 1.5, "seed": seed, "delta_val": tau + seed / 100}
            | {"delta": seed / 100, "p_val": 0.5}
            for tau in (0.0, 0.5)
            for seed in (1, 2, 3)
        ]
    )
    (grid,) = SweepPage(jobs, swept=["tau", "seed"]).grids().values()
    assert grid["delta"].tolist() == pytest.approx([0.02, 0.52])
    assert grid["jobs"].tolist() == [3, 3]
    assert "p_value" not in grid
    (grid,) = SweepPage(jobs[jobs["seed"] == 1], swept=["tau"]).grids().values()
    assert grid["p_value"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("path", sorted((CONF.parent / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_line_of_a_wandb_agent_composes(path: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    values = {
        name: {"value": message["values"][0] if "values" in message else message["min"]}
        for name, message in sweep["parameters"].items()
    }
    words = create_sweep_command_args({"args": values})["args_no_hyphens"]
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    cfg = composed(Path(sweep["program"]).stem, *words, run_dir=tmp_path)
    for name, message in values.items():
        if name != "layer":  # a group
            assert OmegaConf.select(cfg, name) == message["value"], name
    assert sweep["metric"]["goal"] == "maximize"


def test_a_best_job_that_changed_nothing_and_errors_with_brackets_are_printed() -> None:
    jobs = pd.DataFrame({"job": ["0", "1", "2"], "layer": ["lin2"] * 3, "tau": [0.0, 0.5, 1.0], "factor": [1.5] * 3})
    jobs = jobs.assign(delta_val=[0.0, -0.01, None], error=[None, None, "tau=[/] is no [list]"])
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(SweepPage(jobs, swept=["tau"]), console)
    text = console.export_text()
    assert "job 2 failed: tau=[/] is no [list]" in text
    assert "−1.00" in text


def test_dissections_are_ranked_by_how_well_their_labels_fit_beside_chance() -> None:
    jobs = pd.DataFrame({"job": ["0", "1"], "similarity": ["pearson", "wpmi"], "neuron_accuracy": [0.3, 0.2]})
    jobs = jobs.assign(**{"data.train": 1500})
    page = SweepPage(jobs, "neuron_accuracy", swept=["similarity"])
    message = page.summary()
    assert ">similarity<" in page.html()
    assert "data.train" not in page.html()  # the same in every job
    assert message.startswith("2 jobs, all finished. Best by neuron accuracy: pearson (30.0 %).")
    assert message.endswith("compare it with its chance level, which differs from job to job.")


def test_a_single_cell_is_no_heat_map() -> None:
    jobs = pd.DataFrame({"job": ["0"], "layer": ["lin2"], "tau": [0.0], "factor": [1.5], "delta_val": [0.01]})
    assert SweepPage(jobs).grids() == {}

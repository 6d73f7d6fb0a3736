"""What the dashboard would send to W&B; it shows only metrics that runs log."""

from __future__ import annotations

import builtins
import json
import re
from typing import Any

import pytest

from emodissect.report import dashboard
from emodissect.report.columns import LAYERS as LAYER_COLUMNS
from emodissect.report.dashboard import LAYERS, Panel, Part, main, parts

LAYER_METRICS = [column.name for column in LAYER_COLUMNS if column.is_number]
LOGGED = {
    *("train/loss", "train/acc", "train/lr", "val/acc", "val/nll", "test/acc", "test/f1", "test/ece", "best/val/acc"),
    "test/confusion",
    *("edit/delta", "edit/p_value", "edit/p_random", "edit/p_shuffled", "edit/tau", "edit/factor", "edit/layer"),
    *("edit/val/delta", "edit/test/nll_before", "edit/test/nll_after", "edit/null_claims"),
    *("edit/grid", "edit/control_draws", "edit/controls", "edit/confusion"),
    *("sweep/jobs", "sweep/seeds", "sweep/best/delta", "sweep/failed"),
    *("dissect/neurons", "dissect/neuron_cards", "dissect/layers", "dissect/concept_shares"),
    *("dissect/layer_proportions", "dissect/layer_table"),
    *("dissect/label_quality_recovery", "dissect/label_quality_stability"),
    *(f"dissect/{layer}/{name}" for layer in LAYERS for name in (*LAYER_METRICS, "held_out_holds")),
    *(f"{verb}_{layer}" for layer in LAYERS for verb in ("edit/grid", "edit/concept_ablation", "sweep/grid")),
    *(f"dissect/{figure}_{layer}" for layer in LAYERS for figure in ("similarity", "concepts")),
}
"""What tests/test_tracking.py and tests/test_launchers.py find in the files of real runs."""


def panels() -> list[Panel]:
    return [panel for part in parts() for panel in part.panels]


def test_every_panel_shows_something_that_is_logged() -> None:
    for panel in panels():
        if panel.kind == "lines_matching":
            (pattern,) = panel.metrics
            assert {re.search(pattern, name) is not None for name in LOGGED} == {True, False}, panel
            assert all(re.search(pattern, f"dissect/{layer}/{pattern[:-1].split('/')[-1]}") for layer in LAYERS)
        else:
            assert set(panel.metrics) <= LOGGED, panel


def test_each_verb_has_its_section() -> None:
    assert [part.name.split(":")[0] for part in parts()] == [
        "Edits",
        "Sweep",
        "Dissection",
        "Validation and test",
        "Training",
    ]
    heat = next(panel for panel in parts(["layer4.1"])[0].panels if panel.kind == "images")
    assert heat.metrics == ("edit/grid_layer4.1",)
    sweep = next(panel for panel in parts(["layer4.1"])[1].panels if panel.kind == "images")
    assert sweep.metrics == ("sweep/grid_layer4.1",)


def test_without_the_library_the_user_is_reported_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError("No module named 'wandb_workspaces'")
        return really(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["--project", "p", "--dry-run"]) == 1
    assert "uv sync --extra dashboard" in capsys.readouterr().err


def test_a_dry_run_prints_the_view_that_would_be_sent(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")
    assert main(["--project", "faces", "--entity", "lab", "--dry-run", "--layers", "lin2"]) == 0
    sent = json.loads(capsys.readouterr().out)
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("lab", "faces", "project-view")
    section = sent["spec"]["section"]
    sections = section["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == [part.name for part in parts()]
    assert [len(s["panels"]) for s in sections] == [len(part.panels) for part in parts()]
    edits = sections[0]["panels"]
    assert edits[0]["viewType"] == "Bar Chart"
    assert edits[0]["config"]["metrics"] == ["edit/delta"]
    scatter = edits[4]["config"]
    assert [scatter[axis] for axis in ("xAxis", "yAxis", "zAxis")] == [
        "summary:edit/tau",
        "summary:edit/factor",
        "summary:edit/delta",
    ]
    assert "edit/grid" in json.dumps(edits[6])
    assert edits[8]["config"]["mediaKeys"] == ["edit/grid_lin2"]
    assert sections[2]["panels"][0]["config"]["metrics"] == ["dissect/lin2/proportion"]
    lines = sections[2]["panels"][4]["config"]
    assert (lines["metricRegex"], lines["useMetricRegex"]) == ("dissect/.*/accuracy$", True)
    assert sections[4]["panels"][0]["config"]["metrics"] == ["train/loss"]
    assert section["runSets"][0]["runFeed"]["columnOrder"] == list(dashboard.COLUMNS)


def test_an_unknown_kind_of_panel_is_named() -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")
    with pytest.raises(dashboard.UserError, match=r"Unknown panel kind 'lien'\. Did you mean 'line'"):
        dashboard.workspace("p", "e", sections=[Part("x", (Panel("lien", "x", ("a",)),))])

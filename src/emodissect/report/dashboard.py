"""A W&B workspace for a project: ``emodissect dashboard --project emodissect``.

Sections follow the metrics' prefixes: train, val and test, dissect, edit, sweep. Needs the extra ``dashboard``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emodissect.core.errors import UserError, missing_extra, nearest

#: Placeholder for the user's entity in a dry run.
UNKNOWN_ENTITY = "your-entity"


@dataclass(frozen=True)
class Panel:
    """One panel, independent of the W&B library.

    Attributes:
        kind: ``line``, ``lines_matching`` (a regular expression over metric names), ``bar``, ``scatter``, ``table``,
            ``images`` or ``parallel``.
        title: the displayed title.
        metrics: names of metrics, tables or images; the regular expression; the x, y and colour of a scatter plot; the
            columns of a parallel-coordinates plot.
    """

    kind: str
    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A section of the workspace."""

    name: str
    panels: tuple[Panel, ...] = field(default=())


#: Layers whose figures are shown by default.
LAYERS = ("conv4b", "lin1", "lin2")


def parts(layers: Sequence[str] = LAYERS) -> tuple[Part, ...]:
    """The sections, the most used first.

    Args:
        layers: layers whose heat maps, histograms and metrics are shown.
    """
    return (
        Part(
            "Edits: did it help?",
            (
                Panel("bar", "Change of test accuracy (fraction)", ("edit/delta",)),
                Panel("bar", "Exact McNemar p-value", ("edit/p_value",)),
                Panel("bar", "p against the same number of random neurons", ("edit/p_random",)),
                Panel("bar", "p against the same study with shuffled labels", ("edit/p_shuffled",)),
                Panel("scatter", "τ, factor and the change on test", ("edit/tau", "edit/factor", "edit/delta")),
                Panel(
                    "scatter",
                    "Change on validation and on test",
                    ("edit/val/delta", "edit/delta", "edit/p_value"),
                ),
                Panel("table", "Grid: every cell on validation", ("edit/grid",)),
                Panel("table", "Controls of the same size", ("edit/control_draws",)),
                Panel("images", "Heat maps of the grid", tuple(f"edit/grid_{layer}" for layer in layers)),
                Panel("images", "The edit among its controls", ("edit/controls",)),
                Panel("images", "Confusion before and after", ("edit/confusion",)),
                Panel("bar", "NLL on test, before and after", ("edit/test/nll_before", "edit/test/nll_after")),
                Panel(
                    "images",
                    "What silencing a concept's neurons does",
                    tuple(f"edit/concept_ablation_{layer}" for layer in layers),
                ),
                Panel("bar", "Share of studies that claim a gain when labels are uninformative", ("edit/null_claims",)),
            ),
        ),
        Part(
            "Sweep",
            (
                Panel("table", "All jobs", ("sweep/jobs",)),
                Panel("images", "Heat maps of the sweep", tuple(f"sweep/grid_{layer}" for layer in layers)),
                Panel("table", "Means over seeds", ("sweep/seeds",)),
                Panel(
                    "parallel",
                    "Layer, τ, factor → change on test",
                    ("edit/layer", "edit/tau", "edit/factor", "edit/delta"),
                ),
                Panel("bar", "Best job by validation: its change on test", ("sweep/best/delta",)),
                Panel("bar", "Failed jobs", ("sweep/failed",)),
            ),
        ),
        Part(
            "Dissection: what the neurons respond to",
            (
                Panel("bar", "Share called interpretable, by layer", _of(layers, "proportion")),
                Panel("bar", "The same among random image sets", _of(layers, "proportion_null")),
                Panel("bar", "Neurons labelled beyond chance", _of(layers, "significant")),
                Panel("bar", "Neuron accuracy, by layer", _of(layers, "accuracy")),
                Panel("lines_matching", "Neuron accuracy while training", ("dissect/.*/accuracy$",)),
                Panel("images", "Similarity against chance", tuple(f"dissect/similarity_{layer}" for layer in layers)),
                Panel("images", "Concept shares as bars", tuple(f"dissect/concepts_{layer}" for layer in layers)),
                Panel("images", "Layers side by side", ("dissect/layer_proportions", "dissect/layer_table")),
                Panel("bar", "Labels that hold on held-out images", _of(layers, "held_out_holds")),
                Panel("table", "How much of the truth each similarity finds", ("dissect/label_quality_recovery",)),
                Panel("table", "Labels that survive a change", ("dissect/label_quality_stability",)),
                Panel("table", "Neurons with their top images", ("dissect/neuron_cards",)),
                Panel("table", "All neurons", ("dissect/neurons",)),
                Panel("table", "Layer table", ("dissect/layers",)),
                Panel("table", "Concept shares", ("dissect/concept_shares",)),
            ),
        ),
        Part(
            "Validation and test",
            (
                Panel("line", "Accuracy", ("val/acc",)),
                Panel("line", "Negative log-likelihood", ("val/nll",)),
                Panel("bar", "Validation accuracy of the best checkpoint", ("best/val/acc",)),
                Panel("bar", "Test accuracy", ("test/acc",)),
                Panel("bar", "Test macro F1", ("test/f1",)),
                Panel("bar", "Test calibration error", ("test/ece",)),
                Panel("images", "Test images by true and predicted class", ("test/confusion",)),
            ),
        ),
        Part(
            "Training",
            (
                Panel("line", "Loss", ("train/loss",)),
                Panel("line", "Accuracy, training and validation", ("train/acc", "val/acc")),
                Panel("line", "Learning rate", ("train/lr",)),
            ),
        ),
    )


def _of(layers: Sequence[str], figure: str) -> tuple[str, ...]:
    return tuple(f"dissect/{layer}/{figure}" for layer in layers)


#: Columns of the run table, left to right.
COLUMNS = (
    "run:displayName",
    "run:state",
    "summary:edit/delta",
    "summary:edit/p_value",
    "summary:edit/layer",
    "summary:edit/tau",
    "summary:edit/factor",
    "summary:test/acc",
)


def workspace(project: str, entity: str, name: str = "emodissect", sections: Sequence[Part] | None = None) -> Any:
    """The workspace as an object of the library ``wandb-workspaces``, not yet saved.

    Raises:
        UserError: the library is not installed, or a panel is of an unknown kind.
    """
    workspaces, _, expression = _library()
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=part.name,
                panels=[_drawn(panel) for panel in part.panels],
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=3, rows=3),
            )
            for part in (parts() if sections is None else sections)
        ],
        settings=workspaces.WorkspaceSettings(ignore_outliers=False, max_runs=30, remove_legends_from_panels=False),
        runset_settings=workspaces.RunsetSettings(
            order=[expression.Ordering(expression.Metric("CreatedTimestamp"), ascending=False)],
            pinned_columns=list(COLUMNS),
        ),
    )


def to_send(made: Any) -> dict[str, Any]:
    """The request that saving the workspace would send: the view's names and its specification as JSON values."""
    view = made._to_model()  # the library has no public preview
    return {
        "entityName": view.entity,
        "projectName": view.project,
        "displayName": view.display_name,
        "type": "project-view",
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("emodissect dashboard", description="Builds a W&B workspace.")
    parser.add_argument("--project", required=True, help="the W&B project, as in logger.wandb.project")
    parser.add_argument("--entity", help="user or team; by default the one that is logged in")
    parser.add_argument("--name", default="emodissect", help="name of the workspace")
    parser.add_argument("--layers", default=",".join(LAYERS), help="whose heat maps and histograms are shown")
    parser.add_argument("--dry-run", action="store_true", help="print the JSON that would be sent, send nothing")
    given = parser.parse_args(arguments)
    try:
        entity = given.entity or (UNKNOWN_ENTITY if given.dry_run else _own_entity())
        layers = [layer.strip() for layer in given.layers.split(",") if layer.strip()]
        made = workspace(given.project, entity, given.name, parts(layers))
        if given.dry_run:
            print(json.dumps(to_send(made), indent=2, ensure_ascii=False))
        else:
            _save(made)
            print(made.url)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _drawn(panel: Panel) -> Any:
    """A panel as an object of the library."""
    _, reports, _ = _library()
    names = panel.metrics
    match panel.kind:
        case "line":
            return reports.LinePlot(title=panel.title, x="epoch", y=list(names))
        case "lines_matching":
            return reports.LinePlot(title=panel.title, x="Step", metric_regex=names[0])
        case "bar":
            return reports.BarPlot(title=panel.title, metrics=list(names))
        case "scatter":
            x, y, colour = (reports.SummaryMetric(name) for name in names)
            return reports.ScatterPlot(title=panel.title, x=x, y=y, z=colour)
        case "table":
            return reports.WeavePanelSummaryTable(table_name=names[0])
        case "images":
            return reports.MediaBrowser(title=panel.title, media_keys=list(names))
        case "parallel":
            columns = [reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric(name)) for name in names]
            return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)
        case _:
            known = ("line", "lines_matching", "bar", "scatter", "table", "images", "parallel")
            raise UserError(f"Unknown panel kind '{panel.kind}'. {nearest(panel.kind, known)}")


def _library() -> tuple[Any, Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr as expression
    except ImportError as error:
        raise UserError(missing_extra("The dashboard", f"wandb-workspaces ({error})", "dashboard")) from error
    return workspaces, reports, expression


def _own_entity() -> str:
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:  # the client has no common error for "not logged in" and "not reachable"
        raise UserError(f"W&B did not return a user ({error}). Run 'wandb login', or give --entity.") from error
    if not entity:
        raise UserError("No W&B user is logged in. Run 'wandb login', or give --entity; --dry-run needs neither.")
    return str(entity)


def _save(made: Any) -> None:
    try:
        made.save()
    except Exception as error:
        raise UserError(
            f"W&B rejected the workspace ({error}). Check that the project '{made.entity}/{made.project}' exists and "
            "that you are logged in. --dry-run prints what would be sent."
        ) from error

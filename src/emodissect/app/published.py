"""Comparison of a run with the published results in its experiment's config."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from emodissect.app.session import resolved
from emodissect.core.number_format import percent, plain
from emodissect.dissection.labels import Dissection
from emodissect.report import Extra
from emodissect.studies import EditStudy

SOURCE = "The published results are for the published network and CLIP ViT-B/16; this run's for its own inputs."


def published(cfg: DictConfig) -> dict[str, Any]:
    """The published results that the experiment reproduces, by name; empty if there are none."""
    return resolved(cfg.published) if cfg.get("published") else {}


def published_layers(cfg: DictConfig) -> pd.DataFrame | None:
    """The published layer table, if the experiment's config has one."""
    found = published(cfg)
    return pd.DataFrame(found["layers"]) if "layers" in found else None


def compare_training(cfg: DictConfig, metrics: Mapping[str, float]) -> list[Extra]:
    """Training metrics (``test/acc``, ...), published and of this run."""
    rows = [
        {"figure": name, "published": percent(value, 2), "this run": percent(metrics[name], 2)}
        for name, value in published(cfg).items()
        if name in metrics
    ]
    caption = "The published result is for the publication's own training and splits; this run's for its own."
    return [Extra("Compared with the published figures", caption, frame=pd.DataFrame(rows))] if rows else []


def compare_shares(cfg: DictConfig, dissection: Dissection, concepts: Collection[str]) -> list[Extra]:
    """Concept shares among correctly labelled neurons, published and of this run.

    Args:
        concepts: this run's concepts; other published concepts have no share here.
    """
    known = {name.casefold() for name in concepts}
    rows = [
        {
            "concept": row["concept"],
            "published": percent(row["share"]),
            "this run": percent(_share(dissection.shares, row["concept"]))
            if row["concept"].casefold() in known
            else "not among the concepts",
        }
        for row in published(cfg).get("shares", [])
    ]
    return [Extra("Compared with the published shares", SOURCE, frame=pd.DataFrame(rows))] if rows else []


def compare_to_published(cfg: DictConfig, study: EditStudy) -> list[Extra]:
    """Accuracy before and after the edit, and the grid cell by cell, published and of this run."""
    found = published(cfg)
    rows = [
        {
            "figure": name.replace("_", " "),
            "published": percent(found[name], 3),
            "this run": percent(getattr(study.test, name), 3),
        }
        for name in ("accuracy_before", "accuracy_after")
        if name in found
    ]
    extras = [Extra("Compared with the published figures", SOURCE, frame=pd.DataFrame(rows))] if rows else []
    if len(cells := compare_grids(found, study.grid)):
        caption = (
            "Change from the unedited network in points, cell by cell. On 7,178 images a change of 15 images is 0.21 "
            "points: differences of a few tenths between cells are noise."
        )
        extras.append(Extra("Compared with the published grid", caption, frame=cells))
    return extras


def compare_grids(found: Mapping[str, Any], grid: pd.DataFrame) -> pd.DataFrame:
    """One row per tau, one column per factor: ``published / this run``, as changes in points.

    Args:
        found: published ``accuracy_before`` and ``grid``: rows of tau and the accuracies by factor, in ascending order.
    """
    if "grid" not in found:
        return pd.DataFrame()
    factors = sorted(grid["factor"].unique())
    rows = []
    for line in found["grid"]:
        here = grid[grid["tau"] == line["tau"]].set_index("factor")["delta"]
        row = {"tau": plain(line["tau"])}
        for factor, accuracy in zip(factors, line["accuracy_after"], strict=False):
            change = 100 * (accuracy - found["accuracy_before"])
            row[f"x {plain(factor)}"] = f"{change:+.2f} / {100 * here[factor]:+.2f}" if factor in here else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def _share(shares: pd.DataFrame, concept: str) -> float:
    found = shares.loc[shares["concept"].str.casefold() == concept.casefold(), "share"]
    return float(found.iloc[0]) if len(found) else 0.0

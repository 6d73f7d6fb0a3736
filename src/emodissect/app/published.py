"""A publication's figures, which an experiment's config carries, beside this run's."""

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

SOURCE = "The published figures come from the published network and CLIP ViT-B/16; this run's from its own inputs."


def published(cfg: DictConfig) -> dict[str, Any]:
    """What the experiment repeats, by name; empty where it repeats nothing."""
    return resolved(cfg.published) if cfg.get("published") else {}


def published_layers(cfg: DictConfig) -> pd.DataFrame | None:
    """The layer table that an experiment repeats, where its config carries one."""
    found = published(cfg)
    return pd.DataFrame(found["layers"]) if "layers" in found else None


def compare_training(cfg: DictConfig, metrics: Mapping[str, float]) -> list[Extra]:
    """Figures of a training (``test/acc``, ...), published and here."""
    rows = [
        {"figure": name, "published": percent(value, 2), "this run": percent(metrics[name], 2)}
        for name, value in published(cfg).items()
        if name in metrics
    ]
    said = "The published figure is that of the publication's own training and splits; this run's is its own."
    return [Extra("Compared with the published figures", said, frame=pd.DataFrame(rows))] if rows else []


def compare_shares(cfg: DictConfig, dissection: Dissection, asked: Collection[str]) -> list[Extra]:
    """Concept shares among correctly labelled neurons, published and here.

    Args:
        asked: the words that neurons could be labelled with; another word has no share here.
    """
    known = {name.casefold() for name in asked}
    rows = [
        {
            "concept": row["concept"],
            "published": percent(row["share"]),
            "this run": percent(_share(dissection.shares, row["concept"]))
            if row["concept"].casefold() in known
            else "not among the words",
        }
        for row in published(cfg).get("shares", [])
    ]
    return [Extra("Compared with the published shares", SOURCE, frame=pd.DataFrame(rows))] if rows else []


def compare_to_published(cfg: DictConfig, study: EditStudy) -> list[Extra]:
    """Accuracy before and after, and the grid cell by cell, published and here."""
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
    """One row a tau, one column a factor: ``published / here``, as changes in points.

    Args:
        found: with ``accuracy_before`` and ``grid``: rows of tau and the accuracies of the grid's factors in order.
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

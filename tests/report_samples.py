"""Made-up results in the form that the report pages take, with round numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from emodissect.data.images import ImageSet
from emodissect.dissection.responses import Responses, by_class
from emodissect.models.predictions import Predictions
from emodissect.report import DissectionPage, EditPage
from emodissect.report.neurons import NeuronFacts

CLASSES = ("angry", "happy", "sad")
CONCEPTS = ("Smiling Mouth", "Tears", "Furrowed <Brow> & more")


def faces(images: int = 60, side: int = 48, seed: int = 0) -> ImageSet:
    """Smooth grey images whose brightness depends on their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    coarse = torch.rand(images, 1, 6, 6, generator=generator) * 90 + 50 * labels.view(-1, 1, 1, 1)
    pixels = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").to(torch.uint8)
    return ImageSet(pixels, labels, 1000 * seed + torch.arange(images) * 7)


def guesses(images: ImageSet, wrong: int) -> Predictions:
    """Predictions in which the first ``wrong`` images are assigned to the next class."""
    target = images.labels.clone()
    target[:wrong] = (target[:wrong] + 1) % 3
    return Predictions(images.ids, images.labels, torch.nn.functional.one_hot(target, 3).float() * 3)


def neurons(layer: str, amount: int, images: ImageSet, seed: int = 0, top: int = 10) -> pd.DataFrame:
    """Neuron 0 is dead; neuron 1 has the highest similarity."""
    generator = np.random.default_rng(seed)
    similarity = np.concatenate([[np.nan], np.linspace(3, 0.5, amount - 1)])
    alive = np.arange(amount) > 0
    tops = generator.integers(0, len(images), (amount, top))
    return pd.DataFrame(
        {
            "layer": layer,
            "neuron": np.arange(amount),
            "concept": [CONCEPTS[i % 3] if i else "" for i in range(amount)],
            "similarity": similarity,
            "margin": 0.25 * similarity,
            "z": 2 * similarity,
            "p_value": np.where(alive, 0.001 * np.arange(amount), np.nan),
            "q_value": np.where(alive, 0.002 * np.arange(amount), np.nan),
            "accuracy": np.where(alive, 0.6, np.nan),
            "accuracy_chance": np.where(alive, 1 / 3, np.nan),
            "accuracy_low": np.where(alive, 0.31, np.nan),
            "accuracy_high": np.where(alive, 0.83, np.nan),
            "dead": ~alive,
            "interpretable": alive & (np.nan_to_num(similarity) > 1),
            "significant": alive & (0.002 * np.arange(amount) < 0.05),
            "top_ids": [images.ids[torch.from_numpy(row)].tolist() for row in tops],
            "top_values": [np.linspace(5, 4, top).round(2).tolist() for _ in range(amount)],
            "runners_up": [[CONCEPTS[(i + 1) % 3], CONCEPTS[(i + 2) % 3]] for i in range(amount)],
            "runners_up_similarity": [[0.4, 0.3] for _ in range(amount)],
        }
    )


def about(sizes: dict[str, int], images: ImageSet, edited: str = "lin2") -> NeuronFacts:
    """Profiles in three groups by neuron, activations that rise with the class, and an edit of neurons 1 to 4."""
    profiles, responses = {}, {}
    for layer, amount in sizes.items():
        profiles[layer] = np.eye(3)[np.arange(amount) % 3] + 0.01 * np.arange(amount)[:, None] / amount
        activations = images.labels[:, None] + torch.arange(amount) / amount + torch.zeros(len(images), amount)
        quantiles, mean = by_class(activations, images.labels, 3)
        effects = torch.arange(3 * amount).view(amount, 3) / 100 - 0.02
        responses[layer] = Responses(quantiles, mean, activations.std(0), effects)
    return NeuronFacts(
        {(edited, neuron): "× 1.5" for neuron in range(1, 5)},
        {CONCEPTS[0]: ["happy"], CONCEPTS[1]: ["sad", "angry"]},
        CONCEPTS,
        profiles,
        responses,
    )


def layer_row(rows: pd.DataFrame) -> dict[str, object]:
    live = rows[~rows["dead"]]
    chosen = live["interpretable"]
    return {
        "layer": rows["layer"].iloc[0],
        "neurons": len(rows),
        "dead": int(rows["dead"].sum()),
        "interpretable": int(chosen.sum()),
        "not_interpretable": int((~chosen).sum()),
        "accuracy": 0.6,
        "accuracy_interpretable": 0.6,
        "accuracy_others": np.nan,
        "accuracy_chance": 1 / 3,
        "proportion": chosen.mean(),
        "proportion_null": 0.9,
        "significant": int(rows["significant"].sum()),
        "mean_z": 3.0,
    }


def dissection(sizes: dict[str, int] | None = None, images: ImageSet | None = None) -> DissectionPage:
    images = images or faces()
    tables = [
        neurons(layer, n, images, seed) for seed, (layer, n) in enumerate((sizes or {"conv4b": 6, "lin2": 30}).items())
    ]
    shares = pd.DataFrame(
        [
            {"layer": t["layer"].iloc[0], "concept": c, "neurons": n, "share": n / 10}
            for t in tables
            for c, n in zip(CONCEPTS, (6, 3, 1), strict=True)
        ]
    )
    return DissectionPage(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame([layer_row(t) for t in tables]),
        shares,
        images,
        CLASSES,
        "python dissect.py layer=conv4b,lin2 tau='</script>'",
        {"seed": 1, "note": "<b>bold</b>"},
        guesses(images, 9),
        {str(t["layer"].iloc[0]): np.linspace(0.2, 1.2, 101) for t in tables},
        tau=1.0,
        heat={("conv4b", i): np.linspace(0, 1, 10 * 4 * 4).reshape(10, 4, 4) for i in range(1, 6)},
        saliency={int(images.ids[i]): np.ones((48, 48)) * i / 4 for i in range(4)},
        about=about(sizes or {"conv4b": 6, "lin2": 30}, images),
    )


def grid() -> pd.DataFrame:
    cells = [(t, f) for t in (-0.5, 0.0, 0.5) for f in (1.0, 1.5)]
    rows = pd.DataFrame(cells, columns=["tau", "factor"])
    gained = np.array([0, 6, 0, 12, 0, 2])
    lost = np.array([0, 4, 0, 2, 0, 9])
    return rows.assign(
        layer="lin2",
        selection="tau",
        rule="scale",
        selected=20,
        accuracy_before=0.8,
        accuracy_after=0.8 + (gained - lost) / 1000,
        delta=(gained - lost) / 1000,
        delta_low=(gained - lost - 5) / 1000,
        delta_high=(gained - lost + 5) / 1000,
        gained=gained,
        lost=lost,
        p_value=[1.0, 0.75, 1.0, 0.013, 1.0, 0.065],
        p_holm=[1.0, 1.0, 1.0, 0.078, 1.0, 0.3],
        nll_before=0.5,
        nll_after=[0.5, 0.49, 0.5, 0.52, 0.5, 0.53],
        chosen=[False, False, False, True, False, False],
    )


COMPARISON = {
    "images": 60, "accuracy_before": 0.8, "accuracy_after": 0.85, "delta": 0.05, "low": -0.01, "high": 0.1,
    "gained": 3, "lost": 0, "changed": 3, "p_value": 0.25, "macro_f1_before": 0.7, "macro_f1_after": 0.75,
    "nll_before": 0.5, "nll_after": 0.52, "ece_before": 0.05, "ece_after": 0.04,
    "recall_before": [0.8, 0.8, 0.8], "recall_after": [0.85, 0.8, 0.75],
}  # fmt: skip


def edit(with_dissection: bool = True, **changed: object) -> EditPage:
    test = faces(seed=1)
    controls = pd.DataFrame(
        {
            "control": ["random"] * 4 + ["all"],
            "draw": [0, 1, 2, 3, 0],
            "delta_val": [0.0, 0.01, 0.02, 0.03, 0.0],
            "delta_test": [0.0, 0.05, 0.02, 0.06, 0.01],
        }
    )
    values: dict[str, object] = {
        "grid": grid(),
        "comparison": COMPARISON,
        "verdict": "A gain of +5.00 points, within what random neurons give (p = .25).",
        "class_names": CLASSES,
        "controls": controls,
        "before": guesses(test, 12),
        "after": guesses(test, 9),
        "images": test,
        "dissection": dissection() if with_dissection else None,
        "command": "python edit.py",
        "grid_images": 1000,
    }
    return EditPage(**(values | changed))  # type: ignore[arg-type]

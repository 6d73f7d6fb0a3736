"""The neurons as the page's script reads them: columns of short numbers, each name and image once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike
from torch import Tensor

from emodissect.data.images import ImageSet
from emodissect.report.images import ImagePool
from emodissect.report.page import Content, pack_heat

#: Distinct images shown at most; beyond it each neuron shows fewer of its top images.
MOST_IMAGES = 24_000
SHOWN = (10, 8, 6, 5, 4, 3, 2, 1)


class Predicted(Protocol):
    """What :class:`emodissect.models.predictions.Predictions` has."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def logits(self) -> Tensor: ...


def predicted_classes(predictions: Predicted | None) -> dict[int, int]:
    """Image id -> predicted class."""
    if predictions is None:
        return {}
    return dict(zip(predictions.ids.tolist(), predictions.logits.argmax(dim=1).tolist(), strict=True))


def saliency_tiles(
    content: Content, saliency: Mapping[int, ArrayLike], class_names: Sequence[str], predictions: Predicted | None
) -> Markup:
    """Images of the pool under their gradient saliency, with the predicted class where it is wrong."""
    predicted = predicted_classes(predictions)
    tiles = Markup("")
    for image_id, heat in saliency.items():
        truth, guess = content.pool.label(image_id), predicted.get(image_id)
        note = "" if guess is None or guess == truth else f"→ {class_names[guess]}"
        tiles += content.image(image_id, class_names[truth], note, heat)
    text = Markup(
        "<p>Gradient saliency: where a small change of a pixel would change the score of the predicted class most. "
        "If the shade lies beside the face, the classifier uses something else than the expression.</p>"
    )
    return text + Markup('<div class="tiles">{}</div>').format(tiles)


def neuron_payload(
    neurons: pd.DataFrame,
    images: ImageSet,
    pool: ImagePool,
    class_names: Sequence[str],
    predicted: Mapping[int, int],
    heat: Mapping[tuple[str, int], ArrayLike],
    held_out: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """The neurons' labels and top images; the images are put into the pool.

    Args:
        neurons: one row a neuron.
        images: the probe set.
        pool: of the page.
        class_names: in the order of ``images.labels``.
        predicted: class by image id, as far as known.
        heat: activation maps in [0, 1] by (layer, neuron), shape (rank, height, width).
        held_out: how half of the images' labels do on the other half, by layer and neuron; see
            :class:`emodissect.dissection.quality.held_out.HeldOut`.
    """
    tops = [[int(i) for i in row] for row in neurons["top_ids"]]
    dead = neurons["dead"].to_numpy(dtype=bool)
    kept = _kept([row for row, silent in zip(tops, dead, strict=True) if not silent])
    tops = [[] if silent else row[:kept] for row, silent in zip(tops, dead, strict=True)]
    pool.add(images, (i for row in tops for i in row))
    layers, concepts = _Names(), _Names()
    runners = [[concepts[name] for name in row] for row in neurons["runners_up"]]
    flags = (
        neurons["dead"].to_numpy(dtype=int)
        + 2 * neurons["interpretable"].to_numpy(dtype=int)
        + 4 * _flag(neurons, "significant")
    )
    keys = list(zip(neurons["layer"].astype(str), neurons["neuron"].astype(int), strict=True))
    # Cards look images up by tile; later sections may add images, which have a class as well.
    return {
        "classes": [str(name) for name in class_names],
        "kept": kept,
        "labels": [pool.label(i) for i in pool.ids],
        "predicted": [predicted.get(i, -1) for i in pool.ids] if predicted else None,
        "neurons": {
            "layer": [layers[layer] for layer, _ in keys],
            "neuron": [neuron for _, neuron in keys],
            "concept": [concepts[str(name)] for name in neurons["concept"]],
            **{
                short: _rounded(neurons[name])
                for short, name in {
                    "similarity": "similarity",
                    "margin": "margin",
                    "z": "z",
                    "p": "p_value",
                    "q": "q_value",
                    "accuracy": "accuracy",
                    "chance": "accuracy_chance",
                    "low": "accuracy_low",
                    "high": "accuracy_high",
                }.items()
                if name in neurons
            },
            "flags": flags.tolist(),
            **(_held_out(held_out, keys, concepts) if held_out is not None else {}),
            "top": [[pool.index(i) for i in row] for row in tops],
            "values": [
                [_short(v) for v in row[: len(top)]] for row, top in zip(neurons["top_values"], tops, strict=True)
            ],
            "runners": runners,
            "runnersSimilarity": [[_short(v) for v in row] for row in neurons["runners_up_similarity"]],
        },
        "layers": layers.names,
        "concepts": concepts.names,
        "heat": {
            row: [pack_heat(part) for part in np.asarray(heat[key])[:kept]]
            for row, key in enumerate(keys)
            if key in heat
        },
    }


def _held_out(found: pd.DataFrame, keys: list[tuple[str, int]], concepts: _Names) -> dict[str, list[Any]]:
    """The label of half of the images (-1: none), and its correlation on the others with interval and q."""
    rows = found.set_index(["layer", "neuron"]).reindex(pd.MultiIndex.from_tuples(keys))
    labels = rows["concept"].fillna("").astype(str)
    return {
        "heldConcept": [concepts[name] if name else -1 for name in labels],
        "held": _rounded(rows["pearson"]),
        "heldLow": _rounded(rows["pearson_low"]),
        "heldHigh": _rounded(rows["pearson_high"]),
        "heldQ": _rounded(rows["pearson_q"]),
    }


class _Names(dict[str, int]):
    """Numbers for names, in the order they come."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]

    @property
    def names(self) -> list[str]:
        return list(self)


def _kept(tops: Sequence[Sequence[int]]) -> int:
    """How many top images of each neuron can be shown."""
    for kept in SHOWN:
        if len({i for row in tops for i in row[:kept]}) <= MOST_IMAGES:
            return kept
    return SHOWN[-1]


def _flag(neurons: pd.DataFrame, name: str) -> np.ndarray:
    if name in neurons:
        return neurons[name].to_numpy(dtype=int)
    return (neurons["q_value"] < 0.05).to_numpy(dtype=int)


def _short(value: float) -> float | None:
    number = float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else None


def _rounded(values: pd.Series) -> list[float | None]:
    return [_short(value) for value in values]

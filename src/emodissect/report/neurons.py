"""The neurons as the page's script reads them: columns of short numbers, each name and image once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike
from torch import Tensor

from emodissect.data.images import ImageSet
from emodissect.report import columns
from emodissect.report.images import ImagePool
from emodissect.report.page import Content, pack_heat, render

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
    tiles = []
    for image_id, heat in saliency.items():
        truth, guess = content.pool.label(image_id), predicted.get(image_id)
        note = "" if guess is None or guess == truth else f"→ {class_names[guess]}"
        tiles.append(content.image(image_id, class_names[truth], note, heat))
    text = (
        "Gradient saliency: where a small change of a pixel would change the score of the predicted class most. "
        "If the shade lies beside the face, the classifier uses something else than the expression."
    )
    return render("tiles.html.j2", text=text, tiles=tiles)


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
    table = neurons if held_out is None else with_held_out(neurons, held_out)
    fields = [column for column in columns.present(columns.NEURONS, table) if column.form not in ("list", "flag")]
    names = {column.name: _Names() for column in fields if not column.is_number}
    concepts = names["concept"]
    values = {
        column.name: [names[column.name][str(value)] for value in table[column.name].fillna("")]
        if column.name in names
        else _rounded(table[column.name])
        for column in fields
    }
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
        "fields": [asdict(column) for column in fields],
        "neurons": {
            **values,
            "flags": flags.tolist(),
            "top": [[pool.index(i) for i in row] for row in tops],
            "values": [
                [_short(v) for v in row[: len(top)]] for row, top in zip(neurons["top_values"], tops, strict=True)
            ],
            "runners": runners,
            "runnersSimilarity": [[_short(v) for v in row] for row in neurons["runners_up_similarity"]],
        },
        "names": {name: found.names for name, found in names.items()},
        "heat": {
            row: [pack_heat(part) for part in np.asarray(heat[key])[:kept]]
            for row, key in enumerate(keys)
            if key in heat
        },
    }


def with_held_out(neurons: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """The neuron table with what half of the images' labels do on the other half, NaN where that is unknown."""
    by_neuron = held_out.set_index(["layer", "neuron"]).reindex(pd.MultiIndex.from_frame(neurons[["layer", "neuron"]]))
    found = {"": "pearson", "_low": "pearson_low", "_high": "pearson_high", "_q": "pearson_q", "_concept": "concept"}
    return neurons.assign(**{f"held_out{end}": by_neuron[name].to_numpy() for end, name in found.items()})


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

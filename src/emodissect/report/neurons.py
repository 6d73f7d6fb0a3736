"""The neuron data for the page's script: columns of rounded numbers, each name and image stored once."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike

from emodissect.data.images import ImageSet
from emodissect.dissection.responses import QUANTILES, Responses
from emodissect.models.predictions import Predictions
from emodissect.report import columns
from emodissect.report.images import ImagePool
from emodissect.report.page import Content, pack_heat, render

#: Maximum number of distinct images; beyond it each neuron shows fewer of its top images.
MOST_IMAGES = 24_000
#: Maximum bytes of the concept profiles, and of the activations by class.
MOST_BYTES = 700_000
SHOWN = (10, 8, 6, 5, 4, 3, 2, 1)


def predicted_classes(predictions: Predictions | None) -> dict[int, int]:
    """Image id -> predicted class."""
    if predictions is None:
        return {}
    return dict(zip(predictions.ids.tolist(), predictions.logits.argmax(dim=1).tolist(), strict=True))


def saliency_tiles(
    content: Content, saliency: Mapping[int, ArrayLike], class_names: Sequence[str], predictions: Predictions | None
) -> Markup:
    """Images of the pool overlaid with their gradient saliency, with the predicted class where it is wrong."""
    predicted = predicted_classes(predictions)
    tiles = []
    for image_id, heat in saliency.items():
        truth, guess = content.pool.label(image_id), predicted.get(image_id)
        note = "" if guess is None or guess == truth else f"→ {class_names[guess]}"
        tiles.append(content.image(image_id, class_names[truth], note, heat))
    text = (
        "Gradient saliency: where a small change of a pixel would change the score of the predicted class most. "
        "If the shade lies outside the face, the classifier uses something other than the expression."
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
    facts: NeuronFacts | None = None,
) -> dict[str, Any]:
    """The neurons' labels and top images as JSON values; adds the images to the pool.

    Args:
        neurons: one row per neuron.
        images: the probe set.
        pool: the page's images.
        class_names: in the order of ``images.labels``.
        predicted: image id -> predicted class, where known.
        heat: activation maps in [0, 1] by (layer, neuron), shape (rank, height, width).
        held_out: scores, on one half of the images, of labels chosen on the other, by layer and neuron; see
            :class:`emodissect.dissection.quality.held_out.HeldOut`.
        facts: further facts for the cards.
    """
    facts = facts or NeuronFacts()
    tops = [[int(i) for i in row] for row in neurons["top_ids"]]
    dead = neurons["dead"].to_numpy(dtype=bool)
    kept = _kept([row for row, silent in zip(tops, dead, strict=True) if not silent])
    tops = [[] if silent else row[:kept] for row, silent in zip(tops, dead, strict=True)]
    pool.add(images, (i for row in tops for i in row))
    keys = list(zip(neurons["layer"].astype(str), neurons["neuron"].astype(int), strict=True))
    table = neurons if held_out is None else with_held_out(neurons, held_out)
    if facts.edits:
        table = table.assign(edit=[facts.edits.get(key, "") for key in keys])
    if facts.profiles:
        table = table.assign(alike=alike(neurons, facts.profiles))
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
    return {
        "tiles": len(pool),  # later sections may add images, which no card shows
        "classes": [str(name) for name in class_names],
        "standsFor": {name: list(facts.concept_classes.get(name, ())) for name in names["concept"].names},
        **facts_payload(keys, facts, len(class_names)),
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


@dataclass(frozen=True)
class NeuronFacts:
    """What a neuron's card shows besides its label.

    Attributes:
        edits: (layer, neuron) -> what the chosen edit does to it, for each neuron that it changes.
        concept_classes: concept -> its classes.
        concepts: names of the profiles' columns.
        profiles: layer -> similarity to each concept, Float["neuron concept"].
        responses: layer -> activations by class and effects on the logits.
    """

    edits: Mapping[tuple[str, int], str] = field(default_factory=dict)
    concept_classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    concepts: Sequence[str] = ()
    profiles: Mapping[str, np.ndarray] = field(default_factory=dict)
    responses: Mapping[str, Responses] = field(default_factory=dict)


def facts_payload(keys: Sequence[tuple[str, int]], facts: NeuronFacts, classes: int) -> dict[str, Any]:
    """Profiles, activations by class and effects, one row per neuron; those too large for the page are None or cut."""
    payload: dict[str, Any] = {"profile": None, "byClass": None, "effects": None}
    if facts.profiles and all(layer in facts.profiles for layer, _ in keys):
        rows = np.stack([facts.profiles[layer][neuron] for layer, neuron in keys]).astype(np.float64)
        kept = np.arange(rows.shape[1])
        if rows.size > MOST_BYTES:  # the concepts that some neuron is closest to, in their order
            strongest = np.argsort(-np.nan_to_num(rows, nan=-np.inf).max(axis=0), kind="stable")
            kept = np.sort(strongest[: max(MOST_BYTES // len(rows), 1)])
        names = [str(facts.concepts[at]) for at in kept.tolist()]
        payload["profile"] = {"names": names, "all": rows.shape[1], **packed(rows[:, kept])}
    responses = facts.responses
    if responses and all(layer in responses for layer, _ in keys):
        size = len(keys) * classes * len(QUANTILES)
        if size <= MOST_BYTES:
            rows = np.stack([responses[layer].quantiles[neuron].numpy() for layer, neuron in keys])
            low, high = np.nanmin(rows, axis=(1, 2)), np.nanmax(rows, axis=(1, 2))
            share = (rows - low[:, None, None]) / np.where(high > low, high - low, 1)[:, None, None]
            steps = np.where(np.isfinite(share), 1 + (254 * np.nan_to_num(share)).round(), 0)
            payload["byClass"] = {
                "data": base64.b64encode(steps.astype(np.uint8).tobytes()).decode(),
                "low": [_short(value) for value in low],
                "high": [_short(value) for value in high],
            }
        effects = {layer: found.effects for layer, found in responses.items() if found.effects is not None}
        if effects and len(keys) * classes <= MOST_BYTES // 6:
            payload["effects"] = [
                [_short(value, 3) for value in effects[layer][neuron].tolist()] if layer in effects else None
                for layer, neuron in keys
            ]
    return payload


def packed(rows: np.ndarray) -> dict[str, Any]:
    """A table as base64 with one byte per cell: 1 to 255 from its minimum to its maximum, 0 for a missing value."""
    low, high = (float(end) for end in (np.nanmin(rows), np.nanmax(rows)))
    steps = 1 + (254 * (rows - low) / ((high - low) or 1.0)).round()
    data = base64.b64encode(np.where(np.isfinite(rows), np.nan_to_num(steps), 0).astype(np.uint8).tobytes()).decode()
    return {"data": data, "low": low, "high": high}


def alike(neurons: pd.DataFrame, profiles: Mapping[str, np.ndarray]) -> list[float]:
    """Group numbers of neurons of one layer with nearly the same concept profile; NaN for a neuron in no group.

    Profiles are centred on the layer's mean. Greedily, by descending z: a neuron without a group leads one of all
    ungrouped neurons whose profile has a cosine of at least 0.95 with its own.
    """
    groups = np.full(len(neurons), np.nan)
    count = 0
    order = "z" if "z" in neurons else "similarity"
    for layer, rows in neurons.reset_index(drop=True).groupby("layer", sort=False):
        living = rows[~rows["dead"].astype(bool)].sort_values(order, ascending=False, kind="stable")
        if str(layer) not in profiles or len(living) < 2:
            continue
        centred = profiles[str(layer)][living["neuron"].to_numpy(dtype=int)].astype(np.float32)
        centred = centred - centred.mean(axis=0)
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 1e-6)
        places, free = living.index.to_numpy(), np.ones(len(unit), dtype=bool)
        for leader in range(len(unit)):
            if not free[leader]:
                continue
            members = free & (unit @ unit[leader] >= 0.95)
            if members.sum() > 1:
                count += 1
                groups[places[members]] = count
                free &= ~members
            free[leader] = False
    return groups.tolist()


def with_held_out(neurons: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """The neuron table with the scores of labels on held-out images, NaN where unknown."""
    by_neuron = held_out.set_index(["layer", "neuron"]).reindex(pd.MultiIndex.from_frame(neurons[["layer", "neuron"]]))
    found = {"": "pearson", "_low": "pearson_low", "_high": "pearson_high", "_q": "pearson_q", "_concept": "concept"}
    return neurons.assign(**{f"held_out{end}": by_neuron[name].to_numpy() for end, name in found.items()})


class _Names(dict[str, int]):
    """Numbers names in the order in which they are first looked up."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]

    @property
    def names(self) -> list[str]:
        return list(self)


def _kept(tops: Sequence[Sequence[int]]) -> int:
    """How many top images of each neuron fit within ``MOST_IMAGES``."""
    for kept in SHOWN:
        if len({i for row in tops for i in row[:kept]}) <= MOST_IMAGES:
            return kept
    return SHOWN[-1]


def _flag(neurons: pd.DataFrame, name: str) -> np.ndarray:
    if name in neurons:
        return neurons[name].to_numpy(dtype=int)
    return (neurons["q_value"] < 0.05).to_numpy(dtype=int)


def _short(value: float, digits: int = 4) -> float | None:
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def _rounded(values: pd.Series) -> list[float | None]:
    return [_short(value) for value in values]

"""Ground truth of neurons, and how much of it each similarity finds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from emodissect.data.interventions import UNMOVED, Interventions
from emodissect.dissection.quality.labelling import for_measure, labelled
from emodissect.dissection.quality.planted import KINDS, Planted
from emodissect.dissection.quality.recovery import best_concepts, recovery
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson, Similarity, best_similarity_null, cos_similarity, permutation_p

TOP = 100
"""Number of top images whose mean presence defines a neuron's true concept."""


def true_concepts(
    layer: LayerActivations, presence: Float[Tensor, "image concept"], top: int = TOP
) -> dict[str, Bool[Tensor, "neuron concept"]]:
    """The true concept of each neuron of a trained network, by two definitions that favour different similarities.

    - ``correlation``: the concept whose true presence correlates most with the activation, over all images;
    - ``top images``: the concept with the highest mean standardised presence on the ``top`` most activating images.

    A neuron whose highest value is not above 0 has no true concept.
    """
    standard = (presence - presence.mean(0)) / presence.std(0).clamp(min=1e-6)
    return {
        "correlation": best_concepts(labelled(layer, presence, Pearson())),
        "top images": best_concepts(standard[layer.top_rows[:top]].mean(0)),
    }


def caused_concepts(
    changes: Float[Tensor, "change neuron"], presence: Float[Tensor, "change concept"]
) -> Bool[Tensor, "neuron concept"]:
    """The true concept of each neuron, by intervention: the concept whose changes best match the neuron's changes.

    Only one property of a face changes at a time, which separates concepts that are correlated across faces. The match
    is the cosine of the changes (not centred, since no change in presence should mean no change in activation). A
    neuron without a cosine above 0 has no true concept.

    Args:
        changes: changes in activation, moved minus unmoved; see
            :class:`emodissect.data.interventions.Interventions`.
        presence: the corresponding changes in each concept's true presence.
    """
    return best_concepts(cos_similarity(presence.float(), changes.float()))


def dose_response(
    interventions: Interventions, activations: Float[Tensor, "image neuron"], spread: Float[Tensor, " neuron"]
) -> pd.DataFrame:
    """The response of each neuron to each property, with everything else fixed.

    Args:
        activations: activations on the interventions' images, rows in the same order.
        spread: each neuron's standard deviation over the probe images, the unit of responses; 0 gives no response.

    Returns:
        One row per neuron and property: neuron, moved, slope (least-squares change in activation over the property's
        whole range, mean over faces) with its 95 % interval over faces (Student's t), and responses (a list of mean
        changes from the unmoved faces at each value, in ascending order of the value).
    """
    unit = torch.where(spread > 0, spread, torch.inf)
    changed = interventions.changes(activations) / unit
    still = interventions.moved == UNMOVED
    face, moved, value = (x[~still] for x in (interventions.face, interventions.moved, interventions.value))
    faces, steps = int(face.max()) + 1, len(value.unique())
    order = torch.from_numpy(np.lexsort((value.numpy(), moved.numpy(), face.numpy())))
    cube = changed[order].double().reshape(faces, len(interventions.names), steps, -1)
    dose = value[order][:steps].double()
    dose = dose - dose.mean()
    slopes = torch.einsum("fpvm,v->fpm", cube, dose) / dose.square().sum()
    mean = slopes.mean(0)
    width = float(stats.t.ppf(0.975, faces - 1)) * slopes.std(0) / faces**0.5
    properties, neurons = mean.shape
    columns = {"slope": mean, "low": mean - width, "high": mean + width}
    return pd.DataFrame(
        {
            "neuron": np.repeat(np.arange(neurons), properties),
            "moved": list(interventions.names) * neurons,
            **{name: values.t().flatten().numpy() for name, values in columns.items()},
            "responses": cube.mean(0).permute(2, 0, 1).flatten(0, 1).tolist(),
        }
    )


def recovered(
    layer: LayerActivations,
    sources: Mapping[str, Float[Tensor, "image concept"]],
    measures: Mapping[str, Similarity],
    truths: Mapping[str, Bool[Tensor, "neuron concept"]],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of the ground truth each similarity recovers from each source of scores.

    Args:
        layer: a layer with all its activations.
        sources: concept scores by name, rows in the order of ``layer.ids``; true presences are the ceiling.
        truths: the true concepts of each neuron, by the name of their definition.

    Returns:
        One row per similarity, source and truth, with the columns of ``Recovery.row``. Truths without a live neuron
        have no row.
    """
    rows = []
    for name, measure in measures.items():
        for source, scores in sources.items():
            similarity = labelled(layer, scores, measure)
            for truth, concepts in truths.items():
                known = ~layer.dead & concepts.any(1)
                if known.any():
                    found = recovery(similarity[known], concepts[known], seed=seed).row()
                    rows.append({"similarity": name, "source": source, "truth": truth, **found})
    return pd.DataFrame(rows)


def planted_table(
    layer: LayerActivations,
    scores: Float[Tensor, "image concept"],
    measures: Mapping[str, Similarity],
    planted: Planted,
    *,
    level: float = 0.05,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The results of each similarity on each kind of planted neuron.

    Returns:
        One row per similarity and kind: similarity, kind, neurons, labelled (the share with a significant label,
        p < ``level``: for noise neurons these are false positives, with an expected share of ``level``; dead neurons
        are never labelled), and for kinds with true concepts the recovery, see
        :meth:`emodissect.dissection.quality.recovery.Recovery.row`.
    """
    rows = []
    for name, measure in measures.items():
        similarity = labelled(layer, scores, measure)
        p = permutation_p(
            similarity.amax(1), best_similarity_null(measure, scores, for_measure(layer, measure), draws, seed)
        )
        beyond = ~layer.dead & (p < level)
        for kind in KINDS:
            own = planted.of_kind(kind)
            if not own.any():
                continue
            row = {"similarity": name, "kind": kind, "neurons": int(own.sum())}
            if planted.truth[own].any():
                row |= recovery(similarity[own], planted.truth[own], seed=seed).row()
            rows.append({**row, "labelled": float(beyond[own].double().mean())})
    return pd.DataFrame(rows)

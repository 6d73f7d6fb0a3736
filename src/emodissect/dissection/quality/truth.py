"""How much of a known truth each similarity finds in a layer."""

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
"""Images whose mean presence is the truth of a neuron's top images."""


def true_concepts(
    layer: LayerActivations, presence: Float[Tensor, "image concept"], top: int = TOP
) -> dict[str, Bool[Tensor, "neuron concept"]]:
    """The true concept of each neuron of a trained network, by two measures that favour different similarities.

    - ``correlation``: the concept whose true presence correlates most with the activation, over all images;
    - ``top images``: the concept whose true presence, in standard deviations, is highest on the mean of the ``top``
      most activating images.

    None of a neuron where that is not above 0.
    """
    standard = (presence - presence.mean(0)) / presence.std(0).clamp(min=1e-6)
    return {
        "correlation": best_concepts(labelled(layer, presence, Pearson())),
        "top images": best_concepts(standard[layer.top_rows[:top]].mean(0)),
    }


def caused_concepts(
    changes: Float[Tensor, "change neuron"], presence: Float[Tensor, "change concept"]
) -> Bool[Tensor, "neuron concept"]:
    """The true concept of each neuron, by intervention: the concept whose changes its own changes follow most.

    Only one property of a face moves at a time, so concepts that go along with each other among faces come apart. The
    measure is the cosine of the changes (not centred: no change of presence, no change of activation). None of a
    neuron where no cosine is above 0.

    Args:
        changes: of the activations, moved less unmoved; see :class:`emodissect.data.interventions.Interventions`.
        presence: the same changes of each concept's true presence.
    """
    return best_concepts(cos_similarity(presence.float(), changes.float()))


def dose_response(
    interventions: Interventions, activations: Float[Tensor, "image neuron"], spread: Float[Tensor, " neuron"]
) -> pd.DataFrame:
    """How each neuron answers to each property, everything else fixed.

    Args:
        activations: of their images, rows in the same order.
        spread: each neuron's standard deviation over the probe images, the unit of a response; 0: no response.

    Returns:
        One row a neuron and property: neuron, moved, slope (mean over faces of the least squares change of activation
        over the property's whole range) with its 95 % interval over faces (Student's t), and responses (a list: the
        mean change from the unmoved faces at each value, the lowest first).
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
    """How much of the truth each similarity finds from each source of scores.

    Args:
        layer: with all its values.
        sources: concept scores by name, rows in the order of ``layer.ids``; the true presences are the ceiling.
        truths: the true concepts of each neuron, by the name of what they are taken from.

    Returns:
        One row a similarity, source and truth, as ``Recovery.row`` gives it. None for a
        truth of no live neuron.
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
    """What each similarity makes of each kind of planted neuron.

    Returns:
        One row a similarity and kind: similarity, kind, neurons, labelled (the share whose label is beyond random
        image sets, p < ``level``: of noise neurons these are false, and ``level`` is what one expects; a dead neuron
        is never labelled), and for kinds with a truth its recovery, see
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

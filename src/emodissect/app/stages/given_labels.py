"""Labels of an earlier run (``labels_dir``): checks that they belong to this network and these images."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.dissection.label_table import require_concepts
from emodissect.dissection.labels import Dissection
from emodissect.recording import LayerActivations

log = logging.getLogger(__name__)


def given_labels(
    folder: str | Path,
    activations: Mapping[str, LayerActivations],
    probe: ImageSet,
    concepts: ConceptSet,
    weights: str,
) -> tuple[Dissection, dict[str, Any], str]:
    """Load the labels of ``labels_dir=<folder>`` and check them against this run.

    Args:
        weights: SHA-256 of this network's state.

    Returns:
        the labels; their path, content hash and network weights for the manifest; a warning, empty if there is none.

    Raises:
        UserError: missing or damaged labels, a layer that is missing or has another number of neurons, concepts that
            are not in this run's set, or top images that are not among the probe images.
    """
    dissection = Dissection.load(folder)
    require_concepts(dissection.neurons, concepts.names, concepts.origin, folder)
    for name, layer in activations.items():
        rows = dissection[name]
        if len(rows) != layer.neurons:
            raise UserError(
                f"labels_dir={folder} holds {len(rows):,} neurons of layer '{name}', and this network has "
                f"{layer.neurons:,}: they belong to another network. Give its own labels, or labels_dir=null."
            )
        top = torch.tensor([image for ids in rows["top_ids"] for image in ids], dtype=torch.int64)
        unknown = int((~torch.isin(top, probe.ids)).sum())
        if unknown:
            raise UserError(
                f"labels_dir={folder} has {unknown:,} top images of layer '{name}' that are not among this run's "
                f"{len(probe):,} probe images: its labels are for other images. Give the same data and probe settings, "
                "or labels_dir=null for a new dissection."
            )
    path = Path(folder)  # the run folder, or the label file in it
    labelled_weights = _weights_of(path.parent if path.name == "neurons.parquet" else path)
    described = {"path": str(folder), "content": dissection.fingerprint(), "weights": labelled_weights}
    warning = ""
    if labelled_weights is None:
        log.info("labels_dir=%s: no usable manifest.json, so it is unknown which network the labels are for.", folder)
    elif labelled_weights != weights:
        warning = (
            f"The labels are of another network: those in labels_dir={folder} are for weights {labelled_weights[:12]}, "
            f"and this network's are {weights[:12]}. They are used unchanged."
        )
        log.warning("%s", warning)
    return dissection, described, warning


def _weights_of(folder: Path) -> str | None:
    """The weights that a run's labels are for, also if that run got them from a ``labels_dir``; None if unknown."""
    try:
        inputs = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["inputs"]
        weights = (inputs.get("labels") or inputs["dissection"]["classifier"])["weights"]
        return weights if isinstance(weights, str) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

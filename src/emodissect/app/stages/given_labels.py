"""Labels that were found by an earlier run: whether they are of this network and of these images."""

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
    """Labels from ``labels_dir=<folder>``, what they are for the manifest, and what a reader must know of them.

    Args:
        weights: SHA-256 of this network's state.

    Returns:
        the labels; their path, content hash and the weights they were found in; a warning, empty where all is well.

    Raises:
        UserError: no or damaged labels, a layer that is missing or has another number of neurons, concepts that this
            run's set does not hold, or top images that are not among the probe images.
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
        strange = int((~torch.isin(top, probe.ids)).sum())
        if strange:
            raise UserError(
                f"labels_dir={folder} names {strange:,} top images of layer '{name}' that are not among this run's "
                f"{len(probe):,} probe images: they were found on other images. Give the same data and probe settings, "
                "or labels_dir=null to dissect now."
            )
    path = Path(folder)  # of the run, or of its file of labels
    found_in = _weights_of(path.parent if path.name == "neurons.parquet" else path)
    described = {"path": str(folder), "content": dissection.fingerprint(), "weights": found_in}
    warning = ""
    if found_in is None:
        log.info("labels_dir=%s has no manifest.json beside it: which network they belong to is unknown.", folder)
    elif found_in != weights:
        warning = (
            f"The labels are of another network: labels_dir={folder} was found in weights {found_in[:12]}, and this "
            f"network's are {weights[:12]}. They are used as they are given."
        )
        log.warning("%s", warning)
    return dissection, described, warning


def _weights_of(folder: Path) -> str | None:
    """The weights that a run's labels were found in; a run that was given labels itself names theirs."""
    try:
        inputs = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["inputs"]
        weights = (inputs.get("labels") or inputs["dissection"]["classifier"])["weights"]
        return weights if isinstance(weights, str) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

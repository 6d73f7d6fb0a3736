"""The recorded activations of one layer, the input of a dissection."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.tensor_files import save_tensors
from emodissect.recording.moments import Moments
from emodissect.recording.store import open_values
from emodissect.recording.top_images import TopImages

_TENSORS = ("ids", "top_ids", "top_values", "mean", "std", "minimum", "maximum")


@dataclass(frozen=True)
class LayerActivations:
    """One layer's activations on a set of images.

    Attributes:
        layer: module path in the network.
        ids: the images, ascending.
        top_ids: each neuron's most activating images, best first, ties by the tickets of their ids (see
            :func:`emodissect.core.ranking.tickets`). The number of ranks is the requested top_k, or the number of
            images if that is smaller.
        top_values: their activations.
        mean, std, minimum, maximum: over all images; std divides by the number of images.
        values: all activations, rows in the order of ``ids``, or None if only the top images were kept.
        values_file: the file of ``values``, if there is one.
    """

    layer: str
    ids: Int64[Tensor, " image"]
    top_ids: Int64[Tensor, "rank neuron"]
    top_values: Float[Tensor, "rank neuron"]
    mean: Float[Tensor, " neuron"]
    std: Float[Tensor, " neuron"]
    minimum: Float[Tensor, " neuron"]
    maximum: Float[Tensor, " neuron"]
    values: Float[Tensor, "image neuron"] | None = None
    values_file: Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        neurons = len(self.mean)
        shapes = {name: tuple(getattr(self, name).shape) for name in _TENSORS}
        expected = {
            "ids": (len(self.ids),),
            **dict.fromkeys(("top_ids", "top_values"), (len(self.top_ids), neurons)),
            **dict.fromkeys(("mean", "std", "minimum", "maximum"), (neurons,)),
        }
        if shapes != expected or (self.values is not None and self.values.shape != (len(self.ids), neurons)):
            raise ValueError(f"shapes of {self.layer} do not fit: {shapes}")
        if len(self.ids) > 1 and not bool((self.ids[1:] > self.ids[:-1]).all()):
            raise ValueError(f"the image ids of {self.layer} are not ascending")

    @property
    def neurons(self) -> int:
        """Number of neurons of the layer."""
        return len(self.mean)

    @property
    def dead(self) -> Bool[Tensor, " neuron"]:
        """Neurons with the same activation on every image (maximum == minimum)."""
        return self.maximum == self.minimum

    @property
    def top_rows(self) -> Int64[Tensor, "rank neuron"]:
        """``top_ids`` as row numbers into ``ids``."""
        return torch.searchsorted(self.ids, self.top_ids)

    @classmethod
    def of(
        cls, layer: str, ids: Int64[Tensor, " image"], values: Float[Tensor, "image neuron"], top_k: int = 100
    ) -> LayerActivations:
        """Create from all activations in memory, which are kept as ``values``. Rows may be in any order."""
        ids, order = ids.sort()
        values = values[order]
        top = TopImages(top_k)
        top.update(values, ids)
        return cls.joined(layer, ids, top, Moments.of(values), values)

    @classmethod
    def joined(
        cls,
        layer: str,
        ids: Int64[Tensor, " image"],
        top: TopImages,
        moments: Moments,
        values: Float[Tensor, "image neuron"] | None = None,
        values_file: Path | None = None,
    ) -> LayerActivations:
        """Create from top images, moments and, optionally, values, moved to the CPU."""
        return cls(
            layer,
            ids.cpu(),
            top.ids.cpu(),
            top.values.cpu(),
            moments.mean.float().cpu(),
            moments.std.float().cpu(),
            moments.minimum.float().cpu(),
            moments.maximum.float().cpu(),
            values,
            values_file,
        )

    def merge(self, other: LayerActivations, top_k: int | None = None) -> LayerActivations:
        """The activations on both sets of images together, which must be disjoint.

        Args:
            top_k: ranks to keep; by default as many as are known exactly (a part with fewer ranks than images only
                knows its ranks).

        Raises:
            ValueError: another layer or number of neurons, shared images, or more ranks than are known exactly.
        """
        if (self.layer, self.neurons) != (other.layer, other.neurons):
            raise ValueError(f"{self.layer} ({self.neurons}) and {other.layer} ({other.neurons}) are different layers")
        ids, order = torch.cat([self.ids, other.ids]).sort()
        if bool((ids[1:] == ids[:-1]).any()):
            raise ValueError(f"both parts of {self.layer} have some of the same images")
        bounded = [len(part.top_ids) for part in (self, other) if len(part.top_ids) < len(part.ids)]
        exact = min([len(ids), *bounded])
        if top_k is not None and bounded and top_k > exact:
            raise ValueError(f"the top {top_k} images of {self.layer} are unknown: a part kept only {exact}")
        top = TopImages(top_k or exact)
        for part in (self, other):
            top.merge(TopImages.of_ranked(top.k, part.top_values, part.top_ids))
        moments = self._moments().merge(other._moments())
        both = self.values is not None and other.values is not None
        values = torch.cat([self.values, other.values])[order] if both else None  # type: ignore[list-item]
        return self.joined(self.layer, ids, top, moments, values)

    def save(self, folder: str | Path) -> None:
        """Write ``activations.safetensors``, ``layer.json`` and, if there are values, ``values.npy``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({name: getattr(self, name).contiguous() for name in _TENSORS}, folder / "activations.safetensors")
        target = folder / "values.npy"
        if self.values is not None and not _linked(self.values_file, target):
            np.save(target, self.values.numpy())
        about = {
            "layer": self.layer,
            "images": len(self.ids),
            "neurons": self.neurons,
            "values": self.values is not None,
        }
        (folder / "layer.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> LayerActivations:
        """Read the files written by :meth:`save`; values are memory-mapped.

        Raises:
            UserError: the folder has no recorded layer.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "layer.json").read_text())
            tensors = load_file(folder / "activations.safetensors")
        except FileNotFoundError as error:
            raise UserError(f"{folder} has no recorded layer: {error.filename} is missing.") from error
        file = folder / "values.npy" if about["values"] else None
        return cls(about["layer"], **tensors, values=open_values(file) if file else None, values_file=file)

    def _moments(self) -> Moments:
        deviation = self.std.double().square() * len(self.ids)
        return Moments(len(self.ids), self.mean.double(), deviation, self.minimum, self.maximum)


def _linked(source: Path | None, target: Path) -> bool:
    """Try to make ``target`` a hard link to ``source``, to avoid a copy; returns whether it succeeded."""
    if source is None:
        return False
    try:
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:
        return False
    return True

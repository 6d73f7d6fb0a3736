"""Recording of layers over a whole set of images, in one or several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch import distributed as dist

from emodissect.core.errors import UserError, listed
from emodissect.recording.activations import LayerActivations
from emodissect.recording.gather import LayerPart, Part, gathered, join, own_share, several
from emodissect.recording.hooks import Recording, record
from emodissect.recording.layers import resolve_layers
from emodissect.recording.moments import Moments
from emodissect.recording.pooling import ChannelsLast, check_pool
from emodissect.recording.store import ActivationStore
from emodissect.recording.top_images import TopImages

_NO_IDS = torch.empty(0, dtype=torch.int64)


class _Layer:
    """The running state of one layer."""

    def __init__(self, top_k: int) -> None:
        self.top = TopImages(top_k)
        self.moments: Moments | None = None
        self.values: list[Tensor] = []
        self.store: ActivationStore | None = None


class ActivationCollector:
    """Records layers batch by batch: each neuron's top images and moments, and optionally all activations.

    ```python
    collector = ActivationCollector(["conv4b", "lin2"], top_k=100)
    with torch.inference_mode(), collector.on(network):
        for batch in image_loader(images, 256):
            network(preprocess(batch.images))
            collector.update(batch.ids)
    activations = collector.result()["lin2"]
    ```

    Rows are ordered by image id, so the order of batches does not matter; repeated ids are ignored. Without
    ``keep_values`` the image x neuron matrix is never built: memory is top_k x neurons and one batch. With
    torch.distributed each process records its share and :meth:`result` returns the same complete result on all; images
    that a sampler repeats to fill the last batches count once.

    Args:
        layers: as in :func:`emodissect.recording.resolve_layers`.
        pool: ``avg``, ``max``, ``class_token`` or ``token_mean``.
        top_k: images to keep for each neuron.
        keep_values: also keep all activations, in memory, or in ``store_dir`` if given.
        store_dir: a folder for memory-mapped files, one per layer; on a file system shared by all processes.
        images: expected number of images, if known: the disk space is then checked before the first one.
        channels_last: see :func:`emodissect.recording.record`.
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        pool: str = "avg",
        top_k: int = 100,
        keep_values: bool = False,
        store_dir: str | Path | None = None,
        *,
        images: int | None = None,
        channels_last: ChannelsLast = "auto",
    ) -> None:
        check_pool(pool, channels_last)
        TopImages(top_k)  # reports an invalid top_k here, not after the first batch
        self.layers = layers if isinstance(layers, str) else list(layers)
        self.pool, self.top_k, self.channels_last = pool, top_k, channels_last
        self.keep_values, self.images = keep_values, images
        self.store_dir = Path(store_dir) if store_dir is not None else None
        self._context: AbstractContextManager[Recording] | None = None
        self._recorded: Recording | None = None
        self._names: list[str] = []
        self._state: dict[str, _Layer] = {}
        self._ids: list[Tensor] = []
        self._seen: set[int] = set()
        # with several processes the latest batch waits: only it can have a sampler's repeats, which are known
        # only at the end
        self._latest: tuple[Tensor, dict[str, Tensor]] | None = None
        self._result: dict[str, LayerActivations] | None = None

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[ActivationCollector]:
        """Record ``network`` within the block. After an exception, files on disk are removed."""
        self.attach(network)
        try:
            yield self
        except BaseException:
            self.discard()
            raise
        finally:
            self.detach()

    def attach(self, network: nn.Module) -> None:
        """Start recording; for callbacks, which have no block. :meth:`detach` must follow."""
        if self._context is not None:
            raise RuntimeError("this collector is already attached")
        names = resolve_layers(network, self.layers)
        if self._names and names != self._names:
            raise ValueError(f"recorded {self._names} before, and now {names}")
        self._names = names
        self._context = record(network, names, self.pool, self.channels_last)
        self._recorded = self._context.__enter__()

    def detach(self) -> None:
        """Remove the hooks, if there are any."""
        if self._context is not None:
            context, self._context, self._recorded = self._context, None, None
            context.__exit__(None, None, None)

    def discard(self) -> None:
        """Remove unfinished files."""
        for state in self._state.values():
            if state.store is not None:
                state.store.discard()

    def update(self, ids: Int64[Tensor, " image"] | Sequence[int]) -> None:
        """Add the latest forward pass, of the images with these ids.

        Raises:
            UserError: the numbers of ids and images differ, or activations are not finite (names layer and images).
        """
        if self._recorded is None or self._result is not None:
            raise RuntimeError("update needs an attached collector whose result was not yet taken")
        ids = torch.as_tensor(ids, dtype=torch.int64).detach().cpu()
        batch = {layer: self._recorded[layer] for layer in self._names}
        for layer, values in batch.items():
            if len(values) != len(ids):
                raise UserError(
                    f"Layer {layer!r} gave {len(values)} rows for {len(ids)} image ids: the network must see each "
                    "image once (no ten-crop) in the pass before update."
                )
        self._recorded.clear()
        fresh = self._fresh(ids)
        if len(fresh) < len(ids):
            ids, batch = ids[fresh], {layer: values[fresh] for layer, values in batch.items()}
        if several() and len(ids):
            self._latest, (ids, batch) = (ids, batch), self._latest or (_NO_IDS, {})
        self._take(ids, batch)

    def result(self) -> dict[str, LayerActivations]:
        """Layer -> recorded activations, the same on every process. Ends the recording.

        Raises:
            UserError: no images were recorded, or processes share images other than a sampler's repeats.
        """
        if self._result is None:
            self.detach()
            if several():
                self._settle_latest()
            self._result = join(gathered(self._part()), self._names, self.top_k, self.store_dir)
            if not self._result:
                raise UserError(f"No image was recorded for layer {self.layers}: there are no images, or no update.")
        return self._result

    def _fresh(self, ids: Tensor) -> list[int]:
        rows = []
        for row, image in enumerate(ids.tolist()):
            if image not in self._seen:
                self._seen.add(image)
                rows.append(row)
        return rows

    def _take(self, ids: Tensor, batch: dict[str, Tensor]) -> None:
        if not len(ids):
            return
        for layer, values in batch.items():
            state = self._state.setdefault(layer, _Layer(self.top_k))
            moments = Moments.of(values)
            if not bool(moments.mean.isfinite().all()):
                _not_finite(layer, ids, values)
            state.moments = moments if state.moments is None else state.moments.merge(moments)
            state.top.update(values, ids)
            if self.keep_values and self.store_dir is None:
                state.values.append(values.cpu())
            elif self.keep_values:
                state.store = state.store or self._new_store(layer, values.shape[1])
                state.store.append(ids, values)
        self._ids.append(ids)

    def _new_store(self, layer: str, neurons: int) -> ActivationStore:
        assert self.store_dir is not None
        part = f".rank{dist.get_rank()}" if several() else ""
        images = None if self.images is None else -(-self.images // (dist.get_world_size() if several() else 1))
        return ActivationStore(self.store_dir / f"{layer}{part}.npy", neurons, images)

    def _settle_latest(self) -> None:
        """Add the rows of the waiting batch that no other process has; drop this share if others have all of it."""
        latest, batch = self._latest or (_NO_IDS, {})
        rows, counts = own_share(gathered((torch.cat([*self._ids, _NO_IDS]), latest)), dist.get_rank())
        if not counts:
            self.discard()
            self._state, self._ids = {}, []
        self._take(latest[rows], {layer: values[rows.to(values.device)] for layer, values in batch.items()})
        self._latest = None

    def _part(self) -> Part:
        ids, order = torch.cat([*self._ids, _NO_IDS]).sort()
        layers = {}
        for layer, state in self._state.items():
            assert state.moments is not None
            values = _in_order(state.values, order)
            file = state.store.finish() if state.store else None
            layers[layer] = LayerPart(state.top.cpu(), state.moments.cpu(), values, file)
        return Part(ids, layers)


def _in_order(batches: list[Tensor], order: Tensor) -> Tensor | None:
    if not batches:
        return None
    values = torch.cat(batches)
    batches.clear()  # so that the matrix is in memory once, and twice only if rows must be reordered
    return values if torch.equal(order, torch.arange(len(order))) else values[order]


def _not_finite(layer: str, ids: Tensor, values: Float[Tensor, "image neuron"]) -> None:
    wrong = ~values.isfinite()
    if not bool(wrong.any()):
        return
    images = ids[wrong.any(1).cpu()].tolist()
    raise UserError(
        f"Layer {layer!r} gives NaN or infinite activations in {int(wrong.any(0).sum())} of {values.shape[1]} neurons, "
        f"for image ids {listed(images)}. Check these images and the weights; "
        "with half precision try trainer.precision=32."
    )

"""Two gloo processes record the same as one."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.utils.data import DistributedSampler

from emodissect.core.errors import UserError
from emodissect.recording import ActivationCollector, LayerActivations
from emodissect.recording.gather import own_share

COUNT = 31  # odd: the sampler of two processes repeats an image


def network() -> nn.Sequential:
    """Integer weights, so that every batch size gives the same bits."""
    layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape, generator=generator))
    return layers.eval()


PIXELS = torch.randint(0, 5, (COUNT, 4), generator=torch.Generator().manual_seed(1)).float()
IDS = torch.arange(500, 500 + COUNT)


def collect(rows: list[int], store_dir: Path | None, keep: bool, wrapped: bool = False) -> dict[str, LayerActivations]:
    layers: nn.Module = network()
    if wrapped:
        layers = nn.parallel.DistributedDataParallel(layers)
    collector = ActivationCollector("all", top_k=5, keep_values=keep, store_dir=store_dir)
    with torch.inference_mode(), collector.on(layers):
        for batch in torch.tensor(rows, dtype=torch.int64).split(4):
            layers(PIXELS[batch])
            collector.update(IDS[batch])
    return collector.result()


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        results = {}
        for shuffle in (False, True):
            sampler = DistributedSampler(range(COUNT), num_replicas=2, rank=rank, shuffle=shuffle)  # type: ignore[arg-type]
            results[f"sampler {shuffle}"] = collect(list(sampler), None, keep=True, wrapped=True)
        results["top"] = collect(list(range(rank, COUNT, 2)), None, keep=False)
        results["disk"] = collect(list(range(COUNT))[rank::2][::-1], Path(folder) / "store", keep=True)
        results["everything twice"] = collect(list(range(COUNT)), None, keep=True)
        results["one idle"] = collect(list(range(COUNT)) if rank else [], None, keep=True)
        overlap = list(range(20)) if rank == 0 else list(range(8, COUNT))
        with pytest.raises(UserError, match="recorded 8 of the same images"):
            collect(overlap, None, keep=False)
        plain = {
            name: {layer: vars(found) for layer, found in copy.deepcopy(result).items()}
            for name, result in results.items()
        }
        torch.save(plain, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
    # DistributedDataParallel keeps gloo's threads alive past the group's end, and now and then one of them aborts the
    # interpreter's own: the results stand, so the process ends without one
    os._exit(0)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(work, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    alone = collect(list(range(COUNT)), None, keep=True)
    for rank in (0, 1):
        results = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert len(results) == 6
        for name, result in results.items():
            assert list(result) == list(alone) == ["0", "2"]
            for layer, expected in alone.items():
                found = result[layer]
                for field in ("ids", "top_ids", "top_values", "minimum", "maximum"):
                    assert torch.equal(found[field], getattr(expected, field)), (name, field)
                for field in ("mean", "std"):
                    torch.testing.assert_close(found[field], getattr(expected, field), rtol=1e-6, atol=1e-7)
                assert found["values"] is None if name == "top" else torch.equal(found["values"], expected.values)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["0.npy", "2.npy"]


def share(*parts: tuple[list[int], list[int]]) -> list[tuple[list[int], bool]]:
    tensors = [(torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64)) for a, b in parts]
    return [(rows.tolist(), counts) for rows, counts in (own_share(tensors, rank) for rank in range(len(parts)))]


def test_who_answers_for_which_image() -> None:
    # five images on two processes: image 0 is repeated in the second's last batch
    assert share(([0, 2], [4]), ([1], [3, 0])) == [([0], True), ([0], True)]
    # one batch each: the lower rank keeps it
    assert share(([], [0, 2, 4]), ([], [1, 3, 0])) == [([0, 1, 2], True), ([0, 1], True)]
    # repeated in a last batch, met in a higher rank's earlier one
    assert share(([], [5, 1]), ([5], [2])) == [([1], True), ([0], True)]
    # everyone saw everything
    assert share(([0, 1], [2]), ([0, 1], [2])) == [([0], True), ([], False)]
    with pytest.raises(UserError, match=r"Process 1 and those before it recorded 1 of.*DistributedSampler"):
        share(([0, 1], [2]), ([1, 3], [4]))


@pytest.mark.parametrize("world", [2, 3, 4, 7])
@pytest.mark.parametrize("count", [7, 8, 9, 20])
def test_every_image_counts_once_whatever_the_sampler_repeats(world: int, count: int) -> None:
    for shuffle in (False, True):
        parts = []
        for rank in range(world):
            own = list(DistributedSampler(range(count), world, rank, shuffle=shuffle))  # type: ignore[arg-type]
            parts.append((own[: (len(own) - 1) // 2 * 2], own[(len(own) - 1) // 2 * 2 :]))
        kept = []
        for (earlier, latest), (rows, counts) in zip(parts, share(*parts), strict=True):
            kept += [*(earlier if counts else []), *(latest[row] for row in rows)]
        assert sorted(kept) == list(range(count))

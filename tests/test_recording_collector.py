"""The collector over whole image sets: against plain matrices, with storage, misuse and interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from emodissect.core.errors import UserError
from emodissect.core.ranking import tickets
from emodissect.recording import ActivationCollector, ActivationStore, LayerActivations
from emodissect.recording import store as store_module


def network() -> nn.Sequential:
    """conv -> ReLU -> flatten -> linear, with integer weights so that every batch size gives the same bits."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 4, 5))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
        layers[3].weight[2] = 0  # a dead neuron
        layers[3].bias[2] = 2
    return layers.eval()


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 9, (count, 1, 4, 4), generator=torch.Generator().manual_seed(1)).float()


IDS = torch.arange(100, 163)


def matrices(count: int = 63) -> dict[str, torch.Tensor]:
    layers, pixels = network(), images(count)
    with torch.no_grad():
        first = layers[0](pixels)
        return {"0": first.mean((2, 3)), "3": layers(pixels)}


def collected(collector: ActivationCollector, order: torch.Tensor, batch: int = 10) -> dict[str, LayerActivations]:
    layers, pixels = network(), images(63)
    with torch.inference_mode(), collector.on(layers):
        for rows in order.split(batch):
            layers(pixels[rows])
            collector.update(IDS[rows])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers.modules())
    return collector.result()


@pytest.mark.parametrize("kept", ["top", "memory", "disk"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_equals_the_matrix(kept: str, shuffled: bool, tmp_path: Path) -> None:
    order = torch.randperm(63) if shuffled else torch.arange(63)
    store_dir = tmp_path / "store" if kept == "disk" else None
    collector = ActivationCollector(["3", "0"], top_k=7, keep_values=kept != "top", store_dir=store_dir, images=63)
    result = collected(collector, order)
    assert list(result) == ["3", "0"]
    drawn = tickets(IDS).tolist()
    for layer, matrix in matrices().items():
        found = result[layer]
        assert torch.equal(found.ids, IDS)
        assert found.neurons == matrix.shape[1]
        ranked = [
            sorted(range(63), key=lambda row, n=n: (-float(matrix[row, n]), drawn[row]))[:7]  # type: ignore[misc]
            for n in range(matrix.shape[1])
        ]
        rows = torch.tensor(ranked).T
        assert torch.equal(found.top_rows, rows)
        assert torch.equal(found.top_ids, IDS[rows])
        assert torch.equal(found.top_values, matrix.gather(0, rows))
        torch.testing.assert_close(found.mean, matrix.mean(0))
        torch.testing.assert_close(found.std, matrix.std(0, correction=0))
        assert torch.equal(found.minimum, matrix.amin(0))
        assert torch.equal(found.maximum, matrix.amax(0))
        assert (found.values is None) if kept == "top" else torch.equal(found.values, matrix)
    assert result["3"].dead.tolist() == [False, False, True, False, False]
    assert torch.equal(result["3"].top_ids[:, 2], IDS[tickets(IDS).argsort()[:7]])  # the dead neuron's
    assert collector.result() is result
    if store_dir:
        assert sorted(path.name for path in store_dir.iterdir()) == ["0.npy", "3.npy"]


def test_fewer_images_than_top_k_and_repeated_images() -> None:
    order = torch.cat([torch.arange(63), torch.arange(5), torch.tensor([3, 3])])
    result = collected(ActivationCollector("all", top_k=100, keep_values=True), order)
    assert result["3"].top_ids.shape == (63, 5)
    assert torch.equal(result["3"].values, matrices()["3"])
    torch.testing.assert_close(result["3"].mean, matrices()["3"].mean(0))


def test_not_finite_activations_name_layer_and_images() -> None:
    layers, pixels = network(), images(4)
    pixels[1, 0, 0, 0] = torch.nan
    pixels[3, 0, 3, 3] = torch.inf
    collector = ActivationCollector("all")
    message = "Layer '0' gives NaN or infinite activations in 3 of 3 neurons, for image ids 71, 73. "
    with torch.no_grad(), collector.on(layers):
        layers(pixels)
        with pytest.raises(UserError, match=message):
            collector.update([70, 71, 72, 73])
    assert not any(m._forward_hooks for m in layers.modules())


def test_huge_but_finite_activations_are_taken() -> None:
    layers = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(layers[0].weight)
    collector = ActivationCollector("0", top_k=1)
    with torch.no_grad(), collector.on(layers):
        layers(torch.tensor([[3e38], [3e38], [-3e38]]))
        collector.update([0, 1, 2])
    assert collector.result()["0"].mean.item() == pytest.approx(1e38, rel=1e-6)


def test_ids_that_do_not_fit_the_pass() -> None:
    layers = network()
    collector = ActivationCollector("3")
    with torch.no_grad(), collector.on(layers):
        layers(images(10))
        with pytest.raises(
            UserError, match="Layer '3' gave 10 rows for 1 image ids: the network must see each image once"
        ):
            collector.update([0])
        collector.update(range(10))
        with pytest.raises(UserError, match="has produced no output yet"):
            collector.update(range(10, 20))  # no pass in between


def test_order_of_use() -> None:
    collector = ActivationCollector("3")
    with pytest.raises(RuntimeError, match="needs an attached collector"):
        collector.update([0])
    layers = network()
    collector.attach(layers)
    with pytest.raises(RuntimeError, match="already attached"):
        collector.attach(layers)
    collector.detach()
    collector.detach()
    with pytest.raises(UserError, match="No image was recorded for layer 3"):
        collector.result()
    for wrong in ({"top_k": 0}, {"pool": "mean"}):
        with pytest.raises(UserError):
            ActivationCollector("3", **wrong)  # type: ignore[arg-type]


def test_an_exception_leaves_neither_hooks_nor_files(tmp_path: Path) -> None:
    layers = network()
    collector = ActivationCollector("all", keep_values=True, store_dir=tmp_path)

    def interrupted() -> None:
        with torch.no_grad(), collector.on(layers):
            layers(images(3))
            collector.update(range(3))
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers.modules())


def test_training_mode_and_batchnorm_are_the_callers() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    collector = ActivationCollector("1")
    with collector.on(layers):
        layers(images(4))
        collector.update(range(4))
    assert layers.training
    assert layers[1].num_batches_tracked.item() == 1
    torch.testing.assert_close(collector.result()["1"].mean, torch.zeros(2), atol=1e-5, rtol=0.0)


# --- LayerActivations


def test_saved_and_loaded(tmp_path: Path) -> None:
    for name, store_dir in [("memory", None), ("disk", tmp_path / "store")]:
        collector = ActivationCollector(["3"], top_k=4, keep_values=True, store_dir=store_dir)
        before = collected(collector, torch.randperm(63))["3"]
        before.save(tmp_path / name)
        after = LayerActivations.load(tmp_path / name)
        assert after.layer == "3"
        for field in ("ids", "top_ids", "top_values", "mean", "std", "minimum", "maximum", "values"):
            assert torch.equal(getattr(after, field), getattr(before, field)), field
        assert json.loads((tmp_path / name / "layer.json").read_text()) == {
            "layer": "3",
            "images": 63,
            "neurons": 5,
            "values": True,
        }
        assert np.load(tmp_path / name / "values.npy").dtype == np.float32
    # the stored file was not copied, and is not written through
    assert os.stat(tmp_path / "disk" / "values.npy").st_nlink == 2
    assert after.values is not None
    after.values.zero_()
    assert torch.equal(LayerActivations.load(tmp_path / "disk").values, matrices()["3"])
    LayerActivations.of("x", torch.tensor([4]), torch.ones(1, 2)).save(tmp_path / "one")
    with pytest.raises(UserError, match=r"has no recorded layer: .*layer.json is missing"):
        LayerActivations.load(tmp_path / "nowhere")


def test_of_sorts_by_id() -> None:
    found = LayerActivations.of("x", torch.tensor([9, 4, 6]), torch.tensor([[1.0], [3.0], [2.0]]), top_k=2)
    assert found.ids.tolist() == [4, 6, 9]
    assert found.values is not None
    assert found.values.tolist() == [[3.0], [2.0], [1.0]]
    assert found.top_ids.tolist() == [[4], [6]]


def test_merging_disjoint_sets() -> None:
    matrix = matrices()["3"]
    whole = LayerActivations.of("3", IDS, matrix, top_k=10)
    odd, even = (LayerActivations.of("3", IDS[s::2], matrix[s::2], top_k=10) for s in (1, 0))
    merged = odd.merge(even)
    for field in ("ids", "top_ids", "top_values", "minimum", "maximum", "values"):
        assert torch.equal(getattr(merged, field), getattr(whole, field)), field
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.std, whole.std)
    assert merged.merge(LayerActivations.of("3", torch.tensor([1]), matrix[:1]), top_k=3).top_ids.shape == (3, 5)
    # both complete: all ranks are known, and top_k cuts them
    small, rest = (LayerActivations.of("3", IDS[s], matrix[s], top_k=100) for s in (slice(0, 4), slice(4, 63)))
    assert small.merge(rest).top_ids.shape == (63, 5)
    assert torch.equal(small.merge(rest, top_k=10).top_ids, whole.top_ids)


def test_merging_what_cannot_be_merged() -> None:
    one = LayerActivations.of("3", torch.tensor([1, 2, 3]), torch.rand(3, 2), top_k=1)
    with pytest.raises(ValueError, match="the same images"):
        one.merge(LayerActivations.of("3", torch.tensor([3]), torch.rand(1, 2)))
    with pytest.raises(ValueError, match="different layers"):
        one.merge(LayerActivations.of("4", torch.tensor([7]), torch.rand(1, 2)))
    with pytest.raises(ValueError, match="kept only 1"):
        one.merge(LayerActivations.of("3", torch.tensor([7]), torch.rand(1, 2)), top_k=2)


def test_shapes_and_order_are_checked() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="do not fit"):
        LayerActivations(
            "3", torch.arange(3), torch.zeros(1, 2).long(), torch.zeros(1, 2), ones, ones, ones, torch.ones(3)
        )
    with pytest.raises(ValueError, match="not ascending"):
        LayerActivations("3", torch.tensor([2, 1]), torch.zeros(1, 2).long(), torch.zeros(1, 2), ones, ones, ones, ones)


# --- the store


def test_store_orders_rows_in_blocks_and_leaves_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randperm(50) * 3
    values = torch.randn(50, 4)
    store = ActivationStore(tmp_path / "deep" / "a.npy", neurons=4)
    for rows in torch.arange(50).split(7):
        store.append(ids[rows], values[rows])
    assert not (tmp_path / "deep" / "a.npy").exists()  # the final name means a whole file
    path = store.finish()
    assert [p.name for p in path.parent.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(path), values[ids.argsort()].numpy())
    in_order = ActivationStore(tmp_path / "b.npy", neurons=4)
    in_order.append(torch.arange(50), values)
    monkeypatch.setattr(store_module, "_rows_in_order", None)  # images that came in order are not moved
    assert np.array_equal(np.load(in_order.finish()), values.numpy())


def test_disk_space_is_checked_before_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2**29

    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(UserError, match=r"need 4\.00 GiB in .*, where 0\.50 GiB are free.*similarity=soft_wpmi"):
        ActivationStore(tmp_path / "a.npy", neurons=1024, images=2**20)
    assert list(tmp_path.iterdir()) == []
    ActivationStore(tmp_path / "a.npy", neurons=1024, images=2**17).discard()


def test_a_passing_folder_goes_and_takes_those_of_killed_recordings_along(tmp_path: Path) -> None:
    words = (
        "import sys, time, pathlib\n"
        "from emodissect.recording.store import scratch_dir\n"
        f"with scratch_dir(pathlib.Path({str(tmp_path)!r}), sys.argv[1]) as folder:\n"
        "    folder.mkdir()\n"
        "    (folder / 'lin2.npy.unfinished').touch()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    recordings = {}
    for name in ("alive", "killed"):
        recordings[name] = subprocess.Popen([sys.executable, "-c", words, name], stdout=subprocess.PIPE, text=True)
    try:
        for recording in recordings.values():
            assert recording.stdout is not None
            assert recording.stdout.readline() == "ready\n"
        recordings["killed"].kill()
        recordings["killed"].wait()
        assert (tmp_path / "killed").exists()
        with store_module.scratch_dir(tmp_path, "mine") as folder:
            assert {path.name for path in tmp_path.iterdir()} == {"alive", "alive.lock", "mine.lock"}
            with store_module.scratch_dir(tmp_path, "mine", owner=False) as shared:
                assert shared == folder
            folder.mkdir()
        assert {path.name for path in tmp_path.iterdir()} == {"alive", "alive.lock"}
    finally:
        for recording in recordings.values():
            recording.kill()
            recording.communicate()

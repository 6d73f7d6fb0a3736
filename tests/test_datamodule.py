"""The data module: batches by index, probe sets with the same class proportions, and what cleaning leaves out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer

from emodissect.core.errors import UserError
from emodissect.data.datamodule import FaceDataModule, joined, stratified_rows
from emodissect.data.images import Annotations, Batch, ImageSet, Splits, workers_that_fit

NAMES = ("a", "b", "c")


def drawn(labels: list[int], first_id: int, kinds: tuple[str, ...] = ("votes",)) -> ImageSet:
    count = len(labels)
    generator = torch.Generator().manual_seed(first_id)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    values = torch.rand(count, 3, generator=generator)
    return ImageSet(
        images,
        torch.tensor(labels),
        torch.arange(first_id, first_id + count),
        {kind: Annotations(NAMES, values) for kind in kinds},
    )


class Drawn(FaceDataModule):
    """20 + 7 + 5 images; training image 3 is blank, 4 is a copy of 1, and 5 is also in test."""

    reads = 0

    def read(self) -> Splits:
        self.reads += 1
        train, val, test = drawn([0] * 12 + [1] * 6 + [2] * 2, 0), drawn([0, 1, 2] * 2 + [0], 100), drawn([2] * 5, 200)
        train.images[3] = 9
        train.images[4] = train.images[1]
        train.images[5] = test.images[2]
        val.images[6] = test.images[3]
        return Splits(train, val, test, NAMES)


@pytest.fixture
def make(tmp_path) -> Callable[..., Drawn]:
    return lambda **options: Drawn(cache_dir=tmp_path, class_names=NAMES, **options)


def test_train_batches_are_shuffled_whole_uint8_batches_with_their_ids(make):
    data = make(batch_size=8)
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, Batch) and batch.images.dtype == torch.uint8 for batch in batches)
    assert [len(batch.ids) for batch in batches] == [8, 8, 4]
    ids = torch.cat([batch.ids for batch in batches])
    assert sorted(ids.tolist()) == list(range(20))
    assert ids.tolist() != list(range(20))
    for batch in batches:
        assert torch.equal(batch.images, data.splits.train.images[batch.ids])
        assert torch.equal(batch.labels, data.splits.train.labels[batch.ids])
    assert data.reads == 1


def test_evaluation_batches_keep_their_order(make):
    data = make(eval_batch_size=4)
    assert torch.cat([batch.ids for batch in data.val_dataloader()]).tolist() == list(range(100, 107))
    assert torch.cat([batch.ids for batch in data.test_dataloader()]).tolist() == list(range(200, 205))


def test_workers_whose_batches_do_not_fit_into_shared_memory_are_left_out(make, monkeypatch, caplog, tmp_path):
    images = make().splits.train
    batch = 10 * (images.images[0].numel() + 8 + 8)
    for free, workers in ((0, 0), (3 * batch, 1), (7 * batch, 2), (2**30, 4)):
        caplog.clear()
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert workers_that_fit(images, 10, 4, tmp_path) == workers
        assert (f"data.num_workers={workers} is used" in caplog.text) is (workers < 4)
    assert workers_that_fit(images, 10, 4, tmp_path / "not on this system") == 4


def test_fit_on_train_and_val(make):
    ids = torch.cat([batch.ids for batch in make(fit_on="train+val").train_dataloader()])
    assert sorted(ids.tolist()) == [*range(20), *range(100, 107)]


def test_what_is_trained_on_is_clean_in_each_of_its_splits(make):
    data = make(fit_on="train+val", clean=True)
    assert data.fitted().ids.tolist() == [*(i for i in range(20) if i not in (3, 4, 5)), *range(100, 106)]
    assert len(data.splits.val) == 7  # and judged on whole


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=7),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_probe_rows_keep_the_shares_within_one_image_and_are_nested(counts, share, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    limit = max(1, round(share * len(labels)))
    rows = stratified_rows(labels, limit, seed)
    assert len(rows.unique()) == limit
    assert torch.equal(rows, rows.sort().values)
    assert torch.equal(rows, stratified_rows(labels, limit, seed))
    taken = torch.bincount(labels[rows], minlength=len(counts))
    if limit >= len(counts):
        assert taken.min() >= 1
    # Image j of n has the place j / n: with t the place of the last one taken, a class has ceil(n t) or one more.
    place = max((n - 1) / c for n, c in zip(taken.tolist(), counts, strict=True) if n)
    for n, c in zip(taken.tolist(), counts, strict=True):
        assert place * c - 1 <= n <= place * c + 1 + 1e-9
    if limit > 1:
        assert set(stratified_rows(labels, limit - 1, seed).tolist()) < set(rows.tolist())


def test_probe_of_10_of_20_images_is_6_3_1(make):
    probe = make().probe("train", limit=10, seed=3)
    assert torch.bincount(probe.labels).tolist() == [6, 3, 1]
    assert set(probe.ids.tolist()) != set(make().probe("train", limit=10, seed=4).ids.tolist())
    assert probe.annotations["votes"].values.shape == (10, 3)


def test_probe_of_two_splits_and_of_everything(make):
    probe = make().probe("train+val")
    assert probe.ids.tolist() == [*range(20), *range(100, 107)]
    assert torch.equal(probe.annotations["votes"].values[20:], make().splits.val.annotations["votes"].values)


def test_joined_keeps_only_the_annotations_that_all_have():
    both = joined([drawn([0], 0, ("votes", "presence")), drawn([1], 1, ("votes",))])
    assert list(both.annotations) == ["votes"]


def test_clean_leaves_faults_out_of_training_and_probe_sets_only(make):
    data = make(clean=True)
    assert data.splits.train.ids.tolist() == [i for i in range(20) if i not in (3, 4, 5)]
    assert len(data.splits.val) == 7
    assert len(data.splits.test) == 5
    assert data.probe("val").ids.tolist() == list(range(100, 106))
    assert data.probe("train").ids.tolist() == data.splits.train.ids.tolist()
    assert len(data.splits_as_read.train) == 20
    assert len(data.evaluation_images("val")) == 7
    assert data.evaluation_images("val+test").ids.tolist() == [
        *data.splits.val.ids.tolist(),
        *data.splits.test.ids.tolist(),
    ]
    with pytest.raises(UserError, match="'tset' was given as images to evaluate on"):
        data.evaluation_images("tset")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "data.batch_size=0"), ({"fit_on": "trian"}, "Did you mean 'train'")],
)
def test_wrong_options_are_reported(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("split", "limit", "message"),
    [
        ("vla", None, "Did you mean 'val'"),
        ("train+train", None, "named twice"),
        ("train", 0, "probe.limit=0: must be an integer >= 1"),
    ],
)
def test_wrong_probe_is_reported(make, split, limit, message):
    with pytest.raises(UserError, match=message):
        make().probe(split, limit)


class _Seen(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.ids: list[int] = []
        self.devices: set[str] = set()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.ids += batch.ids.tolist()
        self.devices.add(batch.images.device.type)
        return self.scale * batch.images.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


QUIET = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def test_lightning_trains_on_it_with_the_tensors_on_the_device(make, tmp_path):
    seen = _Seen()
    Trainer(accelerator="auto", devices=1, default_root_dir=tmp_path, **QUIET).fit(seen, make(on_device=True))
    assert sorted(seen.ids) == list(range(20))


def test_tensors_go_to_the_trainers_device_once(make, monkeypatch):
    """The meta device stands in for an accelerator: the loader must hold the moved tensors, without workers."""
    data = make(on_device=True, num_workers=4)

    class _Strategy:
        root_device = torch.device("meta")

    class _Trainer:
        strategy = _Strategy()

    data.trainer = _Trainer()
    moved: list[torch.device] = []

    def loader(images, batch_size, shuffle=False, num_workers=0, pin_memory=False):
        moved.append(images.images.device)
        assert num_workers == 0
        assert not pin_memory

    monkeypatch.setattr("emodissect.data.datamodule.image_loader", loader)
    monkeypatch.setattr(ImageSet, "__post_init__", lambda self: None)
    data.test_dataloader()
    assert moved == [torch.device("meta")]

"""Images larger than memory: reading from the file gives the same as a tensor."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from emodissect.data.audit import audit_splits
from emodissect.data.datamodule import joined
from emodissect.data.images import ImageSet, Splits, image_loader
from emodissect.data.stored_images import ImageWriter, StoredImages


def pixels(count: int = 40, side: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def written(path: Path, images: Tensor) -> StoredImages:
    with ImageWriter(path, images.shape[1:], len(images)) as writer:
        for image in images:
            writer.add(image)
    return StoredImages(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, StoredImages]:
    images = pixels()
    return images, written(tmp_path_factory.mktemp("stored") / "images.npy", images)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(-40, 39), max_size=50), start=st.integers(-50, 50), stop=st.integers(-50, 50))
def test_every_index_gives_what_a_tensor_gives(pair, rows, start, stop):
    images, stored = pair
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(stored[index], images[index])
    assert torch.equal(stored[rows], images[rows])
    assert torch.equal(stored[start:stop], images[start:stop])
    assert torch.equal(stored[start % 40], images[start % 40])
    assert torch.equal(stored.at(index)[::2], images[index][::2])


def test_a_stored_set_is_the_set_in_memory(pair):
    images, stored = pair
    labels, ids = torch.arange(40) % 3, torch.arange(40) + 7
    in_memory, on_disk = ImageSet(images, labels, ids), ImageSet(stored, labels, ids)
    assert on_disk.fingerprint() == in_memory.fingerprint()
    rows = torch.tensor([9, 3, 30])
    part = on_disk.subset(rows)
    assert isinstance(part.images, StoredImages)
    assert part.fingerprint() == in_memory.subset(rows).fingerprint()
    both = joined([part, on_disk.subset([0, 1])])
    assert isinstance(both.images, StoredImages)
    assert torch.equal(both.images[:], images[[9, 3, 30, 0, 1]])
    mixed = joined([part, in_memory.subset([0, 1])])
    assert torch.equal(mixed.images[:], both.images[:])
    parts = [on_disk.subset(range(a, b)) for a, b in ((0, 20), (20, 30), (30, 40))]
    whole = [in_memory.subset(range(a, b)) for a, b in ((0, 20), (20, 30), (30, 40))]
    names = ("a", "b", "c")
    assert audit_splits(Splits(*parts, names)).counts == audit_splits(Splits(*whole, names)).counts


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_read_batches_in_this_process_and_in_others(pair, workers):
    images, stored = pair
    loader = image_loader(ImageSet(stored, torch.zeros(40).long(), torch.arange(40)), 16, True, workers)
    assert isinstance(loader, DataLoader)
    seen = 0
    for batch in loader:
        assert torch.equal(batch.images, images[batch.ids])
        seen += len(batch.ids)
    assert seen == 40
    assert torch.equal(pickle.loads(pickle.dumps(stored))[:], images)  # workers that are spawned


def test_parts_of_a_batch_size_and_chunks_cover_the_set(pair):
    images, stored = pair
    assert [len(part) for part in stored.split(16)] == [16, 16, 8]
    assert torch.equal(torch.cat(list(stored.chunks())), images)
    assert stored.to("cpu").shape == stored.shape == images.shape


def test_a_file_that_was_cut_off_is_an_error_and_not_other_pixels(tmp_path):
    stored = written(tmp_path / "images.npy", pixels(4))
    with open(tmp_path / "images.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(OSError, match="ends too early"):
        stored[3]

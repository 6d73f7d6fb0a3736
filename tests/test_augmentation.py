"""Random changes of a batch: what they may do and what they may not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emodissect.errors import UserError
from emodissect.models.augmentation import Augmentation, FlipShift, Khaireddin2021, Warp


def random_images(count: int = 64, channels: int = 1, size: int = 48) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def test_the_base_changes_nothing() -> None:
    images = random_images(2)
    assert Augmentation()(images) is images
    assert Augmentation().after_crop(images) is images


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_shift_is_one_of_the_allowed_shifts(channels: int) -> None:
    torch.manual_seed(0)
    images = random_images(40, channels, 12)
    changed = FlipShift(shift=2)(images)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    seen = set()
    for image, ours in zip(images, changed, strict=True):
        padded = torch.nn.functional.pad(image.float()[None], (2, 2, 2, 2), mode="replicate")[0]
        allowed = {}
        for top in range(5):
            for left in range(5):
                window = padded[:, top : top + 12, left : left + 12].to(torch.uint8)
                allowed[top, left, False], allowed[top, left, True] = window, window.flip(-1)
        found = [how for how, candidate in allowed.items() if torch.equal(candidate, ours)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 20
    assert {mirrored for *_, mirrored in seen} == {True, False}


def test_flip_shift_of_nothing_is_the_identity() -> None:
    images = random_images(4)
    assert torch.equal(FlipShift(shift=0, flip=0.0)(images), images)
    assert torch.equal(FlipShift(shift=0, flip=1.0)(images), images.flip(-1))


def test_warp_of_nothing_is_the_identity_and_flip_is_a_mirror() -> None:
    images = random_images(4)
    values = images.float() / 255
    torch.testing.assert_close(Warp(0, 0, 0, flip=0.0)(images), values, rtol=0, atol=1e-4)
    torch.testing.assert_close(Warp(0, 0, 0, flip=1.0)(images), values.flip(-1), rtol=0, atol=1e-4)


def test_warp_turns_by_degrees_and_shifts_by_a_fraction() -> None:
    images = torch.zeros(200, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 20, 30] = 255  # ten pixels right of the middle
    turned = Warp(degrees=30, scale=0, shift=0, flip=0.0)(images)
    rows, columns = (torch.arange(41.0)[:, None] - 20), (torch.arange(41.0)[None] - 20)
    mass = turned.sum(dim=(1, 2, 3))
    angle = torch.atan2((turned[:, 0] * rows).sum((1, 2)) / mass, (turned[:, 0] * columns).sum((1, 2)) / mass)
    assert float(angle.abs().max().rad2deg()) == pytest.approx(30, abs=3)
    shifted = Warp(degrees=0, scale=0, shift=0.1, flip=0.0)(images)
    offset = (shifted[:, 0] * columns).sum((1, 2)) / shifted.sum(dim=(1, 2, 3)) - 10
    assert float(offset.abs().max()) == pytest.approx(4.1, abs=0.3)


@pytest.mark.parametrize("augment", [FlipShift(), Warp(erase=0.5), Khaireddin2021()])
def test_a_seed_settles_it_and_values_stay_in_range(augment: Augmentation) -> None:
    images = random_images(16)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment.after_crop(augment(images).float()))
    assert torch.equal(*results)
    whole = augment(images)
    assert whole.shape == images.shape
    top = 255 if whole.dtype == torch.uint8 else 1 + 1e-5
    assert float(whole.min()) >= -1e-5
    assert float(whole.max()) <= top
    assert not torch.equal(whole[0].float(), whole[1].float())


def test_the_published_recipe_erases_each_crop_by_itself() -> None:
    torch.manual_seed(0)
    crops = torch.ones(400, 1, 40, 40)
    erased = (Khaireddin2021().after_crop(crops) == 0).flatten(1).float().mean(dim=1)
    assert 0.4 < float((erased > 0).float().mean()) < 0.6
    assert float(erased[erased > 0].min()) > 0.015
    assert float(erased.max()) < 0.35


def test_scales_above_one_keep_within_the_image() -> None:
    torch.manual_seed(0)
    recipe = Khaireddin2021(shift_p=0.0, flip=0.0, rotate_p=0.0)
    whole = recipe(torch.full((200, 1, 48, 48), 255, dtype=torch.uint8))
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-4)  # never a black border


def test_chances_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment\.flip=2"):
        FlipShift(flip=2)
    with pytest.raises(UserError, match="scale=1"):
        Warp(scale=1)

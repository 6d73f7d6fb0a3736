"""Augmentation of batches: which changes can occur, how often, and which must not."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from emodissect.core.errors import UserError
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


# -- how often and how far: the draws themselves ---------------------------------------------------------------------


def ramps(count: int, size: int = 48) -> Tensor:
    """Images whose three channels hold x, y (pixels from the middle, scaled into [0, 1]) and ones."""
    place = (torch.arange(size) - (size - 1) / 2) / size + 0.5
    return torch.stack([place.expand(size, size), place[:, None].expand(size, size), torch.ones(size, size)]).repeat(
        count, 1, 1, 1
    )


def maps_of(changed: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map of each changed ramp, in pixels: where its point (x, y) came from, (2, 2) and (2,).

    Least squares over the points whose surroundings came from inside the image, where bilinear reading is exact.
    """
    size = changed.shape[-1]
    place = torch.arange(size) - (size - 1) / 2
    here = torch.stack([place.expand(size, size), place[:, None].expand(size, size), torch.ones(size, size)])
    points = here.flatten(1).T
    linear, offset = [], []
    for image in changed:
        whole = image[2].flatten() > 0.9999
        x, y = image[0].flatten(), image[1].flatten()
        inside = whole & (x > 0.02) & (x < 0.98) & (y > 0.02) & (y < 0.98)
        from_where = (image[:2].flatten(1).T - 0.5) * size
        found = torch.linalg.lstsq(points[inside], from_where[inside]).solution
        linear.append(found[:2].T)
        offset.append(found[2])
    return torch.stack(linear), torch.stack(offset)


def uniform_p(values: Tensor, low: float, high: float) -> float:
    """The p-value of a Kolmogorov-Smirnov test that values are uniform over an interval."""
    return float(stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue)


def near(share: float, chance: float, count: int) -> bool:
    """Whether a share of ``count`` draws is within four standard errors of its chance."""
    return abs(share - chance) <= 4 * (chance * (1 - chance) / count) ** 0.5


def test_flip_shift_draws_each_shift_as_often_and_mirrors_half() -> None:
    torch.manual_seed(0)
    size = 24
    columns = torch.arange(size, dtype=torch.uint8).expand(size, size)
    images = torch.stack([columns, columns.T]).repeat(8000, 1, 1, 1)
    changed = FlipShift(shift=4, flip=0.3)(images)
    middle = changed[:, 0, size // 2, :].int()
    mirrored = middle[:, size // 2] < middle[:, size // 2 - 1]
    assert near(float(mirrored.float().mean()), 0.3, len(images))
    across = torch.where(mirrored, middle[:, size // 2 - 1], middle[:, size // 2]) - size // 2
    down = changed[:, 1, size // 2, size // 2].int() - size // 2
    for shifts in (across, down):
        counts = torch.bincount(shifts + 4, minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([across, down]).float())[0, 1])) < 0.04


def test_warp_draws_angle_zoom_and_shift_evenly() -> None:
    torch.manual_seed(0)
    changed = Warp(degrees=10, scale=0.1, shift=0.1, flip=0.3)(ramps(1500))
    linear, offset = maps_of(changed)
    assert near(float((torch.linalg.det(linear) < 0).float().mean()), 0.3, 1500)
    zoom = torch.linalg.det(linear).abs().sqrt()
    assert uniform_p(zoom, 0.9, 1.1) > 1e-3
    angle = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1]).rad2deg()
    assert uniform_p(angle, -10, 10) > 1e-3
    for axis in range(2):
        assert uniform_p(offset[:, axis], -4.8, 4.8) > 1e-3


def test_the_published_resized_crop_is_torchvisions() -> None:
    torch.manual_seed(0)
    changed = Khaireddin2021(shift_p=0, flip=0, rotate_p=0)(ramps(2000))
    linear, offset = maps_of(changed)
    # Width, height and place of each crop in whole pixels; kornia lays the corners of the crop on the image's corners.
    ours = torch.stack([linear[:, 0, 0] * 47 + 1, linear[:, 1, 1] * 47 + 1, offset[:, 0], offset[:, 1]])
    assert float((ours[:2] - ours[:2].round()).abs().max()) < 0.05
    crop = v2.RandomResizedCrop(48, scale=(0.8, 1.2))
    drawn = [crop.make_params([torch.zeros(1, 48, 48)]) for _ in range(2000)]
    theirs = torch.tensor(
        [(d["width"], d["height"], d["left"] + (d["width"] - 48) / 2, d["top"] + (d["height"] - 48) / 2) for d in drawn]
    ).T
    for mine, reference in zip(ours, theirs, strict=True):
        assert float(mine.mean()) == pytest.approx(float(reference.mean()), abs=0.3)
        assert float(mine.std()) == pytest.approx(float(reference.std()), rel=0.1)
    area = ours[0] * ours[1] / 48**2
    assert 0.77 < float(area.min()) < 0.82  # whole pixels: a little under 0.8
    assert float(area.max()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("chance", [0.5, 1.0])
def test_the_published_shift_and_rotation_come_as_often_and_as_far_as_said(chance: float) -> None:
    torch.manual_seed(0)
    alone = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
    _, offset = maps_of(Khaireddin2021(**alone, shift=0.2, shift_p=chance, rotate_p=0)(ramps(1000)))
    moved = offset.abs().amax(dim=1) > 1e-3
    assert near(float(moved.float().mean()), chance, 1000)
    for axis in range(2):
        assert uniform_p(offset[moved, axis], -9.6, 9.6) > 1e-3
    linear, _ = maps_of(Khaireddin2021(**alone, shift_p=0, degrees=10, rotate_p=chance)(ramps(1000)))
    angle = torch.atan2(linear[:, 0, 1], linear[:, 0, 0]).rad2deg()
    turned = angle.abs() > 1e-2
    assert near(float(turned.float().mean()), chance, 1000)
    assert uniform_p(angle[turned], -10, 10) > 1e-3


def test_the_published_mirror_comes_half_the_time() -> None:
    torch.manual_seed(0)
    recipe = Khaireddin2021(scale=(1.0, 1.0), ratio=(1.0, 1.0), shift_p=0, rotate_p=0)
    changed = recipe(ramps(1000))
    assert near(float((changed[:, 0, 24, 40] < 0.5).float().mean()), 0.5, 1000)


def test_erased_rectangles_are_as_large_and_as_wide_as_torchvisions() -> None:
    torch.manual_seed(0)
    ours = (Khaireddin2021(erase=1.0).after_crop(torch.ones(2000, 1, 40, 40)) == 0)[:, 0]
    erasing = v2.RandomErasing(p=1.0)
    theirs = torch.stack([erasing(torch.ones(1, 40, 40))[0] == 0 for _ in range(2000)])
    for found in (ours, theirs):
        assert (found.flatten(1).any(dim=1)).all()
    sizes = [torch.stack([e.any(dim=2).sum(1), e.any(dim=1).sum(1), e.sum((1, 2))]).float() for e in (ours, theirs)]
    for mine, reference in zip(*sizes, strict=True):  # height, width, area
        assert float(mine.mean()) == pytest.approx(float(reference.mean()), rel=0.1)
        assert float(mine.std()) == pytest.approx(float(reference.std()), rel=0.1)

"""From uint8 images to network inputs, compared with PIL and with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import TenCrop

from emodissect.core.errors import UserError
from emodissect.models.preprocessing import Preprocess


def random_images(count: int = 3, channels: int = 1, size: int = 48, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def by_pil(images: Tensor, size: int) -> Tensor:
    """Image by image with PIL, as in the published study."""
    small = [
        np.asarray(Image.fromarray(image[0].numpy(), "L").resize((size, size), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(small))[:, None].float() / 255


@settings(max_examples=40, deadline=None)
@given(size=st.integers(8, 70), given_size=st.integers(12, 60), seed=st.integers(0, 99))
def test_resize_is_pils_up_to_its_rounding(size: int, given_size: int, seed: int) -> None:
    images = random_images(2, size=given_size, seed=seed)
    ours = Preprocess(size)(images)
    assert ours.shape == (2, 1, size, size)
    # PIL rounds to whole levels, once along each axis.
    assert float((ours - by_pil(images, size)).abs().max()) <= 1.01 / 255


def test_the_size_of_the_data_is_passed_on_exactly() -> None:
    images = random_images()
    assert torch.equal(Preprocess(48)(images), images.float() / 255)
    assert torch.equal(Preprocess(None)(images), images.float() / 255)


def test_float_images_are_taken_as_values() -> None:
    images = random_images()
    torch.testing.assert_close(Preprocess(40)(images.float() / 255), Preprocess(40)(images))


def test_the_batch_is_left_as_it_was() -> None:
    images = torch.rand(2, 1, 40, 40)
    kept = images.clone()
    Preprocess(40, mean=0.5, std=0.2)(images)
    assert torch.equal(images, kept)


def test_crop_takes_the_middle() -> None:
    images = random_images()
    assert torch.equal(Preprocess(40, how="crop")(images), images[:, :, 4:44, 4:44].float() / 255)


def test_crop_from_resizes_first() -> None:
    images = random_images(size=96)
    expected = Preprocess(48)(images)[:, :, 4:44, 4:44]
    assert torch.equal(Preprocess(40, how="crop", crop_from=48)(images), expected)


def test_grey_is_repeated_and_rgb_is_weighted() -> None:
    grey = random_images()
    rgb = Preprocess(48, channels=3)(grey)
    assert rgb.shape == (3, 3, 48, 48)
    assert torch.equal(rgb[:, 2], rgb[:, 0])
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)[:, :, None, None]
    values = Preprocess(None, channels=1)(colours.expand(3, 3, 4, 4))
    torch.testing.assert_close(values[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114]))
    with pytest.raises(UserError, match="2 channels"):
        Preprocess(48)(random_images(channels=2))


def test_mean_and_std_by_channel() -> None:
    images = torch.full((1, 1, 4, 4), 51, dtype=torch.uint8)  # 0.2
    values = Preprocess(4, channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 0.1])(images)
    torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([0.2, 0.0, -1.0]))


def test_ten_crops_are_the_corners_the_middle_and_their_mirror_images() -> None:
    images = random_images()
    crops = Preprocess(40, views="ten_crop", mean=0.5, std=0.25).crops(images)
    assert crops.shape == (10, 3, 1, 40, 40)
    values = (images.float() / 255 - 0.5) / 0.25
    expected = []
    for mirrored in (False, True):
        whole = values.flip(-1) if mirrored else values
        corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
        expected += [whole[:, :, top : top + 40, left : left + 40] for top, left in corners]
    for crop in expected:
        assert any(torch.allclose(crop, ours) for ours in crops)


def test_ten_crops_of_a_batch_are_torchvisions_of_each_image() -> None:
    images = random_images()
    ours = Preprocess(40, views="ten_crop").crops(images)
    one_by_one = [torch.stack(TenCrop(40)(image)) for image in images.float() / 255]
    assert torch.equal(ours, torch.stack(one_by_one, dim=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "resise"}, "Did you mean 'resize'"),
        ({"views": "tencrop"}, "Did you mean 'ten_crop'"),
        ({"channels": 2}, "channels=2"),
        ({"size": 0}, "size=0"),
        ({"std": 0.0}, "above 0"),
        ({"mean": [0.1, 0.2]}, "2 values for 1 channels"),
        ({"size": None, "views": "ten_crop"}, "needs model.preprocess.size"),
    ],
)
def test_what_is_not_accepted_is_said(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocess(**arguments)


def test_a_crop_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"40x40 does not fit images of 32x32.*crop_from to 48"):
        Preprocess(40).crops(random_images(size=32))

"""The two transforms, against torchvision where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_ds.config import DataConfig
from aurora_ds.data import image as images
from aurora_ds.data.colours import draw_colours, with_colours
from aurora_ds.data.decode import open_image
from aurora_ds.data.image import Augmentation

PHOTO = Path(__file__).parent / "photos/images/vg_5.jpg"
LIMIT = 100_000_000


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return open_image(PHOTO.read_bytes(), LIMIT, "photo")


def test_test_transform_is_torchvisions(photo: Image.Image) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.Resize((64, 64), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(images.MEAN, images.DEVIATION),
        ]
    )(photo)
    ours = images.test_transform(photo, 64)
    assert ours.dtype == torch.float32 and ours.shape == (3, 64, 64)
    assert torch.equal(ours, theirs)


def test_crops_have_torchvisions_distribution() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    blank, draws = torch.zeros(3, 60, 200), 4000
    crop = transforms.RandomResizedCrop(8)
    torch.manual_seed(0)
    theirs = np.array(
        [crop.get_params(blank, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(draws)]
    )  # top, left, h, w
    random = np.random.default_rng(0)
    ours = np.array([images.random_crop(200, 60, (0.5, 1.0), random) for _ in range(draws)])[:, [1, 0, 3, 2]]
    # the picture is wide, so the central fallback is common: both rules are seen
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 1.5
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 1.5


@pytest.mark.parametrize("size", [(200, 60), (60, 200), (1, 1), (7, 500), (300, 301)])
def test_crops_stay_inside_the_image(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        left, top, width, height = images.random_crop(*size, (0.2, 1.0), random)
        assert left >= 0 and top >= 0 and width > 0 and height > 0
        assert left + width <= size[0] and top + height <= size[1]


def test_train_transform_depends_on_the_generator_only(photo: Image.Image) -> None:
    first, again, other = (
        images.train_transform(photo, 48, np.random.Generator(np.random.Philox(key))) for key in (1, 1, 2)
    )
    assert first.shape == (3, 48, 48) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_flip_and_crop_can_be_switched_off(photo: Image.Image) -> None:
    plain = images.train_transform(
        photo.crop((0, 0, 400, 400)), 48, np.random.default_rng(0), Augmentation((1.0, 1.0), False, False)
    )
    flips = [
        images.train_transform(photo, 48, np.random.default_rng(n), Augmentation((0.99, 1.0), True, False))
        for n in range(20)
    ]
    kept = [
        images.train_transform(photo, 48, np.random.default_rng(n), Augmentation((0.99, 1.0), False, False))
        for n in range(20)
    ]
    same = sum(torch.equal(one, two) for one, two in zip(flips, kept, strict=True))
    assert plain.shape == (3, 48, 48) and 3 <= same <= 17


def test_to_pixels_undoes_to_tensor(photo: Image.Image) -> None:
    pixels = np.asarray(photo.resize((31, 17)))
    assert np.array_equal(images.to_pixels(images.to_tensor(pixels)), pixels)


EVE_RANDAUGMENT = Augmentation(randaugment_level=7)
EVE_COLOURS = Augmentation(randaugment=False, colour_jitter=0.4)


@pytest.mark.parametrize("augmentation", [EVE_RANDAUGMENT, EVE_COLOURS])
def test_eves_augmentations_depend_on_the_generator_only(
    photo: Image.Image, augmentation: Augmentation
) -> None:
    first, again, other = (
        images.train_transform(photo, 48, np.random.default_rng(key), augmentation) for key in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_colours_change_by_torchvisions_rule(photo: Image.Image) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    theirs = {
        "Brightness": functional.adjust_brightness,
        "Contrast": functional.adjust_contrast,
        "Color": functional.adjust_saturation,
    }
    for number in range(6):
        changes = draw_colours(0.4, np.random.default_rng(number))
        expected = photo
        for what, factor in changes:
            expected = theirs[what](expected, factor)
        assert np.array_equal(with_colours(photo, changes), expected)


def test_colours_are_drawn_evenly_and_in_any_order() -> None:
    random = np.random.default_rng(0)
    draws = [draw_colours(0.4, random) for _ in range(600)]
    orders = [tuple(what for what, _ in changes) for changes in draws]
    assert len(set(orders)) == 6 and min(map(orders.count, set(orders))) > 60
    for what in ("Brightness", "Contrast", "Color"):
        factors = np.array([dict(changes)[what] for changes in draws])
        assert 0.6 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4 and abs(factors.mean() - 1) < 0.03


def test_the_jitter_of_colours_changes_colours_alone(photo: Image.Image) -> None:
    square = photo.crop((0, 0, 300, 300))
    plain, changed = (
        images.to_pixels(
            images.train_transform(
                square, 48, np.random.default_rng(3), Augmentation((1.0, 1.0), False, False, 5, strength)
            )
        )
        for strength in (0.0, 0.4)
    )
    random = np.random.default_rng(3)
    images.random_crop(300, 300, (1.0, 1.0), random)
    expected = with_colours(Image.fromarray(plain), draw_colours(0.4, random))
    assert np.array_equal(changed, expected) and not np.array_equal(changed, plain)


def test_levels_and_jitter_are_read_from_the_configuration() -> None:
    data = DataConfig(randaugment_level=7, colour_jitter=0.3, horizontal_flip=False, crop_scale=(0.6, 0.9))
    assert Augmentation.of(data) == Augmentation((0.6, 0.9), False, True, 7, 0.3)
    assert Augmentation.of(DataConfig()) == images.PUBLISHED

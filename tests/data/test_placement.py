"""Images and boxes in the square of visual grounding: recorded geometry, exact arithmetic, and that pixels and boxes
move alike."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aurora_ds.config import GroundingConfig
from aurora_ds.data.image import DEVIATION, MEAN
from aurora_ds.data.placement import Placement, centred, drawn, exchanged_sides

GOLDENS = Path(__file__).parents[1] / "goldens" / "mplug" / "h_text_and_data"
RECORDED = json.loads((GOLDENS / "grounding_transforms.json").read_text())
WHITE = [(1 - mean) / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)]


def generator(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


def draw(
    number: int, phrase: str = "the dog", mirror: bool = True, **options: float
) -> tuple[Placement, str]:
    """The placement of an image of 200 x 120 with a box at 60 to 100, 30 to 90."""
    return drawn(
        200, 120, (60, 30, 100, 90), phrase, 96, GroundingConfig(**options), mirror, generator(number)
    )


def marked(box: tuple[int, int, int, int]) -> Image.Image:
    """A black image of 200 x 120 that is white inside the box."""
    pixels = np.zeros((120, 200, 3), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "case", RECORDED["eval_resize_long_side_then_centre_pad"], ids=lambda c: f"{c['width']}"
)
def test_recorded_places_of_evaluation(case):
    placement = centred(case["width"], case["height"], case["size"])
    left, top, right, bottom = case["valid_region_left_top_right_bottom"]
    assert (placement.left, placement.top) == (left, top)
    assert (placement.left + placement.width, placement.top + placement.height) == (right, bottom)
    x0, y0, x1, y1 = placement.into(tuple(case["box_xyxy"]))
    found = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    assert found == pytest.approx(case["out_box_cxcywh"], abs=1e-7)


@pytest.mark.parametrize("case", RECORDED["horizontal_flip"], ids=lambda case: case["text"])
def test_recorded_mirrored_boxes(case):
    width, height = case["width"], case["height"]
    placement = Placement(width, (0, 0, width, height), 1.0, width, height, 0, 0, mirrored=True)
    assert [each * width for each in placement.into(tuple(case["box_xyxy"]))] == case["out_box"]


def test_left_and_right_change_places_as_words_alone():
    first, second = RECORDED["horizontal_flip"]
    assert exchanged_sides(first["text"]) == first["out_text"]
    # as recorded it would be `upleft`
    assert exchanged_sides(second["text"]) == "upright rightmost cat"
    assert (
        exchanged_sides("bright left-hand copyright, on the right")
        == "bright right-hand copyright, on the left"
    )


@pytest.mark.parametrize("size", [(200, 120), (77, 311), (5, 400), (96, 96)])
def test_the_way_back_from_the_square_is_exact(size):
    box = (size[0] * 0.2, size[1] * 0.1, size[0] * 0.7, size[1] * 0.9)
    for number in range(20):
        options = (box, "a thing", 96, GroundingConfig(crop_chance=0), True, generator(number))
        for placement in (centred(*size, 96), drawn(*size, *options)[0]):
            assert placement.back(placement.into(box)) == pytest.approx(box, abs=1e-9)


def test_the_way_back_is_cut_to_the_image():
    assert centred(200, 100, 100).back((-0.5, 0.0, 2.0, 1.0)) == (0, 0, 200, 100)


def test_pixels_and_boxes_go_the_same_way():
    """Inside the box that comes with it every image is white, outside black, within the width of a filter."""
    cropped = mirrored = 0
    for number in range(60):
        placement, _ = draw(number, colour_jitter=0)
        planes = np.empty((3, 96, 96), np.float32)
        placement.write(marked((60, 30, 100, 90)), planes)
        left, top, right, bottom = (96 * each for each in placement.into((60, 30, 100, 90)))
        assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
        inside = planes[0, math.ceil(top + 1.5) : int(bottom - 1.5), math.ceil(left + 1.5) : int(right - 1.5)]
        assert inside.size and np.allclose(inside, WHITE[0], atol=0.05)
        planes[
            0,
            max(0, int(top - 1.5)) : math.ceil(bottom + 1.5),
            max(0, int(left - 1.5)) : math.ceil(right + 1.5),
        ] = 0
        assert planes[0].max() <= 0.05
        cropped += placement.region != (0, 0, 200, 120)
        mirrored += placement.mirrored
    assert 10 < cropped < 50 and 10 < mirrored < 50


def test_a_crop_holds_the_middle_of_its_box_and_the_box_is_cut_to_it():
    seen = 0
    for number in range(200):
        box = (150.0, 80.0, 198.0, 118.0)
        placement, _ = drawn(
            200, 120, box, "a dog", 96, GroundingConfig(crop_chance=1), False, generator(number)
        )
        left, top, right, bottom = placement.region
        assert left < 174 < right and top < 99 < bottom
        x0, y0, x1, y1 = (96 * each for each in placement.into(box))
        assert x0 - placement.left == pytest.approx((150 - left if left < 150 else 0) * placement.scale)
        assert x1 - placement.left == pytest.approx((min(198, right) - left) * placement.scale)
        assert y1 - placement.top == pytest.approx((min(118, bottom) - top) * placement.scale)
        seen += right < 198 or bottom < 118
    assert seen > 10, "no crop cut the box"


@pytest.mark.parametrize("phrase", ["man on the left", "top shelf", "the rightmost cup", "middle one"])
def test_images_whose_phrase_names_a_place_are_not_cropped(phrase):
    assert all(draw(number, phrase)[0].region == (0, 0, 200, 120) for number in range(40))


def test_words_that_only_hold_the_name_of_a_place_do_not_keep_from_cropping():
    assert any(draw(number, "bright laptop")[0].region != (0, 0, 200, 120) for number in range(40))


def test_sizes_places_and_colours_are_drawn_as_published():
    placements = [draw(number, "left dog")[0] for number in range(300)]
    assert {placement.width for placement in placements} == {96 - 4 * step for step in range(7)}
    rooms = [(96 - placement.width, 96 - placement.height) for placement in placements]
    assert all(0 <= p.left <= x and 0 <= p.top <= y for p, (x, y) in zip(placements, rooms, strict=True))
    assert any(p.top == 0 for p in placements) and any(
        p.top == y for p, (_, y) in zip(placements, rooms, strict=True)
    )
    share = sum(bool(placement.colours) for placement in placements) / 300
    assert 0.7 < share < 0.9
    factors = [factor for placement in placements for _, factor in placement.colours]
    assert 0.6 <= min(factors) < 0.65 and 1.35 < max(factors) <= 1.4


def test_the_phrase_follows_the_image():
    for number in range(40):
        placement, phrase = draw(number, "left dog")
        assert phrase == ("right dog" if placement.mirrored else "left dog")
        assert not draw(number, "left dog", mirror=False)[0].mirrored


def test_padding_is_the_mean_colour():
    planes = np.full((3, 96, 96), np.nan, np.float32)
    placement = centred(200, 100, 96)
    placement.write(Image.new("RGB", (200, 100), (255, 255, 255)), planes)
    assert not planes[:, :24].any() and not planes[:, 72:].any()
    assert np.allclose(planes[:, 24:72], np.reshape(WHITE, (3, 1, 1)), atol=1e-6)

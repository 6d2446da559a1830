"""RandAugment's operations against OpenCV's, and the draws.

Tolerance: equal to OpenCV 4, the published dependency (tried with 4.10: no pixel differs). OpenCV 5 interpolates
without fixed point, so with it warps differ by rounding to 1/32 pixel: on average by less than 1, by no more than 8
anywhere.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from aurora_ds.data import randaugment
from aurora_ds.data.randaugment import OPERATIONS, rand_augment

FILL = (128, 128, 128)


@pytest.fixture(scope="module", params=["photo", "odd"])
def pixels(request: pytest.FixtureRequest) -> np.ndarray:
    if request.param == "odd":
        return np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    photo = Image.open(request.path.parent / "photos/images/chelsea.png").convert("RGB")
    return np.asarray(photo.resize((160, 160)))


def opencv_warp(cv2, pixels: np.ndarray, matrix) -> np.ndarray:
    size = (pixels.shape[1], pixels.shape[0])
    return cv2.warpAffine(pixels, np.asarray(matrix), size, borderValue=FILL, flags=cv2.INTER_LINEAR)


def assert_warp_equal(cv2, ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    if int(cv2.__version__.split(".")[0]) == 4:
        assert difference.max() == 0
    else:
        assert difference.max() <= 8 and difference.mean() < 1


@pytest.mark.parametrize("sign", [1, -1])
def test_warps_are_opencvs(pixels: np.ndarray, sign: int) -> None:
    cv2 = pytest.importorskip("cv2")
    slope, turn = sign * 0.15, sign * 15.0
    centre = (pixels.shape[1] / 2, pixels.shape[0] / 2)
    for ours, matrix in [
        (randaugment.shear_x(pixels, slope), np.float32([[1, slope, 0], [0, 1, 0]])),
        (randaugment.shear_y(pixels, slope), np.float32([[1, 0, 0], [slope, 1, 0]])),
        (randaugment.rotate(pixels, turn), cv2.getRotationMatrix2D(centre, turn, 1)),
    ]:
        assert_warp_equal(cv2, ours, opencv_warp(cv2, pixels, matrix))


def test_warps_are_those_recorded_from_opencv_4() -> None:
    """CRC-32 of what cv2 4.10 gives for this noise, so that equality is tested whichever OpenCV is here."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    assert zlib.crc32(randaugment.shear_x(noise, 0.15).tobytes()) == 548397440
    assert zlib.crc32(randaugment.shear_y(noise, -0.15).tobytes()) == 1163002493
    assert zlib.crc32(randaugment.rotate(noise, 15.0).tobytes()) == 1565309111


@pytest.mark.parametrize("shift", [5, -5, 1, 200])
def test_translations_are_opencvs(pixels: np.ndarray, shift: int) -> None:
    cv2 = pytest.importorskip("cv2")
    right = opencv_warp(cv2, pixels, np.float32([[1, 0, -shift], [0, 1, 0]]))
    down = opencv_warp(cv2, pixels, np.float32([[1, 0, 0], [0, 1, -shift]]))
    assert np.array_equal(randaugment.translate_x(pixels, shift), right)
    assert np.array_equal(randaugment.translate_y(pixels, shift), down)


def test_smoothing_is_opencvs(pixels: np.ndarray) -> None:
    cv2 = pytest.importorskip("cv2")
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    assert np.array_equal(randaugment.sharpness(pixels, 0.0), cv2.filter2D(pixels, -1, kernel / 13))


def test_equalize_follows_opencvs_histogram(pixels: np.ndarray) -> None:
    cv2 = pytest.importorskip("cv2")
    planes = []
    for plane in cv2.split(pixels):
        histogram = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel()
        step = histogram[histogram > 0][:-1].sum() // 255
        running, table = step // 2, []
        for count in histogram:
            table.append(min(running // step, 255) if step else len(table))
            running += count
        planes.append(np.asarray(table, dtype=np.uint8)[plane])
    assert np.array_equal(randaugment.equalize(pixels), cv2.merge(planes))


def test_auto_contrast_reaches_black_and_white() -> None:
    ramp = np.tile(np.arange(50, 151, dtype=np.uint8)[:, None, None], (1, 4, 3))
    stretched = randaugment.auto_contrast(ramp)
    assert stretched.min() == 0 and stretched.max() == 255
    expected = [int((value - 50) * 255 / 100 + 1e-9) for value in range(50, 151)]
    assert np.abs(stretched[:, 0, 0].astype(int) - expected).max() <= 1
    flat = np.full((4, 4, 3), 77, dtype=np.uint8)
    assert np.array_equal(randaugment.auto_contrast(flat), flat) and np.array_equal(
        randaugment.equalize(flat), flat
    )


def test_at_the_published_level_brightness_and_sharpness_change_nothing(pixels: np.ndarray) -> None:
    by_name = dict(OPERATIONS)
    for name in ("Identity", "Brightness", "Sharpness"):
        assert np.array_equal(by_name[name](pixels, 0.5, 1), pixels)


def test_other_levels_change_brightness_and_sharpness(pixels: np.ndarray) -> None:
    assert (randaugment.brightness(pixels, 0.5) <= pixels).all()
    blurred, sharpened = randaugment.sharpness(pixels, 0.5), randaugment.sharpness(pixels, 1.5)
    assert blurred.std() < pixels.std() < sharpened.std()


def test_input_is_not_changed_and_output_is_keyed_by_the_generator(pixels: np.ndarray) -> None:
    before = pixels.copy()
    results = [rand_augment(pixels, 2, 5, np.random.default_rng(n)) for n in (1, 1, 2, 3, 4, 5)]
    assert np.array_equal(pixels, before)
    assert np.array_equal(results[0], results[1])
    assert any(not np.array_equal(results[0], other) for other in results[2:])
    assert all(each.shape == pixels.shape and each.dtype == np.uint8 for each in results)


def test_operations_are_drawn_evenly_and_done_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float, int]] = []

    def recorder(name: str):
        return name, lambda pixels, share, sign: calls.append((name, share, sign)) or pixels

    monkeypatch.setattr(randaugment, "OPERATIONS", tuple(recorder(name) for name, _ in OPERATIONS))
    random, blank = np.random.default_rng(0), np.zeros((2, 2, 3), np.uint8)
    for _ in range(5000):
        rand_augment(blank, 2, 5, random)
    assert abs(len(calls) / 10_000 - 0.5) < 0.02
    shares = {name: sum(call[0] == name for call in calls) / len(calls) for name, _ in OPERATIONS}
    assert len(shares) == 10 and all(abs(share - 0.1) < 0.02 for share in shares.values())
    assert {share for _, share, _ in calls} == {0.5}
    assert abs(sum(sign for *_, sign in calls) / len(calls)) < 0.05


def test_at_eves_level_operations_have_the_published_strengths(pixels: np.ndarray) -> None:
    """M = 7: factors of 1.36, shears of 0.21, shifts of 7 pixels, turns of 21 degrees, to either side."""
    expected = {
        "Brightness": lambda sign: randaugment.brightness(pixels, 1.36),
        "Sharpness": lambda sign: randaugment.sharpness(pixels, 1.36),
        "ShearX": lambda sign: randaugment.shear_x(pixels, sign * 0.21),
        "ShearY": lambda sign: randaugment.shear_y(pixels, sign * 0.21),
        "TranslateX": lambda sign: randaugment.translate_x(pixels, sign * 7),
        "TranslateY": lambda sign: randaugment.translate_y(pixels, sign * 7),
        "Rotate": lambda sign: randaugment.rotate(pixels, sign * 21),
    }
    for name, operation in OPERATIONS:
        for sign in (-1, 1):
            found = operation(pixels, 7 / 10, sign)
            if name in expected:
                assert np.array_equal(found, expected[name](sign)) and not np.array_equal(found, pixels), name
    assert {name for name, _ in OPERATIONS} == {*expected, "Identity", "AutoContrast", "Equalize"}


def test_the_level_reaches_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: set[float] = set()
    recorders = tuple((name, lambda p, share, sign: shares.add(share) or p) for name, _ in OPERATIONS)
    monkeypatch.setattr(randaugment, "OPERATIONS", recorders)
    for number in range(20):
        rand_augment(np.zeros((2, 2, 3), np.uint8), 2, 7, np.random.default_rng(number))
    assert shares == {0.7}

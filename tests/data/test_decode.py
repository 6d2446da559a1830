"""What every kind of encoded image becomes: RGB pixels of the right size, or a named reason."""

from __future__ import annotations

import csv
import gc
import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aurora_ds.data import decode
from aurora_ds.data.decode import EXTENSIONS, TRIED, header, is_whole, open_image, open_with_extension
from aurora_ds.data.reader import BadSample
from aurora_ds.errors import AuroraError

HERE = Path(__file__).parent
PHOTO = HERE / "photos/images/vg_5.jpg"
LIMIT = 100_000_000
DECODERS = ("pillow", "simplejpeg")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def published(content: bytes) -> np.ndarray:
    """What the published code makes of the bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def outcome(content: bytes, decoder: str) -> np.ndarray | str:
    """Pixels, or the reason why there are none."""
    try:
        return np.asarray(open_image(content, LIMIT, "photo", decoder))
    except BadSample as bad:
        return bad.reason


# --- odd files -------------------------------------------------------------------------------------------------------

ODD = {
    "hopper.jpg": ("jpg", 128, 128),
    "hopper_gray.jpg": ("jpg", 128, 128),
    "hopper_orientation_6.jpg": ("jpg", 128, 128),
    "orientation_rectangle.jpg": ("jpg", 2, 1),
    "icc-after-SOF.jpg": ("jpg", 10, 10),
    "photoshop-200dpi-broken.jpg": ("jpg", 200, 200),
    "pil_sample_cmyk.jpg": ("jpg", 100, 100),
    "truncated_jpeg.jpg": "decode",
    "hopper.webp": ("webp", 128, 128),
    "hopper_orientation_6.webp": ("webp", 128, 128),
    "transparent.webp": ("webp", 200, 150),
    "hopper.gif": ("gif", 128, 128),
    "transparent.gif": ("gif", 200, 150),
    "no_palette.gif": ("gif", 1, 1),
    "zero_width.gif": "not_an_image",
    "1_trns.png": ("png", 64, 64),
    "l_trns.png": ("png", 64, 64),
    "i_trns.png": ("png", 64, 64),
    "rgb_trns.png": ("png", 64, 64),
    "p_16.png": ("png", 128, 128),
    "pil123p.png": ("png", 162, 150),
    "uncompressed_la.png": ("png", 128, 128),
    "tRNS_null_1x1.png": ("png", 1, 1),
    "7x13.png": ("png", 7, 13),
    "broken.png": "not_an_image",
    "transparency.avif": "not_an_image",
    "16bit.cropped.tif": "not_an_image",
}


def test_every_odd_file_is_in_the_table() -> None:
    assert {path.name for path in (HERE / "odd").iterdir()} == {*ODD, "ORIGIN.md"}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_become_the_published_pixels_or_a_reason(name: str) -> None:
    content, expected = (HERE / "odd" / name).read_bytes(), ODD[name]
    if isinstance(expected, str):
        with pytest.raises(BadSample, match=f"Image {name} ") as bad:
            open_image(content, LIMIT, name)
        assert bad.value.reason == expected
        return
    image, extension = open_with_extension(content, LIMIT, name)
    assert image.mode == "RGB" and (extension, *image.size) == expected
    assert np.array_equal(np.asarray(image), published(content))
    assert header(content, LIMIT, name) == expected and is_whole(content, extension)


# Reasons in the reference folder that the odd files above do not show already; all others there must decode.
REFUSED = {
    "derived/gov_HEADER_ONLY.jpg": "decode",
    "derived/gov_TRUNCATED60.jpg": "decode",
    "derived/html_named.jpg": "not_an_image",
    "derived/zero_bytes.jpg": "not_an_image",
    "odd/decompression_bomb.gif": "too_large",
    "odd/hopper.avif": "not_an_image",
    "odd/hopper.tif": "not_an_image",
    "odd/test-card-lossy-tiled.jp2": "not_an_image",
    "odd/tiff_strip_cmyk_jpeg.tif": "not_an_image",
    "odd/truncated_end_chunk.png": "decode",
    "odd/truncated_image.png": "decode",
    "odd/ultrahdr.jpg": "decode",
    **{f"odd/{name}": expected for name, expected in ODD.items() if isinstance(expected, str)},
}


def test_every_reference_image_has_the_expected_size_or_reason(shared: Path) -> None:
    folder = shared / "data/images"
    with open(folder / "image_props.tsv", newline="") as table:
        sizes = {row["file"]: row["WxH"] for row in csv.DictReader(table, delimiter="\t")}
    wrong, refused = [], 0
    for name, size in sizes.items():
        if not (folder / name).is_file():
            continue
        content = (folder / name).read_bytes()
        try:
            image = open_image(content, LIMIT, name)
        except BadSample as bad:
            refused += 1
            if bad.reason != REFUSED.get(name):
                wrong.append((name, bad.reason))
        else:
            right = name not in REFUSED and image.mode == "RGB" and size == f"{image.width}x{image.height}"
            if not right or not np.array_equal(np.asarray(image), published(content)):
                wrong.append((name, image.size))
    assert not wrong and refused >= 10


# --- the two decoders ------------------------------------------------------------------------------------------------


def jpegs() -> list[Path]:
    return [*sorted((HERE / "photos/images").glob("*.jpg")), *sorted((HERE / "odd").glob("*.jpg"))]


@pytest.mark.parametrize("path", jpegs(), ids=lambda path: path.name)
def test_simplejpeg_gives_pillows_pixels(path: Path) -> None:
    pytest.importorskip("simplejpeg")
    one, two = (outcome(path.read_bytes(), decoder) for decoder in DECODERS)
    assert one == two if isinstance(one, str) else np.array_equal(one, two)


def test_simplejpeg_gives_pillows_pixels_on_all_reference_jpegs(shared: Path) -> None:
    pytest.importorskip("simplejpeg")
    paths = [
        path for path in sorted((shared / "data/images").rglob("*.jp*g")) if path.stat().st_size < 300_000
    ]
    outcomes = [[outcome(path.read_bytes(), decoder) for decoder in DECODERS] for path in paths]
    unequal = [
        path.name for path, (one, two) in zip(paths, outcomes, strict=True) if not np.array_equal(one, two)
    ]
    assert len(paths) > 60 and not unequal


def test_simplejpeg_does_the_work_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    calls, real = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *given, **named: calls.append(1) or real(*given, **named)
    )
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("Pillow decoded"))
    open_image(PHOTO.read_bytes(), LIMIT, "photo")
    assert calls == [1]


@pytest.mark.parametrize("mapped", [True, False])
def test_simplejpegs_pixels_become_an_image_like_any_other(
    mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a copy: what transforms and people do to it gives what Pillow's own image gives."""
    pytest.importorskip("simplejpeg")
    if not mapped:
        monkeypatch.setattr(Image.core, "map_buffer", None)
    monkeypatch.setattr(decode, "_maps_rgb", decode._maps_rgb.__wrapped__)
    assert decode._maps_rgb() == mapped
    content = PHOTO.read_bytes()
    ours, theirs = (open_image(content, LIMIT, "photo", each) for each in ("simplejpeg", "pillow"))
    for change in (
        lambda image: image.resize((33, 21), Image.Resampling.BICUBIC),
        lambda image: image.crop((5, 7, 90, 60)),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: Image.open(io.BytesIO(encoded(image, "PNG"))),
        lambda image: image.convert("RGBA"),
    ):
        assert np.array_equal(np.asarray(change(ours)), np.asarray(change(theirs)))


def test_an_image_keeps_the_memory_that_it_maps_and_changes_are_its_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    expected, image = pixels[..., :3].copy(), decode._image(pixels)
    image.paste((1, 2, 3), (0, 0, 10, 10))
    assert np.array_equal(pixels[..., :3], expected), "pasting copies first"
    image = decode._image(pixels)
    del pixels
    gc.collect()
    other = [np.full((40, 50, 4), 7, np.uint8) for _ in range(50)]
    assert np.array_equal(np.asarray(image), expected) and len(other) == 50


def test_pillow_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("simplejpeg decoded"))
    assert open_image(PHOTO.read_bytes(), LIMIT, "photo", "pillow").size == (800, 600)


@pytest.mark.parametrize("decoder", ["auto", "simplejpeg"])
def test_without_simplejpeg_auto_is_pillow_and_asking_for_it_is_an_error(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    monkeypatch.setattr(decode, "_jpeg_decoder", decode._jpeg_decoder.__wrapped__)
    if decoder == "auto":
        assert open_image(PHOTO.read_bytes(), LIMIT, "photo", decoder).size == (800, 600)
    else:
        with pytest.raises(AuroraError, match="data.image_decoder is simplejpeg.*pip install"):
            open_image(PHOTO.read_bytes(), LIMIT, "photo", decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_damage_is_a_bad_sample_or_pixels_and_the_same_for_both_decoders(decoder: str) -> None:
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
    draw = random.Random(0)
    originals = [
        (HERE / "odd" / name).read_bytes() for name, size in ODD.items() if not isinstance(size, str)
    ]
    originals = [content for content in originals if len(content) < 20_000]
    seen = {"decoded": 0, "refused": 0}
    for number in range(300):
        content = bytearray(draw.choice(originals))
        for _ in range(draw.choice((1, 1, 5))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        damaged = bytes(content if number % 3 else content[: draw.randrange(len(content))])
        result = outcome(damaged, decoder)
        seen["refused" if isinstance(result, str) else "decoded"] += 1
        assert np.array_equal(result, outcome(damaged, "pillow"))
    assert min(seen.values()) > 40


# --- modes and formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
        *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
        *[(mode, "WEBP") for mode in ("RGB", "RGBA")],
        *[(mode, "GIF") for mode in ("1", "L", "P")],
        *[(mode, "BMP") for mode in ("1", "L", "P", "RGB")],
    ],
)
def test_all_colour_modes_become_the_published_rgb(mode: str, kind: str) -> None:
    content = encoded(Image.open(PHOTO).resize((61, 50)).convert(mode), kind)
    image, extension = open_with_extension(content, LIMIT, "picture")
    assert (image.mode, image.size, extension) == ("RGB", (61, 50), EXTENSIONS[kind])
    assert np.array_equal(np.asarray(image), published(content))


def test_progressive_and_restart_markers() -> None:
    photo = Image.open(PHOTO)
    for options in (
        {"progressive": True},
        {"restart_marker_blocks": 8},
        {"subsampling": 0},
        {"quality": 100},
    ):
        content = encoded(photo, "JPEG", **options)
        for decoder in DECODERS:
            assert np.array_equal(outcome(content, decoder), published(content))
        assert is_whole(content, "jpg")


def test_16_bit_grey_keeps_its_shades_where_the_published_code_clips() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    content = encoded(Image.fromarray(ramp), "PNG")
    assert np.array_equal(np.asarray(open_image(content, LIMIT, "ramp"))[..., 1], ramp >> 8)
    assert (published(content) == 255).mean() > 0.99  # all white: what is avoided


def test_16_bit_grey_of_small_values_is_as_published() -> None:
    content = encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)), "PNG")
    assert np.array_equal(np.asarray(open_image(content, LIMIT, "dark")), published(content))


def test_of_animations_and_multi_picture_files_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "MPO"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        image, extension = open_with_extension(content, LIMIT, kind)
        assert extension == {"GIF": "gif", "WEBP": "webp", "MPO": "jpg"}[kind]
        red, green, blue = np.asarray(image).reshape(-1, 3).mean(0)
        assert red > 240 and green < 10 and blue < 10
        assert is_whole(content, extension)


def test_exif_orientation_is_ignored_as_published() -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for kind in ("PNG", "JPEG"):
        content = encoded(upright, kind, exif=exif)
        assert open_image(content, LIMIT, "turned").size == (4, 2) == header(content, LIMIT, "turned")[1:]


def test_alpha_is_dropped_as_published() -> None:
    clear = Image.new("RGBA", (3, 3), (200, 100, 50, 0))
    assert open_image(encoded(clear, "PNG"), LIMIT, "clear").getpixel((1, 1)) == (200, 100, 50)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_too_many_pixels_are_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L" if kind != "WEBP" else "RGB", (400, 300)), kind)
    monkeypatch.setattr(decode, "as_rgb", lambda *_: pytest.fail("the image was decoded"))
    for module, name in ((pytest.importorskip("simplejpeg"), "decode_jpeg"), (decode, "as_rgb")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("the image was decoded"))
    for look in (open_image, header):
        with pytest.raises(BadSample, match=r"big has 400 x 300 pixels.*data.max_pixels \(100000\)") as bad:
            look(content, 100_000, "big")
        assert bad.value.reason == "too_large"


def test_pillows_own_limit_gives_way_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("1", (300, 300)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadSample, match="more pixels than data.max_pixels") as bad:
        open_image(content, 900, "bomb")
    assert bad.value.reason == "too_large"
    assert open_image(content, 90_000, "allowed").size == (300, 300)


# --- end marks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRIED)
def test_end_marks_tell_whole_files_from_cut_ones(kind: str) -> None:
    exif = {"exif": Image.open(HERE / "odd/hopper_orientation_6.jpg").info["exif"]} if kind == "JPEG" else {}
    content, extension = encoded(Image.open(PHOTO).resize((200, 150)), kind, **exif), EXTENSIONS[kind]
    assert is_whole(content, extension)
    assert is_whole(content + b"trailing bytes", extension)
    draw = random.Random(0)
    cuts = [len(content) - 1, len(content) // 2, *(draw.randrange(40, len(content)) for _ in range(50))]
    assert not any(is_whole(content[:cut], extension) for cut in cuts)


def test_the_end_mark_of_a_thumbnail_is_not_the_images() -> None:
    exif = Image.Exif()
    exif[0x9286] = encoded(Image.new("RGB", (16, 16)), "JPEG")  # a JPEG with an end of its own, inside a tag
    content = encoded(Image.open(PHOTO), "JPEG", exif=exif)
    assert content.count(b"\xff\xd9") >= 2
    assert is_whole(content, "jpg") and not is_whole(content[: len(content) // 2], "jpg")

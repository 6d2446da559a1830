"""Media that a caller hands over: every form of one picture or clip is one tensor, and other things are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_ds.config import RunConfig
from aurora_ds.data.given import Kind, given_medium
from aurora_ds.data.image import test_transform as transformed
from aurora_ds.data.video import read_frames
from aurora_ds.errors import AuroraError

HERE = Path(__file__).parent
PHOTO, CLIP = HERE / "photos" / "images" / "vg_4.jpg", HERE / "videos" / "nasa_13013.mp4"
SIDE = 32


def configured(**video: Any) -> RunConfig:
    config = RunConfig()
    config.backbone.vision.image_size = SIDE
    for name, value in ({"frames": 4} | video).items():
        setattr(config.data.video, name, value)
    return config


def tensor(kind: Kind, given: Any, config: RunConfig | None = None) -> torch.Tensor:
    config = config or configured()
    medium = given_medium(kind, given, config, "the medium")
    out = torch.full(medium.shape(SIDE), torch.nan)
    medium.write(out.numpy(), config, None)
    return out


def test_an_image_is_one_tensor_in_every_form() -> None:
    opened = Image.open(PHOTO)
    wanted = transformed(opened.convert("RGB"), SIDE)
    for given in (PHOTO, str(PHOTO), PHOTO.read_bytes(), bytearray(PHOTO.read_bytes()), opened):
        assert torch.equal(tensor("image", given), wanted)
    assert torch.equal(tensor("image", np.asarray(opened.convert("RGB"))), wanted)


@pytest.mark.parametrize(
    "name", ["hopper_orientation_6.jpg", "16bit.cropped.tif", "pil_sample_cmyk.jpg", "transparent.webp"]
)
def test_a_pillow_image_is_read_by_the_rules_of_files(name: str) -> None:
    opened = Image.open(HERE / "odd" / name)
    wanted = tensor("image", opened)
    if name.endswith("tif"):  # a format that shards do not hold, and of 16 bits: not clipped to white
        assert wanted.std() > 0.1
    else:
        assert torch.equal(tensor("image", HERE / "odd" / name), wanted)


def test_a_clip_is_one_tensor_as_path_and_bytes() -> None:
    found = tensor("video", CLIP)
    assert found.shape == (4, 3, SIDE, SIDE)
    assert torch.equal(tensor("video", CLIP.read_bytes()), found)


def test_frames_of_an_array_are_sampled_as_equal_stretches() -> None:
    frames = read_frames(CLIP, range(8), "clip")
    found = tensor("video", frames)
    assert torch.equal(found, tensor("video", frames[::2]))
    assert torch.equal(found[1], transformed(Image.fromarray(frames[2]), SIDE))
    assert torch.equal(tensor("video", frames[:2])[1], tensor("video", frames[:2])[0]), "a short one repeats"


def test_random_frames_are_the_same_every_time_and_the_seed_decides() -> None:
    config = configured(eval_sampling="random")
    first = tensor("video", CLIP, config)
    assert torch.equal(tensor("video", CLIP, config), first)
    config.seed = 1
    assert not torch.equal(tensor("video", CLIP, config), first)


def test_a_window_of_a_clip_is_where_its_frames_come_from() -> None:
    whole, part = tensor("video", CLIP), tensor("video", CLIP, configured(window=[4.0, 6.0]))
    assert not torch.equal(whole, part)
    assert torch.equal(tensor("video", CLIP, configured(window="moments")), whole), "evaluated on whole clips"


def test_a_pair_is_two_images() -> None:
    other = PHOTO.with_name("vg_5.jpg")
    found = tensor("pair", [PHOTO, other])
    assert torch.equal(found, torch.stack([tensor("image", PHOTO), tensor("image", other)]))


@pytest.mark.parametrize(
    ("kind", "given", "shape"),
    [("image", PHOTO, (3,)), ("video", CLIP, (4, 3)), ("pair", [PHOTO, PHOTO], (2, 3))],
)
def test_blank_media_are_zero(kind: Kind, given: Any, shape: tuple[int, ...]) -> None:
    config = configured()
    config.data.media = "blank"
    assert torch.equal(tensor(kind, given, config), torch.zeros(*shape, SIDE, SIDE))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("image", 3, "the medium is of type int. An image is a path"),
        ("image", torch.zeros(3, 8, 8), "of type Tensor"),
        ("image", np.zeros((8, 8, 3)), r"float64 \(8, 8, 3\), but an image is uint8"),
        ("image", np.zeros((8, 8), np.uint8), r"uint8 \(8, 8\)"),
        ("image", np.zeros((4, 8, 8, 3), np.uint8), r"uint8 \(4, 8, 8, 3\)"),
        ("image", np.zeros((0, 8, 3), np.uint8), "not empty"),
        ("image", b"", "is not a JPEG"),
        ("image", Image.open(HERE / "odd" / "truncated_jpeg.jpg"), "the medium cannot be decoded"),
        ("image", CLIP, "is not a JPEG"),
        ("video", Image.new("RGB", (8, 8)), "of type Image. A clip is a path"),
        ("video", np.zeros((8, 8, 3), np.uint8), "a clip is uint8"),
        ("video", np.zeros((0, 8, 8, 3), np.uint8), "not empty"),
        ("video", PHOTO, "is not a video of a known kind"),
        ("video", CLIP.read_bytes()[:200_000], "the medium"),
        ("image", "none.jpg", "The file none.jpg is not there"),
        ("video", HERE, "a folder, where one file is needed"),
        ("video", "s3://bucket/a.mp4", "is a URL"),
        ("pair", [PHOTO, 3], "the medium, image 1 is of type int"),
    ],
)
def test_other_things_are_refused(kind: Kind, given: Any, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        given_medium(kind, given, configured(), "the medium")


@pytest.mark.parametrize("video", [{"window": [0, 1]}, {"eval_sampling": "clip"}])
def test_an_array_has_no_seconds(video: dict[str, Any]) -> None:
    with pytest.raises(AuroraError, match="has frames but no seconds"):
        given_medium("video", np.zeros((8, 8, 8, 3), np.uint8), configured(**video), "the medium")

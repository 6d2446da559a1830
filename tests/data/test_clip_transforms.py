"""Clips of both kinds of storage -> tensors."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_clips import draw_frames, make_clip
from PIL import Image

from aurora_ds.data import image
from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.clip import clip_transform, sample_clip, train_clip_transform
from aurora_ds.data.manifest import SampleAddress
from aurora_ds.data.reader import Part, Sample, parse_sample
from aurora_ds.data.video import frames_as_jpeg, read_frames

MOST = 10_000_000


def stored_frames(count: int, seconds: float = 4.0, **record: object) -> Sample:
    """A clip of `seconds` stored as `count` frames; frame n is filled with the value 20 n."""
    parts = []
    for number in range(count):
        target = io.BytesIO()
        Image.new("RGB", (32, 24), (20 * number,) * 3).save(target, "PNG")
        parts.append(Part("png", target.getvalue()))
    stamps = [(number + 0.5) * seconds / count for number in range(count)]
    known = {"kind": "frames", "frame_seconds": stamps, "source": {"seconds": seconds}}
    return Sample("clip7", known | record, tuple(parts))


def values(sample: Sample, count: int, how: str, **more: object) -> list[int]:
    frames, seconds = sample_clip(sample, count, how, np.random.default_rng(0), max_pixels=MOST, **more)
    numbers = (frames[:, 0, 0, 0] // 20).tolist()
    assert seconds.tolist() == [sample.record["frame_seconds"][number] for number in numbers]
    return numbers


@pytest.mark.parametrize("how", ["uniform", "centre", "stride", "random", "segment"])
def test_as_many_stored_frames_as_asked_for_are_all_taken(how: str) -> None:
    assert values(stored_frames(8), 8, how) == list(range(8))


def test_stored_frames_are_picked_evenly() -> None:
    assert values(stored_frames(12), 4, "uniform") == [0, 3, 6, 9]
    assert values(stored_frames(12), 4, "centre") == [1, 4, 7, 10]
    assert values(stored_frames(3), 6, "uniform") == [0, 0, 1, 1, 2, 2]
    assert values(stored_frames(8), 4, "uniform", window=(2.0, None)) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "record",
    [{"frame_seconds": None}, {"frame_seconds": [0.1]}, {"source": {}}, {"source": {"seconds": 0}}],
)
def test_a_record_that_does_not_fit_its_frames_is_told(record: dict) -> None:
    with pytest.raises(BadSample, match="clip7.*frame_seconds") as raised:
        sample_clip(stored_frames(4, **record), 4, "uniform", max_pixels=MOST)
    assert raised.value.reason == "record"


def test_a_damaged_stored_frame_is_told_by_number() -> None:
    sample = stored_frames(4)
    parts = (*sample.parts[:2], Part("png", sample.parts[2].content[:40]), sample.parts[3])
    with pytest.raises(BadSample, match="clip7, frame 2"):
        sample_clip(Sample("clip7", sample.record, parts), 4, "uniform", max_pixels=MOST)


def test_a_picture_is_no_clip() -> None:
    part = stored_frames(1).parts[0]
    with pytest.raises(BadSample, match="not a clip"):
        sample_clip(Sample("photo", {"kind": "image"}, (part,)), 4, "uniform", max_pixels=MOST)


def test_an_encoded_clip_is_sampled_by_the_same_call() -> None:
    content = make_clip(count=16)
    sample = Sample("clip", {"kind": "video"}, (Part("mp4", content),))
    frames, seconds = sample_clip(sample, 4, "uniform", max_pixels=MOST)
    assert np.array_equal(frames, read_frames(content, [0, 4, 8, 12], "clip"))
    assert seconds == pytest.approx([0, 0.16, 0.32, 0.48])


def test_clips_of_both_kinds_can_come_resized() -> None:
    encoded = Sample("clip", {"kind": "video"}, (Part("mp4", make_clip(count=16)),))
    for sample in (encoded, stored_frames(8)):
        small = sample_clip(sample, 4, "uniform", max_pixels=MOST, size=16)[0]
        whole = sample_clip(sample, 4, "uniform", max_pixels=MOST)[0]
        assert small.shape == (4, 16, 16, 3)
        assert torch.equal(
            clip_transform(small, 16), torch.stack([image.to_tensor(frame) for frame in small])
        )
        assert (clip_transform(small, 16) - clip_transform(whole, 16)).abs().mean() < 0.1


def test_frames_stored_by_the_converter_can_be_sampled() -> None:
    stored = frames_as_jpeg(make_clip(count=40), 8, None, "clip")
    parts = tuple(Part("jpg", content) for _, content in stored)
    record = {"kind": "frames", "frame_seconds": [second for second, _ in stored], "source": {"seconds": 1.6}}
    frames, seconds = sample_clip(Sample("clip", record, parts), 8, "uniform", max_pixels=MOST)
    assert frames.shape == (8, 48, 64, 3)
    assert seconds.tolist() == record["frame_seconds"]


def test_the_test_transform_is_that_of_images_for_each_frame() -> None:
    frames = draw_frames(3, 64, 48)
    tensor = clip_transform(frames, 32)
    assert tensor.shape == (3, 3, 32, 32) and tensor.dtype == torch.float32
    for frame, planes in zip(frames, tensor, strict=True):
        assert torch.equal(planes, image.test_transform(Image.fromarray(frame), 32))


@pytest.mark.parametrize("seed", range(5))
def test_augmentation_is_one_for_all_frames(seed: int) -> None:
    still = np.repeat(draw_frames(1, 64, 48), 4, axis=0)
    tensor = train_clip_transform(still, 32, np.random.default_rng(seed))
    assert tensor.shape == (4, 3, 32, 32)
    assert all(torch.equal(planes, tensor[0]) for planes in tensor)
    alone = image.train_transform(Image.fromarray(still[0]), 32, np.random.default_rng(seed))
    assert torch.equal(tensor[0], alone)


def test_augmentation_advances_its_generator_as_one_image_does() -> None:
    frames, one, other = draw_frames(4, 64, 48), np.random.default_rng(1), np.random.default_rng(1)
    train_clip_transform(frames, 32, one)
    image.train_transform(Image.fromarray(frames[0]), 32, other)
    assert one.random() == other.random()


def test_a_real_clip_becomes_a_normalised_tensor() -> None:
    content = (Path(__file__).parent / "videos" / "nasa_13013.mp4").read_bytes()
    sample = Sample("nasa", {"kind": "video"}, (Part("mp4", content),))
    tensor = clip_transform(sample_clip(sample, 8, "uniform", max_pixels=MOST)[0], 64)
    assert tensor.shape == (8, 3, 64, 64)
    assert -2.0 < float(tensor.min()) and float(tensor.max()) < 2.8 and float(tensor.std()) > 0.3


def test_an_animation_can_be_a_clip_of_a_shard() -> None:
    content = make_clip(codec="gif", container="gif", pixel_format="rgb8", count=6)
    block = io.BytesIO()
    with tarfile.open(fileobj=block, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, member in (("a.json", b'{"schema": 1, "kind": "video"}'), ("a.gif", content)):
            header = tarfile.TarInfo(name)
            header.size = len(member)
            tar.addfile(header, io.BytesIO(member))
    end = sum(512 + -(-size // 512) * 512 for size in (30, len(content)))
    address = SampleAddress("x.tar", 0, end)
    sample = parse_sample(block.getvalue()[:end], address)
    assert sample_clip(sample, 3, "uniform", max_pixels=MOST)[0].shape == (3, 48, 64, 3)

"""data.video.window: frames from a stretch of every clip, or of each moment from its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from written_shards import Written, clip_sample, frames_sample, image_sample, write_shards

from aurora_ds.config import RunConfig
from aurora_ds.data import loader, media
from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.clip import clip_transform
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.moments import stretch
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.unreadable import TooManyUnreadable
from aurora_ds.data.video import sample_frames
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config

Configs = Callable[..., RunConfig]
NASA = Path(__file__).parent / "videos" / "nasa_13013.mp4"  # 325 frames, 13.013 s


def nasa(**record: object) -> Written:
    clip = {"kind": "video", "width": 320, "height": 180, "seconds": 13.013, "frames": 325, "fps": 24.97}
    return Written("nasa", {**clip, **record}, [("mp4", NASA.read_bytes())])


def clip_config(make: Configs, folder: Path, batch: int, window: object, **data: object) -> RunConfig:
    config = make(global_batch_size=batch, shards=str(folder), augment="none", **data)
    config.data.video.frames, config.data.video.window = 3, window
    config.data.video.train_sampling = "uniform"
    return config


def frames_of(window: tuple[float, float | None] | None, how: str = "uniform", count: int = 3) -> np.ndarray:
    return sample_frames(NASA, count, how, name="nasa", window=window, size=16)[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_shards(folder, {"train": [[nasa(captions=["a rocket", "smoke"])]]})
    return folder


@pytest.mark.parametrize("window", [(2, 7), (5.5, None), None])
def test_training_and_evaluation_see_the_stretch(
    run_config: Configs, tokenizer, clip: Path, window: tuple | None
) -> None:
    config = clip_config(run_config, clip, 2, window)
    (batch,) = loader.train_loader(config, tokenizer, 1, 0, 0)
    (evaluated,) = loader.eval_image_loader(config, "train", None, 1, 0, 1)
    expected = clip_transform(frames_of(window), 16)
    assert all(torch.equal(image, expected) for image in [*batch["image"], *evaluated["image"]])


def test_the_stretch_is_another_picture(run_config: Configs, clip: Path) -> None:
    assert not np.array_equal(frames_of((2, 7)), frames_of(None))
    manifest = Manifest.load(clip)
    shown = [
        media.picture(clip_config(run_config, clip, 2, window), ShardReader(manifest), "train", 0)
        for window in (None, (0.0, 1.0))
    ]
    at_centre = sample_frames(NASA, 1, "centre", name="nasa", window=(0.0, 1.0))[0][0]
    assert np.array_equal(shown[1], at_centre) and not np.array_equal(*shown)


def test_a_clip_stored_as_frames_has_stretches_too(run_config: Configs, tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [[frames_sample(4)]]})  # at 0, 0.5, 1 and 1.5 s of 2 s

    def seen(window: tuple | None) -> torch.Tensor:
        (batch,) = loader.eval_image_loader(
            clip_config(run_config, tmp_path, 1, window), "train", None, 1, 0, 1
        )
        return batch["image"][0]

    one = seen((0.5, 0.9))
    assert torch.equal(one[0], one[2]) and not torch.equal(seen(None)[0], seen(None)[2])


def test_a_clip_that_ends_before_the_stretch_is_a_bad_sample(
    run_config: Configs, tokenizer, tmp_path: Path
) -> None:
    write_shards(tmp_path, {"train": [[nasa(captions=["a rocket"]), clip_sample(1), clip_sample(2)]]})
    config = clip_config(run_config, tmp_path, 3, (8, 12), max_bad_share=1.0)
    (batch,) = loader.train_loader(config, tokenizer, 1, 0, 0)
    assert batch["keys"] == ["nasa"] * 3
    assert {(entry["key"], entry["reason"]) for entry in batch["bad"]} == {
        ("clip-1", "window"),
        ("clip-2", "window"),
    }
    with pytest.raises(AuroraError, match=r"window from 8 s to 12 s is not in clip clip-1 of 1.040 s"):
        list(loader.eval_image_loader(config, "train", None, 1, 0, 3))
    config.data.bad_samples = "error"
    with pytest.raises(TooManyUnreadable, match="Sample clip-. .*cannot be used. The window from 8 s"):
        list(loader.train_loader(config, tokenizer, 1, 0, 0))


def moment(caption: str, *times: list[int]) -> dict:
    return {"caption": caption, "times": list(times), "num_segments": 3, "annotation_id": len(caption)}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    listed = [
        moment("It starts.", [0, 0], [0, 1], [0, 0]),
        moment("smoke", [1, 2]),
        moment("the end", [2, 2]),
    ]
    write_shards(folder, {"train": [[nasa(moments=listed)]], "test": [[nasa(captions=["a rocket"])]]})
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_moments_are_trained_on_with_the_frames_of_their_stretch(
    run_config: Configs, tokenizer, moments: Path, workers: int
) -> None:
    config = clip_config(run_config, moments, 1, "moments", workers=workers)
    batches = list(loader.train_loader(config, tokenizer, 1, 0, 0))
    batches.sort(key=lambda batch: int(batch["sample_index"]))
    expected = [((0, 5), "it starts"), ((5, 15), "smoke"), ((10, 15), "the end")]
    for batch, (window, words) in zip(batches, expected, strict=True):
        assert torch.equal(batch["image"][0], clip_transform(frames_of(window), 16))
        assert torch.equal(batch["input_ids"], tokenizer.encode([words], 35)[0])


def test_moments_of_a_clip_are_drawn_alike_each_time(run_config: Configs, tokenizer, moments: Path) -> None:
    def images(**data: object) -> list[torch.Tensor]:
        config = clip_config(run_config, moments, 3, "moments", **data)
        config.data.video.train_sampling = "random"
        return [batch["image"] for batch in loader.train_loader(config, tokenizer, 1, 0, 2)]

    with_buffer, without = images(), images(decoded_mb=0)
    assert all(torch.equal(*both) for both in zip(with_buffer, without, strict=True))


def test_evaluation_is_on_whole_clips_when_training_is_on_moments(run_config: Configs, moments: Path) -> None:
    config = clip_config(run_config, moments, 1, "moments")
    (batch,) = loader.eval_image_loader(config, "test", None, 1, 0, 1)
    assert torch.equal(batch["image"][0], clip_transform(frames_of(None), 16))
    assert media.medium_shape(config, open_manifest(config), "test") == (3, 3, 16, 16)


def test_a_split_without_moments_or_a_task_without_captions_is_refused(
    run_config: Configs, tmp_path: Path
) -> None:
    write_shards(tmp_path, {"train": [[image_sample(0)]]})
    config = clip_config(run_config, tmp_path, 1, "moments")
    with pytest.raises(AuroraError, match="has no moments to train on"):
        loader.steps_per_epoch(config, 1)
    with pytest.raises(AuroraError, match="data.video.window is moments.* trains on questions"):
        loader.train_plan(config, 1, 0, "questions")


@pytest.mark.parametrize(
    ("times", "expected"),
    [([[1, 1], [0, 2], [0, 2]], (0.0, 15.0)), ([[3, 4], [1, 1]], (15.0, 25.0)), ([[5, 5]], (25.0, 30.0))],
)
def test_a_moment_is_where_most_annotators_saw_it(times: list, expected: tuple) -> None:
    assert stretch({"times": times}, "clip") == expected


@pytest.mark.parametrize("times", [None, [], [[1]], [[2, 1]], [[0, "1"]], "01"])
def test_a_moment_without_times_is_a_bad_sample(times: object) -> None:
    with pytest.raises(BadSample, match="Sample clip has a moment whose times are") as caught:
        stretch({"times": times}, "clip")
    assert caught.value.reason == "record"


def test_the_window_is_a_setting() -> None:
    def window(value: str) -> object:
        return load_config("retrieval_didemo", [f"data.video.window={value}"]).data.video.window

    assert [window(each) for each in ("[2,7.5]", "[0,null]", "moments", "null")] == [
        (2, 7.5),
        (0, None),
        "moments",
        None,
    ]
    for wrong in ("[7,2]", "[-1,2]", "[1]", "whole", "[null,2]", "[true,2]"):
        with pytest.raises(AuroraError, match=r"data.video.window.*moments, or \[start, end\] in seconds"):
            window(wrong)

"""DiDeMo: paragraphs and moments, and clips whose names in the files are not those on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_tools import entries_of, of_kind, read_back, write_json, write_lines
from drawn_clips import make_clip

from aurora_ds.data.convert import convert, load_recipe
from aurora_ds.data.convert.didemo import candidates, read
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

FILES = {"train": "train_data.json", "val": "val_data.json", "test": "test_data.json"}


def described(
    video: str, number: int, description: str, times: list[list[int]] | None = None
) -> dict[str, Any]:
    return {
        "num_segments": 6,
        "description": description,
        "dl_link": "https://www.flickr.com/video_download.gne?id=1",
        "times": times or [[0, 1], [1, 1], [0, 0], [1, 1]],
        "video": video,
        "annotation_id": number,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Clips as they come: named as annotated, re-packed, and as the authors' script saves them."""
    folder = tmp_path / "didemo"
    train = [
        described("1@N01_10_aa.mov", 7, "a dog runs. "),
        described("2@N01_20_bb.", 8, "two cats"),
        described("1@N01_10_aa.mov", 9, "the dog stops\n", [[5, 5], [4, 5]]),
        described("3@N01_30_cc.avi", 10, "a car"),
        described("3@N01_30_cc.mp4", 11, "the same car"),
        described("2@N01_20_bb.", 12, " . "),
    ]
    write_json(folder / "annotations/train_data.json", train)
    write_json(folder / "annotations/val_data.json", [described("4@N01_40_dd.3gp", 1, "a boat")])
    write_json(folder / "annotations/test_data.json", [described("5@N01_50_ee.m2ts", 2, "a tree")])
    clip = make_clip(count=5, size=(32, 16))
    for name in (
        "1@N01_10_aa.mov.mp4",
        "2@N01_20_bb.mkv",
        "3@N01_30_cc.mp4",
        "4@N01_40_dd.3gp",
        "5@N01_50_ee.MP4",
    ):
        (folder / "videos").mkdir(exist_ok=True)
        is_mkv = name.endswith(".mkv")
        content = make_clip("mpeg4", "matroska", count=5, size=(32, 16)) if is_mkv else clip
        (folder / "videos" / name).write_bytes(content)
    return folder


def test_paragraphs_join_the_descriptions_of_a_clip_in_order(source: Path, tmp_path: Path) -> None:
    results = convert("didemo", source, tmp_path / "out", max_rejects="50%")
    train = read_back(tmp_path / "out")["train"]
    assert [(each["video_id"], each["captions"]) for each in train] == [
        ("1@N01_10_aa", ["a dog runs. the dog stops"]),
        ("2@N01_20_bb", ["two cats"]),
        ("3@N01_30_cc", ["a car the same car"]),
    ]
    assert results["splits"]["train"]["samples"] == results["splits"]["train"]["pairs"] == 3
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert reject["media_id"] == "2@N01_20_bb." and "entry 5 is blank" in reject["reason"]


def test_moments_keep_the_times_of_every_annotator(source: Path, tmp_path: Path) -> None:
    results = convert("didemo_moments", source, tmp_path / "out", max_rejects="50%")
    train = read_back(tmp_path / "out")["train"]
    assert train[0]["moments"] == [
        {
            "caption": "a dog runs. ",
            "times": [[0, 1], [1, 1], [0, 0], [1, 1]],
            "num_segments": 6,
            "annotation_id": 7,
        },
        {"caption": "the dog stops\n", "times": [[5, 5], [4, 5]], "num_segments": 6, "annotation_id": 9},
    ]
    assert [len(each["moments"]) for each in train] == [2, 1, 2], "a blank description is rejected"
    assert results["splits"]["train"]["pairs"] == 5 and results["rejects"] == 1


def test_names_with_other_extensions_are_found_and_bytes_unchanged(source: Path, tmp_path: Path) -> None:
    convert("didemo", source, tmp_path / "out", max_rejects="50%")
    reader = ShardReader(Manifest.load(tmp_path / "out"))
    on_disk = {
        "train": ["1@N01_10_aa.mov.mp4", "2@N01_20_bb.mkv", "3@N01_30_cc.mp4"],
        "test": ["5@N01_50_ee.MP4"],
    }
    for split, names in on_disk.items():
        for medium, name in enumerate(names):
            assert reader.read(split, medium).media == (source / "videos" / name).read_bytes(), name
    assert reader.read("train", 1).extension == "mkv"


def test_a_file_without_extension_is_stored_under_that_of_its_content(source: Path, tmp_path: Path) -> None:
    (source / "videos/2@N01_20_bb.mkv").rename(source / "videos/2@N01_20_bb.")
    convert("didemo", source, tmp_path / "out", max_rejects="50%")
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("train", 1)
    assert sample.record["video_id"] == "2@N01_20_bb" and sample.extension == "mkv"


def test_a_camera_file_is_found_under_the_second_name_of_its_clip(source: Path, tmp_path: Path) -> None:
    (source / "videos/3@N01_30_cc.mp4").unlink()
    clip = make_clip("mpeg2video", "mpegts", count=5, size=(32, 16))
    (source / "videos/3@N01_30_cc.m2ts").write_bytes(clip)
    convert("didemo", source, tmp_path / "out", max_rejects="50%")
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("train", 2)
    assert sample.media == clip and sample.extension == "ts"


def test_where_a_clip_may_be() -> None:
    assert candidates("1@N01_10_aa.mov") == ["1@N01_10_aa.mov", "1@N01_10_aa.mov.mp4", "1@N01_10_aa.*"]
    assert candidates("2@N01_20_bb.")[-1] == "2@N01_20_bb.*"
    assert candidates("2@N01_20_bb")[-1] == "2@N01_20_bb.*", "ClipBERT's lists have no extension"


def test_clip_lists_of_clipbert(source: Path, tmp_path: Path) -> None:
    for name in FILES.values():
        (source / "annotations" / name).unlink()
    for split, name in (("train", "3@N01_30_cc"), ("val", "4@N01_40_dd"), ("test", "5@N01_50_ee")):
        write_lines(source / f"annotations/{split}.jsonl", [{"clip_name": name, "caption": f"{split} words"}])
    convert("didemo", source, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert {split: records[split][0]["captions"] for split in records} == {
        split: [f"{split} words"] for split in FILES
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("video"), "entry 0 without `video`"),
        (lambda entry: entry.update(description=3), r"entry 0 with '3' \(number\) as `description`"),
        (
            lambda entry: entry.update(times=[[0]]),
            "as `times`, expected a list of .first segment, last segment",
        ),
        (lambda entry: entry.update(times=[[0, -1]]), "as `times`"),
        (lambda entry: entry.pop("times"), "entry 0 without `times`"),
        (lambda entry: entry.pop("annotation_id"), "entry 0 without `annotation_id`"),
        (lambda entry: entry.update(num_segments="6"), "a whole number as `num_segments`"),
    ],
)
def test_another_shape_is_told(tmp_path: Path, change: Any, message: str) -> None:
    entry = described("1@N01_10_aa.mov", 7, "a dog")
    change(entry)
    write_json(tmp_path / "train_data.json", [entry])
    with pytest.raises(AuroraError, match=message):
        entries_of("didemo_moments", "official", tmp_path, train="train_data.json")


def test_an_unknown_form_is_told(tmp_path: Path) -> None:
    way = load_recipe("didemo").annotations[0].model_copy(update={"options": {"form": "sentences"}})
    with pytest.raises(AuroraError, match="is 'sentences'; it may be paragraph or moments"):
        list(read(way, {"train": tmp_path / "train_data.json"}))


def test_real_validation_set_has_the_published_counts(shared: Path) -> None:
    folder = shared / "data/annotations/didemo"
    if not (folder / "val_data.json").is_file():
        pytest.skip("the real validation set is not in the reference material")
    paragraphs, rejects = of_kind(entries_of("didemo", "official", folder, val="val_data.json"))
    moments, _ = of_kind(entries_of("didemo_moments", "official", folder, val="val_data.json"))
    expected = load_recipe("didemo").expected["val"], load_recipe("didemo_moments").expected["val"]
    assert len(paragraphs) == len({each.key for each in paragraphs}) == expected[0].samples == 1065
    assert len(moments) == expected[1].pairs == 4180 and rejects == []
    assert {each.key for each in moments} == {each.key for each in paragraphs}
    assert sum(len(each.annotation["times"]) == 7 for each in moments) == 15
    first = [
        each
        for each in json.loads((folder / "val_data.json").read_text())
        if each["video"] == moments[0].media
    ]
    assert paragraphs[0].annotation == " ".join(each["description"].strip() for each in first)

"""MSR-VTT: official JSON, train and JSFUSION lists, clip lists; records read back from whole conversions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_tools import entries_of, of_kind, read_back, write_json, write_lines
from drawn_clips import make_clip

from aurora_ds.data.convert import convert
from aurora_ds.data.convert.entries import Entry
from aurora_ds.data.convert.msrvtt import candidates
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

TRAIN_VAL, TEST = "train_val_videodatainfo.json", "test_videodatainfo.json"
SPLITS = {"video0": "train", "video1": "train", "video2": "validate", "video7": "test", "video8": "test"}


def official(names: list[str], captions: int = 3) -> dict[str, Any]:
    """The official layout with invented content; the sentences of a video do not stand together."""
    return {
        "info": {"year": "2016", "version": "1.0", "description": "", "contributor": "", "data_created": ""},
        "videos": [
            {
                "category": number,
                "url": f"https://www.youtube.com/watch?v={name}",
                "video_id": name,
                "start time": 137.72,
                "end time": 149.44,
                "split": SPLITS[name],
                "id": number,
            }
            for number, name in enumerate(names)
        ],
        "sentences": [
            {"caption": f"{name} seen {which} times", "video_id": name, "sen_id": 100 * which + number}
            for which in range(captions)
            for number, name in enumerate(reversed(names))
        ],
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five clips under the folder names of the official archives, and every annotation file there is of them."""
    folder = tmp_path / "msrvtt"
    annotations = folder / "annotations"
    write_json(annotations / TRAIN_VAL, official(["video0", "video1", "video2"]))
    write_json(annotations / TEST, official(["video7", "video8"]))
    (annotations / "MSRVTT_train.9k.csv").write_text("video_id\nvideo1\nvideo2\nvideo0\n")
    (annotations / "MSRVTT_JSFUSION_test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr8,video8,"a cup, then a fork"\nret1,msr7,video7,two dogs\n'
    )
    clips = {"TrainValVideo": ("video0", "video1", "video2"), "TestVideo": ("video7", "video8")}
    for place, names in clips.items():
        (folder / place).mkdir()
        for name in names:
            (folder / place / f"{name}.mp4").write_bytes(make_clip(count=5 + int(name[-1]), size=(32, 16)))
    return folder


def test_the_official_json_keeps_its_split_ids_and_times(source: Path, tmp_path: Path) -> None:
    results = convert("msrvtt_full", source, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert {split: [each["media_id"] for each in records[split]] for split in records} == {
        "train": ["video0", "video1"],
        "val": ["video2"],
        "test": ["video7", "video8"],
    }
    assert results["splits"]["test"]["pairs"] == 6 and results["rejects"] == 0
    first = records["train"][0]
    assert first.pop("fps") > 0 and first.pop("seconds") > 0
    assert first == {
        "schema": 1,
        "kind": "video",
        "media_id": "video0",
        "video_id": "video0",
        "category": 0,
        "url": "https://www.youtube.com/watch?v=video0",
        "start_time": 137.72,
        "end_time": 149.44,
        "width": 32,
        "height": 16,
        "frames": 5,
        "captions": [f"video0 seen {which} times" for which in range(3)],
        "caption_ids": [2, 102, 202],
    }


def test_clips_are_stored_unchanged(source: Path, tmp_path: Path) -> None:
    convert("msrvtt_full", source, tmp_path / "out")
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("test", 1)
    assert sample.media == (source / "TestVideo/video8.mp4").read_bytes() and sample.extension == "mp4"


def test_ground_truth_of_the_official_test_split(source: Path, tmp_path: Path) -> None:
    convert("msrvtt_full", source, tmp_path / "out")
    truth = json.loads((tmp_path / "out/test_gt.json").read_text())
    assert truth["images"] == [{"id": "video7"}, {"id": "video8"}]
    assert truth["annotations"][0] == {"image_id": "video7", "id": 1, "caption": "video7 seen 0 times"}


def test_1ka_trains_on_all_captions_and_tests_on_one(source: Path, tmp_path: Path) -> None:
    convert("msrvtt_9k", source, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert [(each["media_id"], len(each["captions"])) for each in records["train"]] == [
        ("video1", 3),
        ("video2", 3),
        ("video0", 3),
    ]
    test = records["test"]
    assert [each["media_id"] for each in test] == ["video8", "video7"], "the order of the test list"
    assert test[0]["captions"] == ["a cup, then a fork"] and test[0]["caption_ids"] == ["ret0"]
    assert test[0]["category"] == 1, "the JSON's facts of the video"


def test_msrvtt_data_json_does_instead_of_the_two_official_files(source: Path, tmp_path: Path) -> None:
    convert("msrvtt_9k", source, tmp_path / "two")
    for name in (TRAIN_VAL, TEST):
        (source / "annotations" / name).unlink()
    write_json(source / "annotations/MSRVTT_data.json", official(list(SPLITS)))
    convert("msrvtt_9k", source, tmp_path / "one")
    one, two = read_back(tmp_path / "one"), read_back(tmp_path / "two")
    assert [each["captions"] for each in one["train"]] == [each["captions"] for each in two["train"]]


def test_the_test_list_alone_is_enough_for_zero_shot(source: Path, tmp_path: Path) -> None:
    (source / "annotations" / TRAIN_VAL).unlink()
    results = convert("msrvtt_1ka_test", source, tmp_path / "out")
    assert results["splits"]["test"]["samples"] == 2


def test_a_clip_of_the_list_without_captions_is_rejected(source: Path, tmp_path: Path) -> None:
    entries, rejects = of_kind(
        entries_of(
            "msrvtt_9k",
            "csv",
            source / "annotations",
            train="MSRVTT_train.9k.csv",
            captions=TEST,
        )
    )
    assert entries == []
    assert [reject.media_id for reject in rejects] == ["video1", "video2", "video0"]
    assert rejects[0].reason == f"{TEST} has no caption of it"


def test_a_clip_in_train_and_test_is_an_error(source: Path) -> None:
    (source / "annotations/MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo7\n")
    with pytest.raises(AuroraError, match=r"JSFUSION_test.csv lists video7 also in .*MSRVTT_train.9k.csv"):
        entries_of(
            "msrvtt_9k",
            "csv",
            source / "annotations",
            train="MSRVTT_train.9k.csv",
            test="MSRVTT_JSFUSION_test.csv",
            captions=TRAIN_VAL,
        )


def test_clip_lists_have_a_caption_or_several_a_line(tmp_path: Path) -> None:
    rows = [
        {"clip_name": "video0", "caption": "a cup", "sen_id": 7},
        {"clip_name": "video1", "caption": ["one", "two"]},
        {"clip_name": "video2", "caption": []},
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    entries, rejects = of_kind(entries_of("msrvtt_7k", "jsonl", tmp_path, train="train.jsonl"))
    assert [(each.media, each.annotation, each.annotation_id) for each in entries] == [
        ("video0", "a cup", 7),
        ("video1", "one", None),
        ("video1", "two", None),
    ]
    assert [reject.reason for reject in rejects] == ["line 3 has an empty caption list"]


def test_a_clip_may_have_any_extension() -> None:
    assert candidates("video12") == ["video12", "video12.*"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("videos"), "without `videos`"),
        (lambda data: data.update(videos=[]), "an empty list 'videos'"),
        (lambda data: data.update(sentences=[]), "an empty list 'sentences'"),
        (lambda data: data["videos"][1].pop("split"), r"videos\[1\] without `split`"),
        (
            lambda data: data["videos"][1].update(split="dev"),
            r"videos\[1\] with 'dev'.*train, validate, test",
        ),
        (
            lambda data: data["sentences"][0].update(caption=3),
            r"sentences\[0\] with '3' \(number\) as `caption`",
        ),
        (lambda data: data["sentences"][0].update(video_id="video9"), r"sentences\[0\] with 'video9'"),
    ],
)
def test_another_shape_of_the_official_json_is_told(tmp_path: Path, change: Any, message: str) -> None:
    data = official(["video0", "video1"])
    change(data)
    write_json(tmp_path / TRAIN_VAL, data)
    with pytest.raises(AuroraError, match=message) as error:
        entries_of("msrvtt_full", "official", tmp_path, train_val=TRAIN_VAL)
    assert str(tmp_path / TRAIN_VAL) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a first line with nothing, expected the columns video_id"),
        ("clip\nvideo0\n", "a first line with clip, expected the columns video_id"),
        ("video_id\n", "no row"),
        ("video_id,sentence\nvideo0,a cup, a fork\n", "line 2 with another number of values"),
        ("video_id,sentence\nvideo0\n", "line 2 with another number of values"),
        ("video_id\nvideo0\nvideo0\n", "lists video0 twice"),
        ('video_id,sentence\nvideo0,"a cup\n', "is not a CSV file"),
    ],
)
def test_a_wrong_list_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(AuroraError, match=message):
        entries_of("msrvtt_1ka_test", "csv", tmp_path, test="list.csv")


def test_a_list_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("video_id,sentence\nvideo0,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(AuroraError, match="is not a CSV file in UTF-8"):
        entries_of("msrvtt_1ka_test", "csv", tmp_path, test="list.csv")


def test_real_lists_have_the_published_counts(shared: Path) -> None:
    folder = shared / "data/annotations/msrvtt"
    if not (folder / "MSRVTT_train.9k.csv").is_file():
        pytest.skip("the real lists are not in the reference material")
    for count, number in (("7k", 7010), ("9k", 9000)):
        both = entries_of(
            f"msrvtt_{count}",
            "csv",
            folder,
            train=f"MSRVTT_train.{count}.csv",
            test="MSRVTT_JSFUSION_test.csv",
            captions="train_val_videodatainfo.first50videos.json",
        )
        entries, rejects = of_kind(both)
        train = [each for each in entries if each.split == "train"]
        listed = {each.media for each in train} | {each.media_id for each in rejects}
        assert len(listed) == number and len(train) == 50 * 20, "captions of the excerpt's 50 videos"
        test = [each for each in entries if each.split == "test"]
        assert len({each.media for each in test}) == len(test) == 1000


def test_real_official_excerpts(shared: Path) -> None:
    folder = shared / "data/annotations/msrvtt"
    names = {key: f"{key}_videodatainfo.first50videos.json" for key in ("train_val", "test")}
    if not all((folder / name).is_file() for name in names.values()):
        pytest.skip("the real excerpts are not in the reference material")
    entries, rejects = of_kind(entries_of("msrvtt_full", "official", folder, **names))
    counts = {split: sum(each.split == split for each in entries) for split in ("train", "val", "test")}
    assert counts == {"train": 1000, "val": 0, "test": 1000} and rejects == []
    truth = json.loads((folder / names["train_val"]).read_text())
    of_first = [each["caption"] for each in truth["sentences"] if each["video_id"] == "video0"]
    assert [each.annotation for each in entries[:20]] == of_first
    assert isinstance(entries[0], Entry) and entries[0].extra["url"] == truth["videos"][0]["url"]


def test_the_real_test_list_passes_strict(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/annotations/msrvtt/MSRVTT_JSFUSION_test.csv"
    if not path.is_file():
        pytest.skip("the real test list is not in the reference material")
    source = tmp_path / "msrvtt"
    (source / "videos/all").mkdir(parents=True)
    (source / path.name).write_bytes(path.read_bytes())
    clip = source / "clip.mp4"
    clip.write_bytes(make_clip("mpeg4", count=2, size=(16, 16)))
    listed = [line.split(",")[2:] for line in path.read_text().splitlines()[1:]]
    for name, *_ in listed:
        (source / "videos/all" / f"{name}.mp4").hardlink_to(clip)
    results = convert("msrvtt_1ka_test", source, tmp_path / "out", strict=True, workers=2)
    records = read_back(tmp_path / "out")["test"]
    assert results["mismatches"] == [] and results["rejects"] == 0
    assert [(each["media_id"], each["captions"][0]) for each in records] == [
        (name, ",".join(words).strip('"')) for name, *words in listed
    ]

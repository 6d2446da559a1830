"""MSVD and VATEX: clips named by YouTube id and seconds, with many captions each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_tools import entries_of, of_kind, read_back, write_json
from drawn_clips import make_clip

from aurora_ds.data.convert import convert
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.vatex import read as read_vatex
from aurora_ds.errors import AuroraError

LISTS = {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt"}
VATEX = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
}
CLIPS = {"train": ["-aB_cD1eF2g_5_15", "b_9"], "val": ["c_1_2"], "test": ["d_3_4"]}


@pytest.fixture
def msvd(tmp_path: Path) -> Path:
    """Four clips as AVI, the caption file, the list files."""
    folder = tmp_path / "msvd"
    captions = {}
    for split, names in CLIPS.items():
        for number, name in enumerate(names):
            path = folder / "YouTubeClips" / f"{name}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_clip("mpeg4", "avi", count=6, size=(32, 16)))
            captions[name] = [f"{name} told {which}" for which in range(2 + number)]
        folder.joinpath("annotations").mkdir(exist_ok=True)
        (folder / "annotations" / LISTS[split]).write_text("\n".join(names) + "\n\n")
    write_json(folder / "annotations/captions_msvd.json", captions | {"in_no_list_1_2": ["not asked for"]})
    return folder


def test_msvd_from_captions_and_lists(msvd: Path, tmp_path: Path) -> None:
    results = convert("msvd", msvd, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert {split: [each["media_id"] for each in records[split]] for split in records} == CLIPS
    assert results["splits"]["train"]["pairs"] == 5 and results["rejects"] == 0
    second = records["train"][1]
    assert second["captions"] == ["b_9 told 0", "b_9 told 1", "b_9 told 2"]
    assert second["video_id"] == "b_9" and second["frames"] == 6


def test_msvd_ground_truth_is_of_val_and_test(msvd: Path, tmp_path: Path) -> None:
    convert("msvd", msvd, tmp_path / "out")
    truth = json.loads((tmp_path / "out/val_gt.json").read_text())
    assert truth["images"] == [{"id": "c_1_2"}]
    assert [each["caption"] for each in truth["annotations"]] == ["c_1_2 told 0", "c_1_2 told 1"]
    assert (tmp_path / "out/test_gt.json").is_file() and not (tmp_path / "out/train_gt.json").exists()


def test_msvd_from_the_descriptions_of_the_official_site(msvd: Path, tmp_path: Path) -> None:
    (msvd / "annotations/captions_msvd.json").unlink()
    lines = [
        "# the header",
        "#",
        "",
        *(f"{name} a word of {name}" for name in ["d_3_4", "c_1_2", "b_9", "x_0_1"]),
    ]
    (msvd / "annotations/AllVideoDescriptions.txt").write_text("\n".join(lines))
    results = convert("msvd", msvd, tmp_path / "out", max_rejects="50%")
    records = read_back(tmp_path / "out")
    assert [each["captions"] for each in records["train"]] == [["a word of b_9"]]
    assert [each["captions"] for each in records["test"]] == [["a word of d_3_4"]]
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert reject["media_id"] == "-aB_cD1eF2g_5_15" and "has no caption of it" in reject["reason"]
    assert results["rejects"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions_msvd.json", "[]", "found a list, expected an object"),
        ("captions_msvd.json", '{"b_9": 3}', "clip b_9 with '3' .number. as `captions`"),
        ("captions_msvd.json", '{"b_9": ["x"', "is not JSON"),
        ("val_list.txt", "c_1_2\nb_9\n", "val_list.txt lists b_9 also in .*train_list.txt"),
        ("val_list.txt", "\n", "found no line, expected a clip name per line"),
    ],
)
def test_wrong_msvd_files_are_told(msvd: Path, name: str, text: str, message: str) -> None:
    (msvd / "annotations" / name).write_text(text)
    with pytest.raises(AuroraError, match=message):
        entries_of("msvd", "captions", msvd / "annotations", captions="captions_msvd.json", **LISTS)


def test_a_description_without_words_is_told(msvd: Path) -> None:
    (msvd / "annotations/AllVideoDescriptions.txt").write_text("b_9\n")
    with pytest.raises(AuroraError, match="line 1 without a blank"):
        entries_of("msvd", "descriptions", msvd / "annotations", captions="AllVideoDescriptions.txt", **LISTS)


def vatex_file(names: list[str], chinese: bool = True) -> list[dict[str, Any]]:
    entries = [{"videoID": name, "enCap": [f"{name} {which}" for which in range(10)]} for name in names]
    if chinese:
        for entry in entries:
            entry["chCap"] = [f"\u732b {which}" for which in range(10)]
    return entries


def test_vatex_keeps_the_place_in_the_source_video(tmp_path: Path) -> None:
    source = tmp_path / "vatex"
    for number, (split, name) in enumerate(VATEX.items()):
        clip = f"_x-{number}_yZ_{number}0abc_000012_0000{22 + number}"
        write_json(source / name, vatex_file([clip], chinese=split != "test"))
        (source / "videos").mkdir(exist_ok=True)
        (source / "videos" / f"{clip}.webm").write_bytes(make_clip("libvpx", "webm", count=4, size=(32, 16)))
    results = convert("vatex", source, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert results["splits"]["test"]["pairs"] == 10 and results["rejects"] == 0
    [record] = records["val"]
    assert record["media_id"] == record["video_id"] == "_x-1_yZ_10abc_000012_000023"
    assert (record["youtube_id"], record["start_time"], record["end_time"]) == ("_x-1_yZ_10abc", 12, 23)
    assert record["captions"][9] == "_x-1_yZ_10abc_000012_000023 9" and len(record["captions"]) == 10


def test_vatex_languages_do_not_mix(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", vatex_file(["a_000001_000002"]))
    way = AnnotationFiles(format="official", files={"train": "train.json"}, options={"captions": "chCap"})
    entries = list(read_vatex(way, {"train": tmp_path / "train.json"}))
    assert [each.annotation for each in entries] == [f"\u732b {which}" for which in range(10)]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([], {}, "an empty list"),
        ({"videoID": "a"}, {}, "found an object, expected a list"),
        ([{"enCap": ["x"]}], {}, "entry 0 without `videoID`"),
        (
            [{"videoID": "a", "enCap": "x"}],
            {},
            r"entry 0 with 'x' \(text\) as `enCap`, expected a list of texts",
        ),
        ([{"videoID": "a", "enCap": ["x"]}], {"captions": "chCap"}, "entry 0 without `chCap`"),
        ([{"videoID": "a", "enCap": ["x"]}], {"captions": "frCap"}, "may be enCap or chCap"),
        ([{"videoID": "a", "enCap": ["x"]}], {"language": "en"}, "no option 'language'; options: captions"),
    ],
)
def test_wrong_vatex_input_is_told(
    tmp_path: Path, content: Any, options: dict[str, str], message: str
) -> None:
    write_json(tmp_path / "train.json", content)
    way = AnnotationFiles(format="official", files={"train": "train.json"}, options=options)
    with pytest.raises(AuroraError, match=message):
        list(read_vatex(way, {"train": tmp_path / "train.json"}))


def test_real_msvd_lists_have_the_published_counts(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/annotations/msvd"
    if not all((folder / name).is_file() for name in LISTS.values()):
        pytest.skip("the real lists are not in the reference material")
    names = {split: (folder / name).read_text().split() for split, name in LISTS.items()}
    write_json(tmp_path / "captions.json", {name: ["a", "b"] for each in names.values() for name in each})
    for name in LISTS.values():
        (tmp_path / name).symlink_to(folder / name)
    entries, rejects = of_kind(entries_of("msvd", "captions", tmp_path, captions="captions.json", **LISTS))
    media = {split: len({each.media for each in entries if each.split == split}) for split in LISTS}
    assert media == {"train": 1200, "val": 100, "test": 670} and rejects == [] and len(entries) == 2 * 1970


def test_real_vatex_entries(shared: Path) -> None:
    folder = shared / "data/annotations/vatex"
    if not (folder / "videocap5data.json").is_file():
        pytest.skip("the real entries are not in the reference material")
    entries, rejects = of_kind(entries_of("vatex", "official", folder, train="videocap5data.json"))
    assert len(entries) == 50 and len({each.media for each in entries}) == 5 and rejects == []
    assert entries[0].media == "5-xGskbsBgI_000055_000065"
    assert entries[0].extra["youtube_id"] == "5-xGskbsBgI" and entries[0].extra["end_time"] == 65

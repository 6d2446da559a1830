"""What `shards inspect` tells and draws."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from written_shards import Written, image_sample, picture, write_all_kinds, write_shards

from aurora_ds.data import contact_sheet
from aurora_ds.data.inspect import inspect_shards, summary_tables
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_kinds(tmp_path_factory.mktemp("kinds")).folder


def printed(summary: dict) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*summary_tables(summary))
    return console.export_text()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_counts_and_statistics(shards: Path) -> None:
    summary = inspect_shards(shards)
    train = summary["splits"]["train"]
    assert (train["samples"], train["pairs"], train["shards"], train["looked_at"]) == (45, 90, 7, 45)
    captions = train["annotations"]["captions"]
    assert captions["pairs"] == 90 and captions["per_medium"] == [1, 2.0, 3] and captions["words"][0] == 6
    assert train["median_pixels"] == [40, 32] and train["formats"] == {"jpg": 36, "png": 9}
    assert train["kinds"] == {"image": 45} and train["damaged"] == train["clips"] == {}
    assert train["bytes"] == sum(path.stat().st_size for path in shards.glob("train-*.tar"))


def test_every_kind_has_its_figures(all_kinds: Path) -> None:
    splits = inspect_shards(all_kinds)["splits"]
    assert {name: list(split["annotations"]) for name, split in splits.items()} == {
        "captions": ["captions"],
        "pairs": ["statements"],
        "clips": ["captions", "questions"],
        "frames": ["captions"],
        "phrases": ["phrases", "questions"],
        "moments": ["moments"],
    }
    assert splits["pairs"]["kinds"] == {"images": 2} and splits["pairs"]["formats"] == {"jpg": 2, "png": 2}
    assert splits["clips"]["annotations"]["questions"] == {
        "pairs": 1,
        "per_medium": [0, 0.5, 1],
        "words": [3, 3.0, 3],
    }
    assert splits["clips"]["clips"] == {
        "seconds": [1, 1.0, 1],
        "frames": [25, 25.0, 25],
        "fps": [25, 25.0, 25],
    }
    assert splits["frames"]["clips"]["frames"] == [50, 50.0, 50], "of the clip they were taken from"
    assert splits["captions"]["clips"] == {}


def test_the_tables_fit_a_terminal(shards: Path, all_kinds: Path) -> None:
    text = printed(inspect_shards(shards))
    assert "train" in text and "test" in text and "1–3, ⌀ 2" in text and "40x32" in text
    assert "jpg 80 %, png 20 %" in text and "seconds" not in text
    text = printed(inspect_shards(all_kinds))
    assert "fps" in text and "statements" in text and "…" not in text


def test_damaged_samples_are_counted(all_kinds: Path, tmp_path: Path) -> None:
    manifest = write_all_kinds(tmp_path)
    address = manifest.address("captions", 1)
    with open(tmp_path / address.shard, "r+b") as file:
        file.seek(address.start + 600)
        file.write(b"xx")
    summary = inspect_shards(tmp_path)
    assert summary["splits"]["captions"]["damaged"] == {"checksum": 1}
    assert "1 of 5 looked at" in printed(summary) and "damaged" not in printed(inspect_shards(all_kinds))


def test_figures_are_written_as_json(shards: Path, tmp_path: Path) -> None:
    summary = inspect_shards(shards, figures=tmp_path / "new/figures.json")
    assert json.loads((tmp_path / "new/figures.json").read_text()) == summary


def test_a_large_split_is_sampled(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    monkeypatch.setattr("aurora_ds.data.inspect.RECORDS_READ", 5)
    train = inspect_shards(shards)["splits"]["train"]
    assert train["looked_at"] == 5 and sum(train["kinds"].values()) == 5 and train["samples"] == 45


# --- the contact sheet -----------------------------------------------------------------------------------------------


def test_the_contact_sheet_shows_pictures_and_words(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "new/sheet.png"
    assert inspect_shards(shards, path)["contact_sheet"] == str(path)
    sheet = np.asarray(Image.open(path).convert("L"))
    assert sheet.shape[0] > 500 and sheet.shape[1] == contact_sheet.SHEET_WIDTH
    rows = (sheet < 128).any(axis=1)
    assert 0.2 < rows.mean() < 1.0


def test_all_splits_are_shown_in_turn() -> None:
    chosen = contact_sheet._choose({"train": 10_000_000, "val": 2, "test": 50})
    assert [split for split, _ in chosen] == ["train"] * 5 + ["val"] * 2 + ["test"] * 5
    assert chosen[0] == ("train", 0) and chosen[4] == ("train", 9_999_999)
    assert contact_sheet._choose({"train": 0}) == []


def test_clips_and_sets_stand_side_by_side(all_kinds: Path) -> None:
    manifest = Manifest.load(all_kinds)
    for split, parts in (("pairs", 2), ("clips", 3), ("frames", 3)):
        sample = ShardReader(manifest).read(split, 0)
        row = np.asarray(contact_sheet._picture(sample, 300))
        assert row.shape[1] == 300
        gaps = (row[-20:] == 255).all(axis=(0, 2))
        edges = np.flatnonzero(np.diff(np.concatenate([[1], gaps, [1]]).astype(int)) == -1)
        assert len(edges) == parts, split


def test_boxes_are_drawn_where_the_phrase_is(tmp_path: Path) -> None:
    phrases = [{"phrase": "left", "box": [12, 9, 30, 45]}, {"phrase": "without a box"}]
    grey = Image.new("RGB", (120, 90), "grey")
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    sample = Written("one", {"width": 120, "height": 90, "phrases": phrases}, [("png", buffer.getvalue())])
    manifest = write_shards(tmp_path, {"val": [[sample]]})
    drawn = np.asarray(contact_sheet._picture(ShardReader(manifest).read("val", 0), 300))
    red = np.argwhere((drawn == contact_sheet.BOX_COLOURS[0]).all(axis=2))
    assert red.min(0).tolist() == [9, 12] and red.max(0).tolist() == [54, 42]


def test_what_is_said_of_each_kind(all_kinds: Path) -> None:
    reader = ShardReader(Manifest.load(all_kinds))
    told = {
        (split, medium): [line.text for line in contact_sheet._told(reader.read(split, medium))]
        for split, medium in (("pairs", 0), ("clips", 1), ("phrases", 0), ("moments", 0))
    }
    assert told["pairs", 0] == ["[True] both pictures show blocks"]
    assert told["clips", 1] == ["What is moving? - blocks 70 %, colours 30 %"]
    assert told["phrases", 0] == ["· the block on the left"]
    assert told["moments", 0] == ["· the blocks stop (segments 0 to 0, 0 to 1)"]


def test_annotations_of_a_hidden_test_set_are_shown(tmp_path: Path) -> None:
    hidden = {
        "questions": [{"question": "Why?", "question_id": 1}],
        "statements": [{"sentence": "so it is", "identifier": "1"}],
        "moments": [{"caption": "it ends", "annotation_id": 2}],
    }
    manifest = write_shards(tmp_path, {"test": [[image_sample(1, **hidden)]]})
    lines = contact_sheet._told(ShardReader(manifest).read("test", 0))
    assert [line.text for line in lines] == [
        "Why? - no answer",
        "[no label] so it is",
        "· it ends (segments not told)",
    ]


def test_damaged_samples_are_shown_as_such(tmp_path: Path) -> None:
    bad = Written("bad", {"captions": ["this picture is cut"]}, [("jpg", picture(1)[:800])])
    write_shards(tmp_path / "shards", {"train": [[image_sample(1), bad, image_sample(2)]]})
    content = bytearray((tmp_path / "shards/train-000000.tar").read_bytes())
    content[600] ^= 1  # in the first record
    (tmp_path / "shards/train-000000.tar").write_bytes(content)
    inspect_shards(tmp_path / "shards", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    grey = (sheet == 238).all(axis=2)
    thirds = [part.sum() / (360 * 120) for part in np.array_split(grey, 3, axis=1)]
    assert thirds[0] > 0.8 and thirds[1] > 0.8 and thirds[2] < 0.1


def test_few_samples_make_a_small_sheet(tmp_path: Path) -> None:
    write_shards(tmp_path / "out", {"train": [[image_sample(1)]]})
    inspect_shards(tmp_path / "out", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width < 400


def test_a_sheet_must_be_a_picture(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="must be a picture: name it FILE.png"):
        inspect_shards(shards, tmp_path / "sheet.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuroraError, match="cannot be written"):
        inspect_shards(shards, tmp_path / "file/sheet.png")
    with pytest.raises(AuroraError, match="no folder"):
        inspect_shards(tmp_path / "nowhere")

"""NLVR2's pairs of photos and SNLI-VE's photos, with sentences and labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from convert_tools import ANNOTATIONS, draw_all, entries_of, of_kind, read_back, write_json, write_lines
from drawn_data import draw

from aurora_ds.data.convert import convert
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError


def nlvr2_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ANNOTATIONS / "nlvr2_dev.json").read_text().splitlines()]


def nlvr2_source(folder: Path) -> Path:
    """The excerpt as dev.json with the photos of both pairs drawn, one of them a JPEG in spite of its name."""
    source = folder / "nlvr2"
    write_lines(source / "dev.json", nlvr2_rows())
    names = [f"dev/dev-850-{pair}-img{side}.png" for pair in (0, 1) for side in (0, 1)]
    draw_all(source, names)
    draw(source / "photo.jpg", 99)
    (source / "photo.jpg").replace(source / "dev/dev-850-1-img1.png")
    return source


def test_a_pair_of_photos_has_all_its_sentences(tmp_path: Path) -> None:
    source = nlvr2_source(tmp_path)
    results = convert("nlvr2", source, tmp_path / "out")
    records = read_back(tmp_path / "out")["dev"]
    assert results["splits"]["dev"] == results["splits"]["dev"] | {"samples": 2, "pairs": 4}
    assert [record["media_id"] for record in records] == [
        [f"dev/dev-850-{pair}-img0.png", f"dev/dev-850-{pair}-img1.png"] for pair in (0, 1)
    ]
    for pair, record in enumerate(records):
        assert record["kind"] == "images" and record["sizes"] == [[40, 32], [40, 32]]
        assert record["statements"] == [
            {name: row[name] for name in ("sentence", "label", "identifier")}
            for row in nlvr2_rows()
            if row["identifier"].startswith(f"dev-850-{pair}-")
        ]


def test_the_photos_of_a_pair_are_stored_unchanged_under_what_they_are(tmp_path: Path) -> None:
    source = nlvr2_source(tmp_path)
    convert("nlvr2", source, tmp_path / "out")
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("dev", 1)
    assert [part.extension for part in sample.parts] == ["png", "jpg"]
    assert [part.content for part in sample.parts] == [
        (source / f"dev/dev-850-1-img{side}.png").read_bytes() for side in (0, 1)
    ]


def test_training_photos_are_in_numbered_folders(tmp_path: Path) -> None:
    row = nlvr2_rows()[0] | {"identifier": "train-10171-2-1", "directory": 37}
    write_lines(tmp_path / "train.json", [row])
    entries, _ = of_kind(entries_of("nlvr2", "official", tmp_path, train="train.json"))
    assert entries[0].media == (
        "images/train/37/train-10171-2-img0.png",
        "images/train/37/train-10171-2-img1.png",
    )


@pytest.mark.parametrize("upper", ["images/train/37", "train/37", "images/images/train/37", "37", "images"])
def test_training_photos_are_found_as_unpacked_or_moved(tmp_path: Path, upper: str) -> None:
    write_lines(tmp_path / "dev.json", nlvr2_rows())
    row = nlvr2_rows()[0] | {"identifier": "train-10171-2-1", "directory": 37}
    write_lines(tmp_path / "train.json", [row])
    draw_all(tmp_path, [f"{upper}/train-10171-2-img{side}.png" for side in (0, 1)])
    draw_all(tmp_path, [f"images/dev/dev-850-{pair}-img{side}.png" for pair in (0, 1) for side in (0, 1)])
    results = convert("nlvr2", tmp_path, tmp_path / "out")
    assert {split: counts["samples"] for split, counts in results["splits"].items()} == {"train": 1, "dev": 2}


def test_a_pair_with_one_photo_missing_is_rejected(tmp_path: Path) -> None:
    source = nlvr2_source(tmp_path)
    (source / "dev/dev-850-0-img1.png").unlink()
    convert("nlvr2", source, tmp_path / "out", max_rejects=1)
    assert (tmp_path / "out/rejects.jsonl").read_text().count("dev-850-0-img1.png") == 1
    assert [record["media_id"][0] for record in read_back(tmp_path / "out")["dev"]] == [
        "dev/dev-850-1-img0.png"
    ]


def test_the_lists_of_blip(tmp_path: Path) -> None:
    rows = [
        {"images": ["dev/a-img0.png", "dev/a-img1.png"], "sentence": sentence, "label": label}
        for sentence, label in (("Two dogs.", "True"), ("One dog.", "False"))
    ]
    write_json(tmp_path / "nlvr_dev.json", rows)
    draw_all(tmp_path, ["images/dev/a-img0.png", "images/dev/a-img1.png"])
    convert("nlvr2", tmp_path, tmp_path / "out")
    (record,) = read_back(tmp_path / "out")["dev"]
    assert record["statements"] == [
        {"sentence": "Two dogs.", "label": "True"},
        {"sentence": "One dog.", "label": "False"},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "true"}, "line 2 with 'true' .text. as `label`, expected True or False"),
        ({"identifier": "dev-850-0"}, "expected split-set-pair-sentence"),
        ({"identifier": "../../dev-850-0-0"}, "expected split-set-pair-sentence"),
        ({"identifier": "train-850-0-0"}, "line 2 without `directory`"),
        ({"sentence": None}, "expected a text as `sentence`"),
    ],
)
def test_nlvr2_lines_of_another_shape(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = nlvr2_rows()
    rows[1] |= change
    write_lines(tmp_path / "dev.json", rows)
    with pytest.raises(AuroraError, match=message):
        entries_of("nlvr2", "official", tmp_path, dev="dev.json")


@pytest.mark.parametrize("images", [["one.png"], ["a.png", "b.png", "c.png"], "a.png", ["a.png", ""]])
def test_lists_need_two_images(tmp_path: Path, images: Any) -> None:
    write_json(tmp_path / "nlvr_dev.json", [{"images": images, "sentence": "A.", "label": "True"}])
    with pytest.raises(AuroraError, match="entry 0 .*images"):
        entries_of("nlvr2", "blip", tmp_path, dev="nlvr_dev.json")


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(f"{json.dumps(nlvr2_rows()[0])}\n<html>\n")
    with pytest.raises(AuroraError, match="line 2, is not JSON"):
        entries_of("nlvr2", "official", tmp_path, dev="dev.json")


# SNLI-VE: sentences of our own in the official fields, because SNLI's may be passed on under its own licence only


def snli_row(image: str, number: int, label: str, sentence: str) -> dict[str, Any]:
    return {
        "Flickr30K_ID": image,
        "annotator_labels": [label] * 3,
        "captionID": f"{image}.jpg#{number}",
        "gold_label": label,
        "pairID": f"{image}.jpg#{number}r1{label[0]}",
        "sentence1": "Somebody outside.",
        "sentence2": sentence,
    }


SNLI_ROWS = [
    snli_row("1000092795", 0, "entailment", "Someone is there.\n"),
    snli_row("1000092795", 1, "contradiction", "Nobody is there."),
    snli_row("10002456", 0, "neutral", "It is cold."),
    snli_row("1000092795", 2, "-", "They are friends."),
]


def snli_source(folder: Path) -> Path:
    source = folder / "snli"
    for split in ("train", "dev", "test"):
        write_lines(source / f"annotations/snli_ve_{split}.jsonl", SNLI_ROWS)
    draw_all(source, ["flickr30k-images/1000092795.jpg", "flickr30k-images/10002456.jpg"])
    return source


def test_photos_have_their_hypotheses_and_labels(tmp_path: Path) -> None:
    convert("snli_ve", snli_source(tmp_path), tmp_path / "out", max_rejects=3)
    for records in read_back(tmp_path / "out").values():
        assert [record["media_id"] for record in records] == ["1000092795.jpg", "10002456.jpg"]
        assert [record["statements"] for record in records] == [
            [
                {
                    "sentence": "Someone is there.\n",
                    "label": "entailment",
                    "identifier": "1000092795.jpg#0r1e",
                },
                {
                    "sentence": "Nobody is there.",
                    "label": "contradiction",
                    "identifier": "1000092795.jpg#1r1c",
                },
            ],
            [{"sentence": "It is cold.", "label": "neutral", "identifier": "10002456.jpg#0r1n"}],
        ]


def test_a_hypothesis_without_gold_label_is_told(tmp_path: Path) -> None:
    _, rejects = of_kind(
        entries_of("snli_ve", "official", snli_source(tmp_path) / "annotations", dev="snli_ve_dev.jsonl")
    )
    assert [(reject.split, reject.media_id, reject.reason) for reject in rejects] == [
        (
            "dev",
            "1000092795.jpg",
            "pair 1000092795.jpg#2r1- has no gold label: the annotators did not agree",
        )
    ]


def test_lists_name_photos_with_or_without_extension(tmp_path: Path) -> None:
    rows = [
        {"image": image, "sentence": "A man.", "label": "neutral"}
        for image in ("10002456", "10002456.jpg", 10002456)
    ]
    write_json(tmp_path / "ve_train.json", rows)
    entries, _ = of_kind(entries_of("snli_ve", "albef", tmp_path, train="ve_train.json"))
    assert [entry.media for entry in entries] == ["10002456.jpg"] * 3
    assert entries[0].annotation == {"sentence": "A man.", "label": "neutral"}


def test_own_lists_name_paths_and_may_name_statements(tmp_path: Path) -> None:
    row = {"image": "test/a.png", "sentence": "A cup.", "label": "entailment"}
    write_json(tmp_path / "test.json", [row | {"identifier": "one"}, row | {"label": "neutral"}])
    draw_all(tmp_path, ["images/test/a.png"])
    convert("statements", tmp_path, tmp_path / "out")
    (record,) = read_back(tmp_path / "out")["test"]
    assert record["statements"] == [
        {"sentence": "A cup.", "label": "entailment", "identifier": "one"},
        {"sentence": "A cup.", "label": "neutral"},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_label": "maybe"}, "expected one of entailment, neutral, contradiction as `gold_label`"),
        ({"Flickr30K_ID": None}, "as `Flickr30K_ID`"),
        ({"sentence2": 4}, "expected a text as `sentence2`"),
    ],
)
def test_snli_ve_lines_of_another_shape(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_lines(tmp_path / "dev.jsonl", [SNLI_ROWS[0] | change])
    with pytest.raises(AuroraError, match=message):
        entries_of("snli_ve", "official", tmp_path, dev="dev.jsonl")


# the datasets' own files, read in place


def test_a_thousand_real_nlvr2_sentences(shared: Path) -> None:
    entries, rejects = of_kind(
        entries_of("nlvr2", "official", shared / "data/annotations/nlvr2", dev="dev.first1000.json")
    )
    assert (len(entries), len({entry.media for entry in entries}), rejects) == (1000, 576, [])


def test_the_real_snli_ve_excerpt(shared: Path) -> None:
    entries, rejects = of_kind(
        entries_of("snli_ve", "official", shared / "data/annotations/snli_ve", dev="sample_pairs.jsonl")
    )
    labels = Counter(entry.annotation["label"] for entry in entries)
    assert labels == {"neutral": 6, "entailment": 6, "contradiction": 4} and not rejects
    assert len({entry.media for entry in entries}) == 2

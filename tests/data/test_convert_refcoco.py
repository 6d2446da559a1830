"""RefCOCO's phrases and boxes from REFER's pickle, X-VLM's lists and TransVG's index, none of which may run code."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_tools import ANNOTATIONS, draw_all, entries_of, of_kind, read_back, write_json

from aurora_ds.data.convert import convert
from aurora_ds.data.convert.refcoco import plain_pickle
from aurora_ds.errors import AuroraError

FIRST, SECOND = "COCO_train2014_000000318556.jpg", "COCO_train2014_000000116100.jpg"
PIXELS = (640, 640)  # hold all boxes
REFS, INSTANCES = "refs(unc).p", "instances.json"


def reference(number: int, ann_id: int, image_id: int, split: str, phrases: list[str]) -> dict[str, Any]:
    """A reference in REFER's layout: the file name carries the annotation, and the box is elsewhere."""
    sent_ids = [100 * number + place for place in range(len(phrases))]
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 64,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{number}.jpg",
        "sent_ids": sent_ids,
        "sentences": [
            {"sent_id": sent_id, "sent": phrase, "raw": phrase.upper(), "tokens": phrase.split()}
            for sent_id, phrase in zip(sent_ids, phrases, strict=True)
        ],
    }


REFERENCES = [
    reference(1, 86, 318556, "train", ["left plant", "the plant on the left"]),
    reference(2, 89, 116100, "testA", ["small\nbowl "]),
    reference(3, 93, 318556, "train", ["white curtain"]),
]


def refcoco_source(folder: Path, references: list[Any], recipe: str = "refcoco") -> Path:
    """REFER's layout; the pickle has Python 2's protocol, as the published ones."""
    source = folder / "refer"
    write_json(source / recipe / INSTANCES, json.loads((ANNOTATIONS / INSTANCES).read_text()))
    (source / recipe / REFS).write_bytes(pickle.dumps(references, protocol=0))
    draw_all(source, [f"images/mscoco/images/train2014/{name}" for name in (FIRST, SECOND)], PIXELS)
    return source


def read_refs(source: Path, recipe: str = "refcoco") -> tuple[list, list]:
    return of_kind(entries_of(recipe, "refer", source / recipe, refs=REFS, instances=INSTANCES))


def test_photos_have_their_phrases_with_boxes_in_pixels(tmp_path: Path) -> None:
    results = convert("refcoco", refcoco_source(tmp_path, REFERENCES), tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert results["splits"]["train"] == results["splits"]["train"] | {"samples": 1, "pairs": 3}
    (train,) = records["train"]
    assert (train["media_id"], train["image_id"], train["kind"]) == (FIRST, 318556, "image")
    common = {"category_id": 64}
    first = common | {"box": [116.95, 305.86, 285.3, 266.03], "ref_id": 1, "ann_id": 86}
    assert train["phrases"] == [
        first | {"phrase": "left plant", "sent_id": 100},
        first | {"phrase": "the plant on the left", "sent_id": 101},
        common
        | {
            "phrase": "white curtain",
            "box": [288.4, 18.07, 211.6, 331.33],
            "ref_id": 3,
            "ann_id": 93,
            "sent_id": 300,
        },
    ]
    (test,) = records["testA"]
    assert [each["phrase"] for each in test["phrases"]] == ["small\nbowl "]


def test_a_split_that_the_recipe_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        AuroraError, match="reference 0 with 'testC' .* expected one of train, val, testA, testB"
    ):
        read_refs(refcoco_source(tmp_path, [reference(1, 86, 318556, "testC", ["a"])]))


def test_references_to_what_instances_json_lacks_are_told(tmp_path: Path) -> None:
    references = [reference(7, 555, 318556, "val", ["a"]), reference(8, 86, 1, "val", ["b"])]
    entries, rejects = read_refs(refcoco_source(tmp_path, references))
    assert not entries
    assert [reject.reason for reject in rejects] == [
        "annotation 555 of reference 7 is not in instances.json",
        "image 1 of reference 8 is not in instances.json",
    ]


def test_the_raw_text_stands_in_for_a_missing_cleaned_one(tmp_path: Path) -> None:
    references = [reference(1, 86, 318556, "train", ["left plant"])]
    del references[0]["sentences"][0]["sent"]
    entries, _ = read_refs(refcoco_source(tmp_path, references))
    assert entries[0].annotation["phrase"] == "LEFT PLANT"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": "86"}, "expected a whole number as `ann_id`"),
        ({"sentences": "text"}, "expected a list of objects as `sentences`"),
        ({"sentences": [{"sent": "a"}]}, "without `sent_id`"),
    ],
)
def test_references_of_another_shape(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AuroraError, match=f"reference 0.*{message}"):
        read_refs(refcoco_source(tmp_path, [REFERENCES[0] | change]))


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "4"], None, [1, 2, 3, True]])
def test_boxes_of_another_shape(tmp_path: Path, box: Any) -> None:
    source = refcoco_source(tmp_path, REFERENCES)
    content = json.loads((source / "refcoco" / INSTANCES).read_text())
    content["annotations"][2]["bbox"] = box
    write_json(source / "refcoco" / INSTANCES, content)
    with pytest.raises(AuroraError, match=r"annotations\[2\] .* expected four numbers"):
        read_refs(source)


def test_an_empty_box_is_told(tmp_path: Path) -> None:
    torch.save([*TUPLES, (FIRST, "m", [1, 2, 0, 4], "a line", [])], tmp_path / "unc_val.pth")
    entries, rejects = of_kind(entries_of("refcoco", "transvg", tmp_path, val="unc_val.pth"))
    assert len(entries) == 2
    assert [reject.reason for reject in rejects] == ["the box of 'a line' is 0.0 x 4.0 pixels"]


def test_a_box_outside_its_photo_is_told_with_the_photo(tmp_path: Path) -> None:
    """How large a photo is, is known when it is read; the others are converted."""
    rows = [
        {"image": "a.png", "phrase": "a dog", "box": [1, 2, 30, 20]},
        {"image": "b.png", "phrase": "a cat", "box": [1, 2, 30, 20]},
        {"image": "b.png", "phrase": "a boat", "box": [30, 2, 12, 9]},
    ]
    write_json(tmp_path / "raw/val.json", rows)
    draw_all(tmp_path / "raw/images", ["a.png", "b.png"])
    convert("phrases", tmp_path / "raw", tmp_path / "out", max_rejects=1)
    assert [record["media_id"] for record in read_back(tmp_path / "out")["val"]] == ["a.png"]
    (line,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert "'a boat' does not lie in the image of 40 x 32 pixels" in line and "b.png" in line


# pickles


class Runs:
    """What a malicious pickle holds: a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(REFERENCES, protocol=protocol))
    assert plain_pickle(tmp_path / "refs.p") == REFERENCES


def test_texts_of_python_2_are_read(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'id'\np4\nL5L\nsa.")
    assert plain_pickle(tmp_path / "refs.p") == [{"sent": "café", "id": 5}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    content = pickle.dumps([*REFERENCES, Runs(made)], protocol=protocol)
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(AuroraError, match="it asks for (posix|nt|os).mkdir"):
        plain_pickle(tmp_path / "refs.p")
    assert not made.exists()
    pickle.loads(content)  # the check can fail: this file does run code
    assert made.exists()


@pytest.mark.parametrize("harmless", [{1, 2}, frozenset([1])])
def test_sets_are_values_and_classes_are_not(tmp_path: Path, harmless: Any) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(harmless, protocol=4))
    assert plain_pickle(tmp_path / "refs.p") == harmless
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(AuroraError, match="it asks for pathlib"):
        plain_pickle(tmp_path / "refs.p")


def test_a_pickle_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    content = pickle.dumps(REFERENCES[:1], protocol=2)
    for end in range(len(content)):
        (tmp_path / "refs.p").write_bytes(content[:end])
        with pytest.raises(AuroraError, match="cannot be read as a pickle of plain values"):
            plain_pickle(tmp_path / "refs.p")


def test_a_pickle_with_any_damaged_operation_is_plain_or_an_error_of_ours(tmp_path: Path) -> None:
    content = pickle.dumps(REFERENCES[:1], protocol=2)
    places = [place for _, _, place in pickletools.genops(content)]
    for place in places:
        for code in (0x63, 0x52, 0x81, 0x82, 0x51, 0x8E, 0x00, 0x72, 0xFF):
            (tmp_path / "refs.p").write_bytes(content[:place] + bytes([code]) + content[place + 1 :])
            try:
                plain_pickle(tmp_path / "refs.p")
            except AuroraError:
                continue


@pytest.mark.parametrize("content", [{}, [], "text", [1]])
def test_pickles_of_another_shape(tmp_path: Path, content: Any) -> None:
    with pytest.raises(AuroraError, match="another shape"):
        read_refs(refcoco_source(tmp_path, content))


# other forms


def test_lists_take_the_box_of_their_reference_and_its_split(tmp_path: Path) -> None:
    source = refcoco_source(tmp_path, [*REFERENCES, reference(4, 86, 318556, "val", ["a"])], "refcoco+")
    rows = {
        "train": [{"image": f"train2014/{FIRST}", "text": "a plant", "ref_id": 1}],
        "val": [{"image": f"train2014/{FIRST}", "text": "a vase", "ref_id": number} for number in (77, 4)],
        "test": [{"image": f"train2014/{SECOND}", "text": "a bowl", "ref_id": 2}],
    }
    for split, content in rows.items():
        write_json(source / f"refcoco+/refcoco+_{split}.json", content)
    convert("refcoco_plus", source, tmp_path / "out", max_rejects=1)
    records = read_back(tmp_path / "out")
    assert records["testA"][0]["phrases"] == [
        {
            "phrase": "a bowl",
            "box": [245.54, 208.17, 40.14, 19.1],
            "ref_id": 2,
            "ann_id": 89,
            "category_id": 64,
        }
    ]
    assert records["train"][0]["image_id"] == 318556
    assert "reference 77 is not in refs(unc).p" in (tmp_path / "out/rejects.jsonl").read_text()


TUPLES = [
    (FIRST, "318556_86.pth", [10, 20, 30, 40], "left plant", [("r1", ["none"])]),
    (FIRST, "318556_86.pth", [10.5, 20, 30, 40], "the left plant", [("r1", ["none"])]),
]


def test_the_index_of_transvg(tmp_path: Path) -> None:
    for split in ("train", "val", "testA", "testB"):
        (tmp_path / "unc").mkdir(exist_ok=True)
        torch.save(TUPLES, tmp_path / f"unc/unc_{split}.pth")
    draw_all(tmp_path, [f"train2014/{FIRST}"], PIXELS)
    convert("refcoco", tmp_path, tmp_path / "out")
    for records in read_back(tmp_path / "out").values():
        assert records[0]["phrases"] == [
            {"phrase": "left plant", "box": [10, 20, 30, 40]},
            {"phrase": "the left plant", "box": [10.5, 20, 30, 40]},
        ]
        assert (records[0]["media_id"], records[0]["image_id"]) == (FIRST, 318556)


def test_boxes_of_referit_are_corners(tmp_path: Path) -> None:
    (tmp_path / "referit").mkdir()
    for split in ("train", "val", "test"):
        index = [
            ("72.jpg", "72_1.pth", [10, 20, 30, 28.5], "sky", []),
            ("72.jpg", "m", [9, 4, 9, 8], "a", []),
        ]
        torch.save(index, tmp_path / f"referit/referit_{split}.pth")
    draw_all(tmp_path, ["referit/images/72.jpg"])
    convert("referit", tmp_path, tmp_path / "out", max_rejects=3)
    for (record,) in read_back(tmp_path / "out").values():
        assert record["phrases"] == [{"phrase": "sky", "box": [10, 20, 20, 8.5]}]
    assert (tmp_path / "out/rejects.jsonl").read_text().count("the box of 'a' is 0.0 x 4.0 pixels") == 3


@pytest.mark.parametrize("old_format", [True, False])
def test_an_index_that_would_run_code_is_refused_unrun(tmp_path: Path, old_format: bool) -> None:
    made = tmp_path / "made"
    torch.save([*TUPLES, Runs(made)], tmp_path / "unc_val.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(AuroraError, match="cannot be read without running code"):
        entries_of("refcoco", "transvg", tmp_path, val="unc_val.pth")
    assert not made.exists()


@pytest.mark.parametrize(
    "content", [[], {}, [(FIRST, "m", [1, 2, 3, 4], "a")], [(FIRST, "m", [1, 2], "a", [])]]
)
def test_indexes_of_another_shape(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "unc_val.pth")
    with pytest.raises(AuroraError, match="another shape"):
        entries_of("refcoco", "transvg", tmp_path, val="unc_val.pth")


def test_an_index_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "unc_val.pth").write_bytes(b"<html>")
    with pytest.raises(AuroraError, match="cannot be read without running code"):
        entries_of("refcoco", "transvg", tmp_path, val="unc_val.pth")


@pytest.mark.parametrize(
    ("recipe", "refs", "splits"),
    [
        ("refcocog", "refs(umd).p", ["train", "val", "test"]),
        ("refcocog_google", "refs(google).p", ["train", "val"]),
    ],
)
def test_the_splits_of_refcocog(tmp_path: Path, recipe: str, refs: str, splits: list[str]) -> None:
    source = refcoco_source(
        tmp_path, [reference(1, 86, 318556, split, ["a plant"]) for split in splits], "refcocog"
    )
    (source / "refcocog" / REFS).rename(source / "refcocog" / refs)
    convert(recipe, source, tmp_path / "out")
    assert list(read_back(tmp_path / "out")) == splits

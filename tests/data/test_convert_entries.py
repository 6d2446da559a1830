"""What a family's entries become: samples of every kind, records, and the files beside the shards."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from drawn_data import draw

from aurora_ds.data.convert import convert, sources
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import BadSample, ShardReader
from aurora_ds.data.tar_header import plain_member, tar_header
from aurora_ds.errors import AuroraError

Converted = Callable[..., dict[str, Any]]


@pytest.fixture
def convert_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converted:
    """Converts a list of entries to tmp_path/out; images 0.jpg … 9.jpg are there. `recipe` and `option` are changes."""
    for number in range(10):
        draw(tmp_path / f"source/{number}.jpg", number, (40, 32 + 4 * number))
    (tmp_path / "source/annotations.json").write_text("[]")

    def run(
        entries: list[Entry | Reject], recipe: dict[str, Any] | None = None, **option: Any
    ) -> dict[str, Any]:
        def read(way: object, files: dict[str, Path]) -> Iterator[Entry | Reject]:
            yield from entries

        family = SimpleNamespace(FORMATS=("listed",), read=read, candidates=lambda name: [name])
        monkeypatch.setitem(sources.FAMILIES, "listed", family)
        content = {
            "name": "listed",
            "family": "listed",
            "title": "x",
            "licence": "x",
            "obtain": "x",
            "layout": "x",
            "annotations": [{"format": "listed", "files": {"all": "annotations.json"}}],
            **(recipe or {}),
        }
        (tmp_path / "listed.yaml").write_text(yaml.safe_dump(content))
        return convert(tmp_path / "listed.yaml", tmp_path / "source", tmp_path / "out", **option)

    return run


def records(folder: Path, split: str) -> list[dict[str, Any]]:
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    return [reader.record(split, number)[1] for number in range(manifest.media(split))]


def question(number: int, *answers: str, image: str = "0.jpg", split: str = "train") -> Entry:
    weighted = [{"answer": answer, "weight": 1 / len(answers)} for answer in answers]
    return Entry(
        split, image, "questions", {"question": f"what {number}", "question_id": number, "answers": weighted}
    )


def test_entries_of_a_medium_need_not_stand_together(convert_entries: Converted, tmp_path: Path) -> None:
    convert_entries(
        [
            Entry("train", "1.jpg", "captions", "one", annotation_id=7, extra={"image_id": 1}),
            Entry("train", "0.jpg", "captions", "zero"),
            Entry("train", "1.jpg", "captions", "uno", annotation_id=9, extra={"image_id": 1}),
            question(5, "yes", image="1.jpg"),
        ]
    )
    found = records(tmp_path / "out", "train")
    assert [record["media_id"] for record in found] == ["1.jpg", "0.jpg"]
    assert found[0]["captions"] == ["one", "uno"] and found[0]["caption_ids"] == [7, 9]
    assert found[0]["image_id"] == 1 and found[0]["questions"][0]["question_id"] == 5
    assert "caption_ids" not in found[1] and "questions" not in found[1]


def test_kinds_are_counted(convert_entries: Converted, tmp_path: Path) -> None:
    results = convert_entries(
        [
            Entry("train", "0.jpg", "captions", "one"),
            question(1, "yes", image="1.jpg"),
            question(2, "yes", image="1.jpg"),
            Entry("train", "2.jpg"),
        ]
    )
    assert results["splits"]["train"]["counts"] == {"captions": 1, "questions": 2}
    assert (results["splits"]["train"]["samples"], results["splits"]["train"]["pairs"]) == (3, 3)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.kinds("train") == ("captions", "questions")
    assert manifest.annotation_counts("train", "questions").tolist() == [0, 2, 0]
    assert manifest.annotation_counts("train", "captions").tolist() == [1, 0, 0]


def test_a_group_of_images_is_one_sample(convert_entries: Converted, tmp_path: Path) -> None:
    statement = {"sentence": "both are red", "label": "True", "identifier": "dev-0"}
    convert_entries(
        [Entry("val", ("3.jpg", "1.jpg"), "statements", statement, key="dev-0")], {"media": "images"}
    )
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("val", 0)
    assert sample.kind == "images" and sample.key == "val-0000000-3"
    assert sample.record["media_id"] == ["3.jpg", "1.jpg"]
    assert sample.record["sizes"] == [[40, 44], [40, 36]]
    assert [part.content for part in sample.parts] == [
        (tmp_path / "source" / name).read_bytes() for name in ("3.jpg", "1.jpg")
    ]


def test_a_group_with_a_missing_image_is_one_reject(convert_entries: Converted, tmp_path: Path) -> None:
    entries = [
        Entry("val", names, "statements", {"sentence": "s"})
        for names in (("0.jpg", "no.jpg"), ("1.jpg", "2.jpg"))
    ]
    assert convert_entries(entries, {"media": "images"}, max_rejects=1)["rejects"] == 1
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text()) == {
        "split": "val",
        "media_id": "0.jpg + no.jpg",
        "reason": "there is no such image file",
    }
    assert records(tmp_path / "out", "val")[0]["media_id"] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("kind", "field"),
    [("questions", "question"), ("statements", "sentence"), ("phrases", "phrase"), ("moments", "caption")],
)
def test_blank_words_are_rejected_and_the_medium_keeps_the_rest(
    convert_entries: Converted, tmp_path: Path, kind: str, field: str
) -> None:
    box = {"box": [1, 2, 3, 4]} if kind == "phrases" else {}
    convert_entries(
        [Entry("train", "0.jpg", kind, {field: words, **box}) for words in ("fine", " . ", "good")]
        + [Entry("train", "1.jpg", kind, {field: "!", **box})],
        max_rejects=2,
    )
    assert [each[field] for each in records(tmp_path / "out", "train")[0][kind]] == ["fine", "good"]
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [reject["reason"] for reject in rejects] == [
        f"{kind[:-1]} 1 is blank; the medium keeps its other annotations",
        f"all {kind} are blank",
    ]


def test_a_phrase_without_a_box_is_rejected(convert_entries: Converted, tmp_path: Path) -> None:
    entries = [
        Entry("train", "0.jpg", "phrases", {"phrase": "the dog"}),
        Entry("train", "1.jpg", "phrases", {"phrase": "the cat", "box": [1, 2, 3, 4]}),
    ]
    convert_entries(entries, max_rejects=1)
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert (reject["media_id"], reject["reason"]) == ("0.jpg", "the phrase 'the dog' has no box")


def test_rejects_of_the_family_are_counted_and_listed_first(
    convert_entries: Converted, tmp_path: Path
) -> None:
    entries = [Reject("train", "x.jpg", "no words"), *(Entry("train", f"{n}.jpg") for n in range(3))]
    (tmp_path / "source/1.jpg").write_bytes(b"no image")
    assert convert_entries(entries, max_rejects="50%")["rejects"] == 2
    lines = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["media_id"] for line in lines] == ["x.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Entry("train", "1.jpg", "captions", "b", key=4), "4 is given to both 0.jpg and 1.jpg"),
        (
            Entry("train", "0.jpg", "captions", "b", key=4, extra={"image_id": 2}),
            "0.jpg has two values of `image_id`: 1 and 2",
        ),
        (Entry("../x", "0.jpg"), r"name a split '\.\./x'"),
    ],
)
def test_entries_that_contradict_each_other(convert_entries: Converted, second: Entry, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        convert_entries([Entry("train", "0.jpg", "captions", "a", key=4, extra={"image_id": 1}), second])


def test_half_a_surrogate_pair_stops_nothing(convert_entries: Converted, tmp_path: Path) -> None:
    half = json.loads('"\\ud83d"')
    entries = [
        Entry("val", "0.jpg", "captions", f"smile {half}"),
        Entry("val", f"{half}.jpg", "captions", "no such file"),
        Reject("val", f"{half}.png", half),
    ]
    results = convert_entries(entries, {"ground_truth": True}, max_rejects=2)
    assert results["rejects"] == 2 and records(tmp_path / "out", "val")[0]["captions"] == ["smile ?"]
    assert json.loads((tmp_path / "out/val_gt.json").read_text())["annotations"][0]["caption"] == "smile ?"


def test_limit_keeps_the_first_media_with_all_their_entries(
    convert_entries: Converted, tmp_path: Path
) -> None:
    entries = [Entry("train", f"{n}.jpg", "captions", word) for word in ("a", "b") for n in range(5)]
    convert_entries(entries, limit=2)
    assert [record["captions"] for record in records(tmp_path / "out", "train")] == [["a", "b"], ["a", "b"]]


def test_a_family_and_a_format_that_do_not_exist_are_named(convert_entries: Converted) -> None:
    with pytest.raises(AuroraError, match="no family 'none'; there is coco, "):
        convert_entries([], {"family": "none"})
    with pytest.raises(AuroraError, match="family listed has no format 'blip'; it reads listed"):
        convert_entries([], {"annotations": [{"format": "blip", "files": {"all": "annotations.json"}}]})


def test_a_wrong_source_folder_of_a_large_dataset_is_told_at_once(
    convert_entries: Converted, tmp_path: Path
) -> None:
    entries = [Entry("train", f"elsewhere/{n}.jpg") for n in range(300)]
    with pytest.raises(
        AuroraError, match="None of the first 100 media has a file; the first: elsewhere/0.jpg"
    ):
        convert_entries(entries, max_rejects=250)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_expected_counts_of_the_files_that_are_there_come_first(convert_entries: Converted) -> None:
    ways = [
        {
            "format": "listed",
            "files": {"all": "annotations.json"},
            "expected": {"train": {"pairs": 2}, "val": {"samples": 3}},
        }
    ]
    recipe = {"annotations": ways, "expected": {"train": {"samples": 9, "pairs": 9}}}
    entries = [Entry("train", "0.jpg", "captions", word) for word in ("a", "b")] + [Entry("val", "1.jpg")]
    expected = ["val has 1 media and 0 pairs, expected 3 and 0"]
    assert convert_entries(entries, recipe)["mismatches"] == expected
    with pytest.raises(AuroraError, match=f"is not what its recipe expects: {expected[0]}"):
        convert_entries(entries, recipe, strict=True)


# files beside the shards


def test_ground_truth_of_the_splits_that_are_evaluated(convert_entries: Converted, tmp_path: Path) -> None:
    (tmp_path / "source/1.jpg").write_bytes(b"no image")
    results = convert_entries(
        [
            Entry("train", "0.jpg", "captions", "trained on"),
            *(
                Entry(
                    "val",
                    f"{n}.jpg",
                    "captions",
                    f"{word} {n}",
                    annotation_id=identity,
                    extra={"image_id": 70 + n},
                )
                for n in (2, 1, 3)
                for word, identity in (("a", 10 * n), ("b", 10 * n + 1))
            ),
            Entry("test", "4.jpg", "captions", "unnumbered"),
        ],
        {"ground_truth": True, "samples_per_shard": 2},
        max_rejects=1,
    )
    assert results["files"] == ["test_gt.json", "val_gt.json"]
    assert json.loads((tmp_path / "out/val_gt.json").read_text()) == {
        "images": [{"id": 72}, {"id": 73}],
        "annotations": [
            {"image_id": 72, "id": 20, "caption": "a 2"},
            {"image_id": 72, "id": 21, "caption": "b 2"},
            {"image_id": 73, "id": 30, "caption": "a 3"},
            {"image_id": 73, "id": 31, "caption": "b 3"},
        ],
    }
    truth = json.loads((tmp_path / "out/test_gt.json").read_text())
    assert truth == {
        "images": [{"id": 0}],
        "annotations": [{"image_id": 0, "id": 0, "caption": "unnumbered"}],
    }
    assert sorted(Manifest.load(tmp_path / "out").files) == results["files"]


def test_the_answer_list_is_counted_over_questions(convert_entries: Converted, tmp_path: Path) -> None:
    answers = ["yes"] * 3 + ["no"] * 4 + ["red"] * 2
    entries = [question(number, answer) for number, answer in enumerate(answers)]
    wanted = {"file": "answer_list.json", "split": "train", "at_least": 3}
    convert_entries([*entries, question(99, "red", split="val")], {"answer_list": wanted})
    assert json.loads((tmp_path / "out/answer_list.json").read_text()) == ["no", "yes"]


@pytest.mark.parametrize("content", [["a", "b"], {"b": 1, "a": 0}])
def test_an_answer_list_of_the_source_is_taken(
    convert_entries: Converted, tmp_path: Path, content: object
) -> None:
    (tmp_path / "source/ans2label.json").write_text(json.dumps(content))
    convert_entries([question(1, "yes")], {"answer_list": {"other_names": ["ans2label.json"]}})
    assert json.loads((tmp_path / "out/answer_list.json").read_text()) == ["a", "b"]


def test_an_answer_list_without_answers_is_an_error(convert_entries: Converted) -> None:
    with pytest.raises(AuroraError, match="No answer of split train belongs to 9 questions"):
        convert_entries([question(1, "yes")], {"answer_list": {}})


def test_headers_are_those_of_the_standard_library() -> None:
    for name, size in (("a.json", 0), (f"{'b' * 96}.mp4", 8**11 - 1), ("train-0000001-x.0.jpg", 123_456)):
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, 0o644
        assert tar_header(name, size) == header.tobuf(tarfile.USTAR_FORMAT)
        assert plain_member(tar_header(name, size)) == (name, size)


@pytest.mark.parametrize("place", range(0, 512, 7))
def test_a_header_with_one_other_byte_is_not_a_plain_one(place: int) -> None:
    header = bytearray(tar_header("train-0000001-x.jpg", 123_456))
    header[place] ^= 1
    assert plain_member(bytes(header)) is None


@pytest.mark.parametrize(("name", "size"), [("b" * 101, 1), ("b", 8**11)])
def test_what_a_plain_header_cannot_say_is_refused(name: str, size: int) -> None:
    with pytest.raises(BadSample, match="does not fit a plain tar header"):
        tar_header(name, size)

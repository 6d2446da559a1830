"""MSRVTT-QA and MSVD-QA: original JSON, tables and lines, clips named by number or by YouTube id, answer lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_tools import entries_of, of_kind, read_back, write_json, write_lines
from drawn_clips import make_clip

from aurora_ds.data.convert import convert, load_recipe
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.videoqa import candidates, read
from aurora_ds.errors import AuroraError

ASKED = [  # (video, question, answer)
    (3, "what is a man riding?", "horse"),
    (1, "who cuts an onion?", "woman"),
    (3, "how many people run?", "two"),
    (3, "which way do they run?", "horse"),
    (1, "where is the woman?", "kitchen"),
]


def original(first: int = 0) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "category_id": 5, "id": first + number, "question": question, "video_id": video}
        for number, (video, question, answer) in enumerate(ASKED)
    ]


def source(folder: Path, names: tuple[str, str]) -> Path:
    """Original files of three splits, and the two clips under `names`."""
    for number, split in enumerate(("train", "val", "test")):
        write_json(folder / f"annotations/{split}_qa.json", original(10 * number))
    for name in names:
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "videos" / name).write_bytes(
            make_clip("mpeg4", Path(name).suffix[1:], count=4, size=(32, 16))
        )
    return folder


def test_original_files_keep_ids_answers_and_types(tmp_path: Path) -> None:
    results = convert("msrvtt_qa", source(tmp_path / "in", ("video3.mp4", "video1.mp4")), tmp_path / "out")
    assert results["splits"]["test"] == results["splits"]["test"] | {"samples": 2, "pairs": 5}
    first, second = read_back(tmp_path / "out")["test"]
    assert (first["media_id"], first["video_id"], first["category"]) == ("video3", 3, 5)
    assert first["questions"][0] == {
        "question": "what is a man riding?",
        "question_id": 20,
        "answers": [{"answer": "horse", "weight": 1.0}],
        "question_type": "what",
    }
    assert [each["question_id"] for each in first["questions"]] == [20, 22, 23]
    assert "question_type" not in first["questions"][2], "which is none of the five"
    assert [each["question_id"] for each in second["questions"]] == [21, 24]


def test_the_answer_list_is_counted_from_train(tmp_path: Path) -> None:
    convert("msrvtt_qa", source(tmp_path / "in", ("video3.mp4", "video1.mp4")), tmp_path / "out")
    answers = json.loads((tmp_path / "out/answer_list.json").read_text())
    assert answers == ["horse", "kitchen", "two", "woman"], "the frequent ones first"


def test_the_answer_list_has_at_most_the_answers_asked_for(tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe("msrvtt_qa").model_dump()
    recipe["answer_list"]["at_most"] = 2
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    convert(tmp_path / "mine.yaml", source(tmp_path / "in", ("video3.mp4", "video1.mp4")), tmp_path / "out")
    assert json.loads((tmp_path / "out/answer_list.json").read_text()) == ["horse", "kitchen"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("ans_word.json", ["two", "horse"]), ("train_ans2label.json", {"horse": 1, "two": 0})],
)
def test_an_answer_list_of_the_source_wins(tmp_path: Path, name: str, content: Any) -> None:
    folder = source(tmp_path / "in", ("video3.mp4", "video1.mp4"))
    write_json(folder / "annotations" / name, content)
    convert("msrvtt_qa", folder, tmp_path / "out")
    assert json.loads((tmp_path / "out/answer_list.json").read_text()) == ["two", "horse"]


@pytest.mark.parametrize("names", [("vid3.avi", "vid1.avi"), ("-4ws_5_15.avi", "b_c_0_9.avi")])
def test_msvd_clips_are_found_by_number_or_by_youtube_name(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = source(tmp_path / "in", names)
    (folder / "annotations/youtube_mapping.txt").write_text("b_c_0_9 vid1\n-4ws_5_15 vid3\nx_1_2 vid2\n")
    results = convert("msvd_qa", folder, tmp_path / "out")
    first, second = read_back(tmp_path / "out")["train"]
    assert results["rejects"] == 0
    assert (first["video_id"], first["clip_id"]) == (3, "-4ws_5_15")
    assert (second["video_id"], second["clip_id"]) == (1, "b_c_0_9")


def test_msvd_clips_named_by_number_need_no_mapping(tmp_path: Path) -> None:
    convert("msvd_qa", source(tmp_path / "in", ("vid3.avi", "vid1.avi")), tmp_path / "out")
    first = read_back(tmp_path / "out")["train"][0]
    assert first["media_id"] == "vid3" and "clip_id" not in first


def test_a_youtube_name_comes_before_the_number() -> None:
    assert candidates("vid3=-4ws_5_15") == ["-4ws_5_15", "-4ws_5_15.*", "vid3", "vid3.*"]
    assert candidates("video7") == ["video7", "video7.*"]


def test_tables_give_the_same_questions_as_the_original(tmp_path: Path) -> None:
    write_json(tmp_path / "val_qa.json", original())
    rows = [
        f"{video},{question},{answer},{number},5" for number, (video, question, answer) in enumerate(ASKED)
    ]
    (tmp_path / "val.csv").write_text("\n".join(["video,question,answer,qid,type", *rows]) + "\n")
    table = entries_of("msrvtt_qa", "csv", tmp_path, val="val.csv")
    assert table == entries_of("msrvtt_qa", "original", tmp_path, val="val_qa.json")


def test_lines_are_numbered_and_may_lack_the_answer(tmp_path: Path) -> None:
    rows = [
        {"video_id": "video9", "question": "is it red?", "answer": "yes", "answer_type": "what"},
        {"video_id": "video9", "question": "who sings?"},
    ]
    write_lines(tmp_path / "test.jsonl", rows)
    first, second = entries_of("msrvtt_qa", "jsonl", tmp_path, test="test.jsonl")
    assert first.media == second.media == "video9"
    assert first.annotation["question_id"] == 0 and first.annotation["question_type"] == "what"
    assert second.annotation == {
        "question": "who sings?",
        "question_id": 1,
        "answers": [],
        "question_type": "who",
    }


def test_the_test_lines_and_an_answer_list_are_enough_for_zero_shot(tmp_path: Path) -> None:
    folder = source(tmp_path / "in", ("video3.mp4", "video1.mp4"))
    for split in ("train", "val", "test"):
        (folder / f"annotations/{split}_qa.json").unlink()
    rows = [
        {"video_id": f"video{video}", "question": question, "answer": answer}
        for video, question, answer in ASKED
    ]
    write_lines(folder / "annotations/test.jsonl", rows)
    write_json(folder / "annotations/train_ans2label.json", {"horse": 0, "two": 1})
    results = convert("msrvtt_qa", folder, tmp_path / "out")
    assert results["splits"]["test"]["pairs"] == 5 and list(results["splits"]) == ["test"]
    assert any("train" in mismatch for mismatch in results["mismatches"]), "what is left out is told"


def test_a_source_without_questions_says_what_it_must_have(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(AuroraError, match="missing train_qa.json, test_qa.json") as error:
        convert("msvd_qa", tmp_path / "in", tmp_path / "out")
    missing = str(error.value).partition("The source folder")[0]
    assert "youtube_mapping" not in missing and "val_qa" not in missing, "those may be left out"


def test_a_blank_question_is_rejected_and_the_clip_kept(tmp_path: Path) -> None:
    folder = source(tmp_path / "in", ("video3.mp4", "video1.mp4"))
    rows = original()
    rows[0]["question"] = " . "
    write_json(folder / "annotations/train_qa.json", rows)
    results = convert("msrvtt_qa", folder, tmp_path / "out", max_rejects="50%")
    assert results["rejects"] == 1 and results["splits"]["train"]["pairs"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(video_id="video3"), r"entry 1 with 'video3' \(text\) as `video_id`"),
        (lambda entry: entry.pop("id"), "entry 1 without `id`"),
        (lambda entry: entry.update(question=None), "entry 1 with 'None' .null. as `question`"),
        (lambda entry: entry.update(answer=2), "entry 1 with '2' .number. as `answer`"),
        (lambda entry: entry.update(category_id="music"), "a whole number as `category_id`"),
    ],
)
def test_another_shape_of_the_original_is_told(tmp_path: Path, change: Any, message: str) -> None:
    rows = original()
    change(rows[1])
    write_json(tmp_path / "train_qa.json", rows)
    with pytest.raises(AuroraError, match=message):
        entries_of("msrvtt_qa", "original", tmp_path, train="train_qa.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,question,answer\n1,who,man\n", "expected the columns video, question, answer, qid"),
        ("video,question,answer,qid\nvideo1,who,man,7\n", "line 2 with 'video1' .text. as `video`"),
        ("video,question,answer,qid\n1,who,man,\n", "line 2 with '' .text. as `qid`"),
        ("video,question,answer,qid\n", "no row"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(AuroraError, match=message):
        entries_of("msvd_qa", "csv", tmp_path, train="train.csv")


def test_a_wrong_mapping_is_told(tmp_path: Path) -> None:
    write_json(tmp_path / "train_qa.json", original())
    (tmp_path / "map.txt").write_text("a_1_2 vid1\nb_1_2\n")
    with pytest.raises(AuroraError, match="map.txt .*line 2 with 1 words, expected `CLIP vidNUMBER`"):
        entries_of("msvd_qa", "original", tmp_path, train="train_qa.json", mapping="map.txt")


@pytest.mark.parametrize("pattern", ["video", "{}{}", 3])
def test_a_name_pattern_has_one_place(tmp_path: Path, pattern: Any) -> None:
    way = AnnotationFiles(format="original", files={"train": "a.json"}, options={"name": pattern})
    with pytest.raises(AuroraError, match="it must be text with one {}"):
        list(read(way, {"train": tmp_path / "a.json"}))


@pytest.mark.parametrize(
    ("recipe", "file", "media", "questions", "first"),
    [
        ("msrvtt_qa", "msrvtt_qa/hqga_val.csv", 497, 12278, 158581),
        ("msvd_qa", "msvd_qa/hqga_val.csv", 245, 6415, 30933),
        ("msvd_qa", "msvd_qa/hqga_train.first5000.csv", 187, 5000, 0),
    ],
)
def test_real_tables(shared: Path, recipe: str, file: str, media: int, questions: int, first: int) -> None:
    path = shared / "data/annotations" / file
    if not path.is_file():
        pytest.skip(f"{file} is not in the reference material")
    entries, rejects = of_kind(entries_of(recipe, "csv", path.parent, val=path.name))
    assert (len({each.media for each in entries}), len(entries), rejects) == (media, questions, [])
    assert entries[0].annotation["question_id"] == first, (
        "all questions of the splits before have lower numbers"
    )
    assert all("question_type" in each.annotation for each in entries)
    if "val" in file:
        expected = load_recipe(recipe).expected["val"]
        assert (expected.samples, expected.pairs) == (media, questions)


def test_the_real_original_form_equals_the_table(shared: Path) -> None:
    folder = shared / "data/annotations/msrvtt_qa"
    if not (folder / "val_qa.REBUILT_500.json").is_file():
        pytest.skip("the original form is not in the reference material")
    plain = entries_of("msrvtt_qa", "original", folder, val="val_qa.REBUILT_500.json")
    table = entries_of("msrvtt_qa", "csv", folder, val="hqga_val.csv")[:500]
    for each in plain:
        each.annotation["question"] = each.annotation["question"].removesuffix("?")
    assert plain == table and len(plain) == 500

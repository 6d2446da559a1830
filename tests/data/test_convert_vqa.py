"""Questions of VQA v2 and Visual Genome: official files and lists, read alone and through whole conversions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from convert_tools import ANNOTATIONS, draw_all, entries_of, of_kind, read_back, write_json
from drawn_data import PHOTOS

from aurora_ds.data.convert import convert
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.vqa import answer_weights, read
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANSWERS = "v2_mscoco_train2014_annotations.json"


def vqa_source(folder: Path) -> Path:
    """The excerpt as training questions, its photos drawn."""
    source = folder / "vqa"
    for name in (QUESTIONS, ANSWERS):
        write_json(source / "annotations" / name, json.loads((ANNOTATIONS / name).read_text()))
    numbers = {
        question["image_id"] for question in json.loads((ANNOTATIONS / QUESTIONS).read_text())["questions"]
    }
    write_json(source / "annotations/answer_list.json", ["yes", "no"])
    draw_all(source, [f"train2014/COCO_train2014_{number:012d}.jpg" for number in numbers])
    return source


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_official_files_become_questions_with_weighted_answers(tmp_path: Path) -> None:
    source = vqa_source(tmp_path)
    asked = json.loads((ANNOTATIONS / QUESTIONS).read_text())["questions"]
    answered = {
        each["question_id"]: each for each in json.loads((ANNOTATIONS / ANSWERS).read_text())["annotations"]
    }
    results = convert("vqav2", source, tmp_path / "out")
    records = read_back(tmp_path / "out")["train"]
    assert results["splits"]["train"] == results["splits"]["train"] | {"samples": 6, "pairs": 8}
    assert [record["image_id"] for record in records] == list(
        dict.fromkeys(each["image_id"] for each in asked)
    )
    got = {each["question_id"]: each for record in records for each in record["questions"]}
    assert set(got) == {each["question_id"] for each in asked}
    for each in asked:
        annotation = answered[each["question_id"]]
        given = [answer["answer"] for answer in annotation["answers"]]
        question = got[each["question_id"]]
        assert question["question"] == each["question"]
        assert question["question_type"] == annotation["question_type"]
        assert question["answer_type"] == annotation["answer_type"]
        assert {a["answer"]: a["weight"] for a in question["answers"]} == {
            answer: given.count(answer) / 10 for answer in given
        }
    first = records[0]
    assert first["dataset"] == "vqa" and first["kind"] == "image"
    assert first["media_id"] == f"train2014/COCO_train2014_{first['image_id']:012d}.jpg"


def test_answers_in_another_order_are_found(tmp_path: Path) -> None:
    source = vqa_source(tmp_path) / "annotations"
    straight = entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS)
    edit(source / ANSWERS, lambda content: content["annotations"].reverse())
    assert entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS) == straight


def test_questions_without_answers_and_answers_without_a_question_are_told(tmp_path: Path) -> None:
    source = vqa_source(tmp_path) / "annotations"
    lost = json.loads((source / ANSWERS).read_text())["annotations"][1]["question_id"]
    edit(source / ANSWERS, lambda content: content["annotations"].pop(1))
    asked = json.loads((source / QUESTIONS).read_text())["questions"][0]["question_id"]
    edit(source / QUESTIONS, lambda content: content["questions"].pop(0))
    entries, rejects = of_kind(
        entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS)
    )
    assert len(entries) == 6
    assert [reject.reason for reject in rejects] == [
        f"question {lost} has no answers in {ANSWERS}",
        f"it has answers but is not in {QUESTIONS}",
    ]
    assert rejects[1].media_id == f"question {asked}"


def test_test_questions_have_no_answers_and_their_own_folder(tmp_path: Path) -> None:
    content = json.loads((ANNOTATIONS / QUESTIONS).read_text()) | {"data_subtype": "test-dev2015"}
    write_json(tmp_path / "questions.json", content)
    entries, _ = of_kind(entries_of("vqav2", "official", tmp_path, test="questions.json"))
    assert entries[0].media.startswith("test2015/COCO_test2015_")
    assert all(entry.annotation["answers"] == [] for entry in entries)


def test_questions_whose_answer_file_is_missing_are_an_error(tmp_path: Path) -> None:
    source = vqa_source(tmp_path)
    (source / "annotations" / ANSWERS.replace("train", "val")).write_text("{}")
    with pytest.raises(
        AuroraError, match="v2_mscoco_val2014_annotations.json is there without v2_OpenEnded_mscoco_val2014"
    ):
        convert("vqav2", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["questions"][2].pop("question"), r"questions\[2\] without `question`"),
        (lambda content: content["questions"][2].update(question=7), r"questions\[2\] with '7' \(number\)"),
        (
            lambda content: content["questions"][1].update(image_id="a"),
            "expected a whole number as `image_id`",
        ),
        (lambda content: content.pop("questions"), "without `questions`"),
        (lambda content: content["questions"].clear(), "an empty list 'questions'"),
        (lambda content: content["questions"].insert(0, "text"), r"questions\[0\] that is a text"),
    ],
)
def test_question_files_of_another_shape(tmp_path: Path, change: Any, message: str) -> None:
    source = vqa_source(tmp_path) / "annotations"
    edit(source / QUESTIONS, change)
    with pytest.raises(AuroraError, match=message):
        entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS)


@pytest.mark.parametrize("answers", [[], [{"answer": 3}], [3], "yes", None])
def test_answers_of_another_shape(tmp_path: Path, answers: Any) -> None:
    source = vqa_source(tmp_path) / "annotations"
    edit(source / ANSWERS, lambda content: content["annotations"][0].update(answers=answers))
    with pytest.raises(AuroraError, match=r"annotations\[0\].*answer"):
        entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS)


def test_a_cut_file_says_so(tmp_path: Path) -> None:
    source = vqa_source(tmp_path) / "annotations"
    (source / ANSWERS).write_text((source / ANSWERS).read_text()[:3000])
    with pytest.raises(AuroraError, match="is not JSON .* It may be cut"):
        entries_of("vqav2", "official", source, train=QUESTIONS, train_answers=ANSWERS)


def test_files_are_read_as_they_are_used_not_whole(tmp_path: Path) -> None:
    asked = [{"image_id": 1, "question_id": number, "question": "What?"} for number in range(5000)]
    text = json.dumps({"data_subtype": "train2014", "questions": asked})
    (tmp_path / "questions.json").write_text(text[:-50])
    way = AnnotationFiles(format="official", files={"test": "questions.json"})
    entries = read(way, {"test": tmp_path / "questions.json"})
    assert [next(entries).annotation["question_id"] for _ in range(100)] == list(range(100))
    with pytest.raises(AuroraError, match="is not JSON"):
        list(entries)


def test_lists_have_answers_as_a_text_or_several(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": 1,
            "question": "What?",
            "answer": ["net"] * 7 + ["mesh"] * 3,
            "image": "val2014/COCO_val2014_000000000042.jpg",
            "dataset": "vqa",
        },
        {"question": "Who?", "answer": "a man.", "image": "image/2.jpg", "dataset": "vg"},
    ]
    write_json(tmp_path / "vqa_train.json", rows)
    entries, _ = of_kind(entries_of("vqav2", "blip", tmp_path, train="vqa_train.json"))
    assert entries[0].annotation == {
        "question": "What?",
        "question_id": 1,
        "answers": [{"answer": "net", "weight": 0.7}, {"answer": "mesh", "weight": 0.3}],
    }
    assert entries[0].extra == {"dataset": "vqa", "image_id": 42}
    assert entries[1].annotation == {"question": "Who?", "answers": [{"answer": "a man.", "weight": 1.0}]}
    assert entries[1].extra == {"dataset": "vg"}


def test_lists_have_words_and_objects_of_their_image(tmp_path: Path) -> None:
    """mPLUG's layout, and that of own lists."""
    both = {
        "ocr": [[[0, 0, 9, 9], "STOP"], [[0, 0, 2, 2], " "], [[1, 1, 2, 2], "Ave. #5"]],
        "object_label": "car&&dog&&car",
    }
    own, empty = {"ocr": ["STOP"], "objects": ["car", ""]}, {"ocr": [], "object_label": ""}
    rows = [
        {"question": "What?", "answer": "a car", "image": "1.jpg", **each} for each in (both, own, empty, {})
    ]
    write_json(tmp_path / "vqa_train.json", rows)
    entries, _ = of_kind(entries_of("vqav2", "blip", tmp_path, train="vqa_train.json"))
    found = [(entry.annotation.get("ocr"), entry.annotation.get("objects")) for entry in entries]
    assert found == [
        (["STOP", "Ave. #5"], ["car", "dog", "car"]),
        (["STOP"], ["car"]),
        (None, None),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ocr": "STOP"}, "'STOP' .* as `ocr`.*a list"),
        ({"ocr": [[0, 0, 9, 9]]}, "a list of texts, or of .position, text.,"),
        ({"ocr": [["STOP", 3]]}, "as `ocr`"),
        ({"object_label": ["car"]}, "a text as `object_label`"),
        ({"objects": "car"}, "a list of texts as `objects`"),
    ],
)
def test_words_and_objects_of_another_shape(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_json(
        tmp_path / "vqa_train.json", [{"question": "What?", "answer": "a car", "image": "1.jpg", **fields}]
    )
    with pytest.raises(AuroraError, match=f"(?s)entry 0 .*{message}"):
        entries_of("vqav2", "blip", tmp_path, train="vqa_train.json")


def test_a_training_list_without_answers_is_an_error_and_a_test_list_is_not(tmp_path: Path) -> None:
    rows = [{"question_id": 9, "question": "What?", "image": "test2015/COCO_test2015_000000000001.jpg"}]
    write_json(tmp_path / "list.json", rows)
    entries, _ = of_kind(entries_of("vqav2", "blip", tmp_path, test="list.json"))
    assert entries[0].annotation["answers"] == []
    with pytest.raises(AuroraError, match="entry 0 without `answer`"):
        entries_of("vqav2", "blip", tmp_path, train="list.json")


def test_blank_questions_are_rejected_and_the_image_keeps_the_others(tmp_path: Path) -> None:
    image = "val2014/COCO_val2014_000000000042.jpg"
    rows = [
        {"question_id": number, "question": question, "answer": ["a"], "image": image, "dataset": "vqa"}
        for number, question in enumerate(["One\nline? ", " \n", "One\nline? "])
    ]
    write_json(tmp_path / "vqa_train.json", rows)
    write_json(tmp_path / "answer_list.json", ["a"])
    draw_all(tmp_path, [image])
    convert("vqav2", tmp_path, tmp_path / "out", max_rejects=1)
    assert (tmp_path / "out/rejects.jsonl").read_text().count("question 1 is blank") == 1
    (record,) = read_back(tmp_path / "out")["train"]
    assert [(each["question_id"], each["question"]) for each in record["questions"]] == [
        (0, "One\nline? "),
        (2, "One\nline? "),
    ]


def test_weights_are_shares_of_the_annotators() -> None:
    assert answer_weights(["b", "a", "b"]) == [
        {"answer": "b", "weight": 2 / 3},
        {"answer": "a", "weight": 1 / 3},
    ]


def test_the_answer_list_of_the_source_is_kept_and_else_counted(tmp_path: Path) -> None:
    source = vqa_source(tmp_path)
    convert("vqav2", source, tmp_path / "given")
    assert json.loads((tmp_path / "given/answer_list.json").read_text()) == ["yes", "no"]
    (source / "annotations/answer_list.json").unlink()
    with pytest.raises(AuroraError, match="No answer of split train belongs to 9 questions"):
        convert("vqav2", source, tmp_path / "none")
    edit(
        source / "annotations" / QUESTIONS,
        lambda content: content["questions"].extend(
            content["questions"][0] | {"question_id": number} for number in range(9)
        ),
    )
    edit(
        source / "annotations" / ANSWERS,
        lambda content: content["annotations"].extend(
            {"question_id": number, "answers": [{"answer": "a net"}] * 6 + [{"answer": "mesh"}] * 4}
            for number in range(9)
        ),
    )
    convert("vqav2", source, tmp_path / "counted")
    assert json.loads((tmp_path / "counted/answer_list.json").read_text()) == ["a net"]


# Visual Genome


def vg_source(folder: Path) -> Path:
    source = folder / "vg"
    for name in ("question_answers.json", "image_data.json"):
        write_json(source / name, json.loads((ANNOTATIONS / name).read_text()))
    draw_all(source, ["VG_100K_2/1.jpg"])
    (source / "VG_100K").mkdir()
    for number in (2, 4):
        shutil.copy(PHOTOS / f"images/vg_{number}.jpg", source / f"VG_100K/{number}.jpg")
    return source


def test_visual_genome_finds_each_photo_in_its_folder(tmp_path: Path) -> None:
    source = vg_source(tmp_path)
    convert("visual_genome_qa", source, tmp_path / "out")
    records = read_back(tmp_path / "out")["train"]
    assert [record["media_id"] for record in records] == ["VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/4.jpg"]
    official = json.loads((ANNOTATIONS / "question_answers.json").read_text())
    for record, image in zip(records, official, strict=True):
        assert (record["dataset"], record["image_id"]) == ("vg", image["id"])
        assert record["questions"] == [
            {
                "question": each["question"],
                "question_id": each["qa_id"],
                "answers": [{"answer": each["answer"], "weight": 1.0}],
            }
            for each in image["qas"]
        ]


def test_visual_genome_s_photos_are_unchanged_and_as_large_as_it_says(tmp_path: Path) -> None:
    source = vg_source(tmp_path)
    convert("visual_genome_qa", source, tmp_path / "out")
    reader = ShardReader(Manifest.load(tmp_path / "out"))
    sizes = {each["image_id"]: each for each in json.loads((ANNOTATIONS / "image_data.json").read_text())}
    for medium, number in ((1, 2), (2, 4)):
        sample = reader.read("train", medium)
        assert sample.media == (source / f"VG_100K/{number}.jpg").read_bytes()
        official = sizes[number]
        assert (sample.record["width"], sample.record["height"]) == (official["width"], official["height"])


def test_visual_genome_tells_of_images_without_a_record_and_blank_answers(tmp_path: Path) -> None:
    source = vg_source(tmp_path)
    edit(source / "image_data.json", lambda content: content.pop(0))
    edit(source / "question_answers.json", lambda content: content[1]["qas"][2].update(answer=" "))
    edit(source / "question_answers.json", lambda content: content[2]["qas"].clear())
    entries, rejects = of_kind(
        entries_of(
            "visual_genome_qa",
            "official",
            source,
            questions="question_answers.json",
            images="image_data.json",
        )
    )
    assert {entry.media for entry in entries} == {"VG_100K/2.jpg"} and len(entries) == 3
    assert [reject.reason for reject in rejects][0] == "image 1 is not in image_data.json"
    assert "has a blank answer" in rejects[1].reason and len(rejects) == 2


def test_the_list_of_visual_genome_questions(tmp_path: Path) -> None:
    rows = [{"image": "image/2.jpg", "question": "What?", "answer": "a tree", "dataset": "vg"}]
    write_json(tmp_path / "vg_qa.json", rows)
    draw_all(tmp_path, ["VG_100K/2.jpg"])
    convert("visual_genome_qa", tmp_path, tmp_path / "out")
    (record,) = read_back(tmp_path / "out")["train"]
    assert record["questions"] == [{"question": "What?", "answers": [{"answer": "a tree", "weight": 1.0}]}]
    assert record["dataset"] == "vg"


# the datasets' own files, read in place


def test_a_thousand_real_vqa_questions(shared: Path) -> None:
    folder = shared / "data/annotations/vqav2"
    entries, rejects = of_kind(
        entries_of(
            "vqav2",
            "official",
            folder,
            train="v2_OpenEnded_mscoco_train2014_questions.SUBSET_1000.json",
            train_answers="v2_mscoco_train2014_annotations.SUBSET_1000.json",
        )
    )
    assert (len(entries), len({entry.media for entry in entries}), rejects) == (1000, 991, [])
    assert all(
        sum(answer["weight"] for answer in entry.annotation["answers"]) == pytest.approx(1)
        for entry in entries
    )


def test_real_questions_with_their_real_photo(shared: Path, tmp_path: Path) -> None:
    folder, name = shared / "data/annotations/vqav2", "COCO_train2014_000000458752.jpg"
    (tmp_path / "train2014").mkdir()
    shutil.copy(shared / "data/images/coco" / name, tmp_path / "train2014" / name)
    shutil.copy(folder / "allennlp_fixture_questions.json", tmp_path / QUESTIONS)
    shutil.copy(folder / "allennlp_fixture_annotations.json", tmp_path / ANSWERS)
    shutil.copy(folder / "answer_list/trainval_ans2label.json", tmp_path / "trainval_ans2label.json")
    convert("vqav2", tmp_path, tmp_path / "out", check="decode")
    sample = ShardReader(Manifest.load(tmp_path / "out")).read("train", 0)
    assert sample.media == (tmp_path / "train2014" / name).read_bytes()
    assert (sample.record["width"], sample.record["height"]) == (640, 480)
    first = sample.record["questions"][0]
    assert first["question"] == "What is this photo taken looking through?"
    assert first["answers"][0] == {"answer": "net", "weight": 0.6}
    assert len(sample.record["questions"]) == 3
    answers = json.loads((tmp_path / "out/answer_list.json").read_text())
    assert answers == json.loads((folder / "answer_list/trainval_label2ans.json").read_text())


def test_a_hundred_real_visual_genome_images(shared: Path) -> None:
    entries, rejects = of_kind(
        entries_of(
            "visual_genome_qa",
            "official",
            shared / "data/annotations/visual_genome",
            questions="question_answers.first100.json",
            images="image_data.first100.json",
        )
    )
    assert len(entries) + len(rejects) == 3393
    assert {entry.media.split("/")[0] for entry in entries} == {"VG_100K", "VG_100K_2"}

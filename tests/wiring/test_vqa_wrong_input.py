"""Questions and lists of answers that cannot be used: what is said, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from question_runs import (
    ANSWERS,
    answer_file,
    image_questions,
    image_sample,
    image_shards,
    question,
    run_config,
    write_shards,
)

from aurora_ds import train
from aurora_ds.assemble import build_task
from aurora_ds.data.questions import answer_list, answered
from aurora_ds.errors import AuroraError
from aurora_ds.wiring import asked as asked_module


def error_of(tiny: dict, folder: Path, questions: list[list[dict]], **options: str) -> str:
    """What evaluation says about media with these questions; it may not run the model for that."""
    samples = [image_sample(n + 1, questions=each) for n, each in enumerate(questions)]
    write_shards(folder, {"test": [samples]}, files=answer_file(folder))
    assembled = build_task(run_config(tiny, folder, options))
    with pytest.raises(AuroraError) as caught:
        assembled.wiring.evaluate(None, assembled.tokenizer)
    return str(caught.value)


TEN = ["yes"] * 10


def test_questions_that_cannot_be_told_apart_or_judged(tiny, tmp_path):
    one, two = question(1, "is it", TEN), question(2, "is it", TEN)
    assert "Question id 1 is there twice, in samples image-1 and image-2" in error_of(
        tiny, tmp_path / "a", [[one], [two, one]]
    )
    assert "Question 2 of sample image-2 has no answers, but other" in error_of(
        tiny, tmp_path / "b", [[one], [question(2, "is it")]]
    )
    assert "There are no questions" in error_of(tiny, tmp_path / "c", [[]])
    three = error_of(tiny, tmp_path / "d", [[question(3, "is it", ["yes", "no", "no"])]])
    assert "question 3 of sample image-1" in three.lower() and "vqa.accuracy=exact" in three
    assert "has 2 different answers" in error_of(
        tiny, tmp_path / "e", [[question(3, "is it", ["yes", "no"])]], accuracy="exact"
    )
    nameless = {key: value for key, value in two.items() if key != "question_id"}
    assert "Question None of sample image-2" in error_of(tiny, tmp_path / "f", [[one], [nameless]])


@pytest.mark.parametrize(
    "answers", [["yes"], [{"answer": 3, "weight": 1}], [{"answer": "yes", "weight": 0}], "yes"]
)
def test_answers_of_another_layout_are_named(answers):
    asked = {"question": "is it", "question_id": 7, "answers": answers}
    for read in (
        lambda: asked_module.asked_questions([("a", {"questions": [asked]})], "vqa"),
        lambda: answered(asked, {}, "a"),
    ):
        with pytest.raises(AuroraError, match="Question 7 of sample a has"):
            read()


def test_questions_without_text_are_named():
    with pytest.raises(AuroraError, match="Question 7 of sample a has no text"):
        answered({"question_id": 7, "answers": [{"answer": "yes", "weight": 1.0}]}, {}, "a")
    with pytest.raises(AuroraError, match="Sample a has a question without text"):
        asked_module.asked_questions([("a", {"questions": [{"question_id": 7}]})], "vqa")


def test_questions_without_ids_are_numbered(tiny):
    nameless = [{"question": "is it", "answers": []} for _ in range(2)]
    found = asked_module.asked_questions(
        [("a", {"questions": nameless}), ("b", {"questions": nameless})], "vqa"
    )
    assert [each.identity for each in found] == [0, 1, 2, 3]


def test_ids_that_are_texts_are_for_other_servers_than_vqa_s(tiny):
    found = asked_module.asked_questions([("a", {"questions": [question("q1", "is it", ["yes"])]})], "exact")
    assert asked_module.submission(found, ["no"]) == [{"question_id": "q1", "answer": "no"}]
    assert asked_module.judge(found, ["no"], "exact").metrics["accuracy"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["yes", "no", "yes"]', r"'yes' more than once"),
        ('["yes", " "]', r"answer 1 .* is empty"),
        ("[]", "found a list of 0"),
        ('{"yes": 0}', "found dict"),
        ('["yes",', "is no JSON"),
        (None, "cannot be read"),
    ],
)
def test_lists_of_answers_that_cannot_be_ranked(tiny, asked_images, tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    config = run_config(tiny, asked_images, {"answer_list": str(path)})
    with pytest.raises(AuroraError, match=message):
        answer_list(config)


def test_the_list_beside_the_shards_is_the_one_that_was_written(tiny, tmp_path):
    image_shards(tmp_path)
    config = run_config(tiny, tmp_path)
    assert list(answer_list(config).answers) == ANSWERS
    (tmp_path / "answer_list.json").write_text('["yes"]')
    with pytest.raises(AuroraError, match="sha256 differs"):
        answer_list(config)
    (tmp_path / "answer_list.json").unlink()
    with pytest.raises(AuroraError, match="cannot be read: No such file"):
        answer_list(config)


@pytest.mark.parametrize("dry", [False, True])
def test_what_evaluation_would_stop_at_stops_a_run_before_it_writes_anything(dry, tiny, tmp_path):
    train_split = [[image_sample(n, questions=image_questions(n)) for n in range(1, 5)]]
    twice = [[image_sample(n, questions=image_questions(1)) for n in (1, 2)]]
    write_shards(tmp_path / "bare", {"train": train_split, "test": train_split})
    write_shards(
        tmp_path / "twice", {"train": train_split, "test": twice}, files=answer_file(tmp_path / "twice")
    )
    for name, message in (("bare", "come without answer_list.json.*=generate"), ("twice", "is there twice")):
        with pytest.raises(AuroraError, match=message):
            train.run(run_config(tiny, tmp_path / name), tmp_path / "run" / name, dry_run=dry)
        assert not (tmp_path / "run" / name).exists()

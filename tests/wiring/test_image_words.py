"""Words of an image behind its question: what the model reads in training and in evaluation, and shards without any."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from question_runs import (
    GENERATE,
    answer_file,
    image_questions,
    image_sample,
    question,
    run_config,
    write_shards,
)

from aurora_ds.assemble import build_task
from aurora_ds.config import MixEntry
from aurora_ds.data.loader import annotated_loader
from aurora_ds.data.questions import question_texts
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.recipe import load_config

WORDS = {"ocr": ["Two", "#BOAT."], "objects": ["tree", "dog", "tree"]}
BOTH = {"add_ocr": True, "add_objects": True, "max_tokens": 16}


def shards(folder: Path, **words: dict[str, list[str]]) -> Path:
    """Three images a split; the questions of splits named in `words` have these fields."""
    splits = {}
    for first, split in enumerate(("train", "test")):
        listed = [
            [{**each, **words.get(split, {})} for each in image_questions(10 * first + number)]
            for number in range(3)
        ]
        splits[split] = [
            [image_sample(10 * first + n, dataset="vqa", questions=q) for n, q in enumerate(listed)]
        ]
    write_shards(folder, splits, files=answer_file(folder))
    return folder


def read(config: Any, *questions: dict[str, Any]) -> list[str]:
    """What a training batch of questions says, [SEP] within a question as |."""
    tokenizer = build_task(config).tokenizer
    ids = question_texts(config, tokenizer)([{"dataset": None, **each} for each in questions])["input_ids"]
    rows = [
        [token for token in row if token not in (tokenizer.pad_id, tokenizer.cls_id)] for row in ids.tolist()
    ]
    assert all(row[-1] == tokenizer.sep_id for row in rows)
    return [
        " ".join("|" if token == tokenizer.sep_id else tokenizer.piece(token) for token in row[:-1])
        for row in rows
    ]


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, "is it red ?"),
        ({"add_ocr": True}, "is it red ? | two boat"),
        ({"add_objects": True}, "is it red ? | tree dog tree"),
        (BOTH, "is it red ? | two boat | tree dog tree"),
        (BOTH | {"max_tokens": 9}, "is it red ? | two boat"),
    ],
)
def test_words_then_objects_stand_behind_a_question(tiny, switches, expected):
    config = run_config(tiny, None, {"max_tokens": 16} | switches)
    asked = question(1, "Is it red?", ["yes"])
    assert read(config, asked | WORDS, asked) == [expected, "is it red ?"]


def test_words_can_be_typed_behind_a_question_that_is_taken_as_it_is(tiny):
    config = run_config(tiny, None, BOTH | {"question_text": "as_is"})
    asked = question(1, "is it red ?", ["yes"])
    assert read(config, asked | WORDS) == read(
        config, asked | {"question": "is it red ? [SEP] two boat [SEP] tree dog tree"}
    )


def test_thirty_words_of_an_image_are_read(tiny):
    config = run_config(tiny, None, BOTH | {"max_tokens": 60})
    (found,) = read(config, question(1, "is it", ["yes"], ocr=["red"] * 40, objects=["dog"] * 40))
    assert found.split().count("red") == 30 and found.split().count("dog") == 60 - 2 - 2 - 30 - 2


def test_evaluation_reads_them_as_well_and_cuts_them_elsewhere(tiny, tmp_path, monkeypatch):
    config = run_config(
        tiny,
        shards(tmp_path, test=WORDS, train=WORDS),
        GENERATE | BOTH | {"max_tokens": 5, "eval_max_tokens": 16},
    )
    assembled = build_task(config)
    assembled.task.eval()
    assembled.task.prompts.disable()
    lengths, forward = [], task_forward(assembled)

    def watched(batch: Any, **given: Any) -> Any:
        if given["what"] == "generate":
            tokens = batch["input_ids"].tolist()
            lengths.extend(sum(token != assembled.tokenizer.pad_id for token in row) for row in tokens)
            assert all(row.count(assembled.tokenizer.sep_id) >= 2 for row in tokens)
        return forward(batch, **given)

    evaluation = assembled.wiring.evaluate(watched, assembled.tokenizer)
    assert len(lengths) == evaluation.facts["questions"] and max(lengths) == 16
    (batch, *_) = annotated_loader(
        config, "questions", assembled.wiring.train_texts(assembled.tokenizer), 1, 0, 0
    )
    assert batch["input_ids"].shape[1] == 5


def test_answers_come_from_what_was_read(tiny, tmp_path):
    """The same weights give other scores with other words, and the same with none."""
    scores = []
    for number, words in enumerate((WORDS, {"ocr": ["green"], "objects": ["cat"]}, {})):
        config = run_config(tiny, shards(tmp_path / str(number), test=words), BOTH)
        assembled = build_task(config)
        assembled.task.eval()
        found = assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer).details.said
        scores.append(torch.tensor([each.score for each in found]))
    config = run_config(tiny, tmp_path / "2", {"max_tokens": BOTH["max_tokens"]})
    assembled = build_task(config)
    assembled.task.eval()
    plain = assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer).details.said
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    torch.testing.assert_close(scores[2], torch.tensor([each.score for each in plain]))


def test_shards_without_the_words_that_a_recipe_asks_for_are_an_error(tiny, tmp_path):
    config = run_config(tiny, shards(tmp_path / "a", train=WORDS, test={"objects": ["dog"]}), BOTH)
    with pytest.raises(
        AuroraError, match=r"vqa.add_ocr: words .* of split 'test' in .*do without: vqa.add_ocr=false"
    ):
        build_task(config).wiring.check()
    config.vqa.add_ocr = False
    build_task(config).wiring.check()
    config = run_config(tiny, shards(tmp_path / "b", test=WORDS), BOTH)
    with pytest.raises(AuroraError, match=r"vqa.add_ocr and vqa.add_objects.* of split 'train' in"):
        build_task(config).wiring.check()


def test_one_dataset_of_a_mixture_with_words_will_do(tiny, tmp_path):
    """mPLUG's lists of Visual Genome have few words; training goes on without where there are none."""
    config = run_config(tiny, shards(tmp_path / "a", train=WORDS, test=WORDS), BOTH)
    shards(tmp_path / "b")
    config.data.mix = [MixEntry(shards=str(tmp_path / name)) for name in "ab"]
    build_task(config).wiring.check()


def test_words_of_another_shape_are_an_error(tiny, tmp_path):
    asked = question(7, "is it", ["yes"])
    config = run_config(tiny, None, BOTH)
    for field in WORDS:
        with pytest.raises(AuroraError, match=rf"Question 7 has dog as `{field}`; expected a list of texts"):
            read(config, copy.deepcopy(asked) | {field: "dog"})


def test_more_tokens_in_evaluation_than_positions_are_refused():
    with pytest.raises(
        AuroraError, match=r"vqa.eval_max_tokens \(600\) must be 2 to backbone.text.max_positions"
    ):
        load_config("mplug_vqa", ["vqa.eval_max_tokens=600"])

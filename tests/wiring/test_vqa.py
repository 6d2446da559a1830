"""Question answering in a run: batches and their loss, evaluation by blocks, the server's file."""

from __future__ import annotations

import pytest
import torch
from question_runs import (
    ANSWERS,
    GENERATE,
    image_questions,
    image_sample,
    image_shards,
    judged,
    question,
    run_config,
    write_shards,
)

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.config import MixEntry, RunConfig
from aurora_ds.data.loader import annotated_loader, eval_image_loader
from aurora_ds.data.questions import as_read, encode_answers, question_texts
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.tasks.metrics.vqa_accuracy import answer_accuracy
from aurora_ds.wiring import blocks, vqa


def batch_of(config: RunConfig, questions: list[dict]) -> dict[str, torch.Tensor]:
    return question_texts(config, build_task(config).tokenizer)(
        [{"dataset": None, **each} for each in questions]
    )


def test_a_batch_has_every_answer_with_its_question_and_share(tiny):
    config = run_config(tiny, None)
    asked = [
        question(1, "What colour is it?", ["red"] * 7 + ["blue"] * 3),
        question(2, "who is there", ["a big dog"]),
    ]
    batch = batch_of(config, asked)
    tokenizer = build_task(config).tokenizer
    assert tokenizer.decode(batch["input_ids"]) == ["what colour is it?", "who is there"]
    assert tokenizer.decode(batch["answer_ids"]) == ["red", "blue", "a big dog"]
    assert batch["answer_question"].tolist() == [0, 0, 1]
    assert batch["answer_weights"].tolist() == pytest.approx([0.7, 0.3, 1.0])
    assert batch["answer_mask"].sum(1).tolist() == [3, 3, 5]


def test_weights_of_answers_as_published(tiny):
    own, genome = question(1, "what is it", ["red", "red", "one"]), question(2, "what is it", ["dog"])
    asked = [own, genome | {"dataset": "vg"}]
    for set_to, expected in ((None, [2 / 3, 1 / 3, 0.2]), (0.05, [0.05, 0.05, 0.2])):
        weights = batch_of(run_config(tiny, None, {"answer_weight": set_to}), asked)["answer_weights"]
        assert weights.tolist() == pytest.approx(expected)


def test_answers_of_visual_genome_in_a_mixture_weigh_as_published(tiny, tmp_path):
    image_shards(tmp_path / "vqa", train=2)
    genome = [image_sample(n, dataset="vg", questions=[question(n, "what is it", ["dog"])]) for n in (90, 91)]
    write_shards(tmp_path / "genome", {"train": [genome]})
    config = run_config(tiny, tmp_path / "vqa")
    config.data.mix = [MixEntry(shards=str(tmp_path / name)) for name in ("vqa", "genome")]
    config.train.global_batch_size = 5  # all there are
    texts = question_texts(config, build_task(config).tokenizer)
    (batch,) = annotated_loader(config, "questions", texts, 1, 0, 0)
    weights: dict[str, list[float]] = {"vqa": [], "genome": []}
    for row, weight in zip(batch["answer_question"].tolist(), batch["answer_weights"].tolist(), strict=True):
        weights[batch["keys"][row].split("/")[0]].append(round(weight, 3))
    assert weights["genome"] == [0.2, 0.2] and sum(weights["vqa"]) == pytest.approx(3)


@pytest.mark.parametrize(
    ("how", "expected"), [("cleaned", "is it in"), ("as_is", "is it in. the grass is it?")]
)
def test_questions_are_cleaned_and_cut_unless_they_are_taken_as_they_are(tiny, how, expected):
    config = run_config(tiny, None, {"question_text": how, "max_words": 3})
    tokenizer = build_task(config).tokenizer
    read = as_read("Is it in. The grass is it?", [], config.vqa, tokenizer)
    assert tokenizer.decode(tokenizer.encode([read], config.vqa.max_tokens, single=True)[0]) == [expected]


def test_answers_are_never_cut(tiny):
    tokenizer = build_task(run_config(tiny, None)).tokenizer
    long = " ".join(["red"] * 14)
    assert encode_answers(["no", long], 16, tokenizer)[1].sum(1).tolist() == [3, 16]
    with pytest.raises(AuroraError, match=r"red red.* has 16 tokens and the text transformer 15 positions"):
        encode_answers(["no", long], 15, tokenizer)


def test_the_loss_of_a_batch_is_that_of_each_answer_alone(tiny, asked_images):
    config = run_config(tiny, asked_images)
    assembled = build_task(config)
    task = assembled.task.eval()
    texts = assembled.wiring.train_texts(assembled.tokenizer)
    batch = next(iter(annotated_loader(config, "questions", texts, 1, 0, 0)))
    expected = 0.0
    for answer, row in enumerate(batch["answer_question"].tolist()):
        alone = {key: batch[key][row : row + 1] for key in ("image", "input_ids", "attention_mask")}
        alone |= {key: batch[key][answer : answer + 1] for key in ("answer_ids", "answer_mask")}
        alone |= {"answer_question": torch.tensor([0]), "answer_weights": torch.tensor([1.0])}
        expected += float(batch["answer_weights"][answer]) * task(alone)["loss"].item()
    assert len(batch["answer_ids"]) > 4, "several answers a question"
    assert task(batch)["loss"].item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("skip", ["skip", "error"])
def test_a_question_without_answers_stops_training_whatever_is_done_with_bad_samples(
    tiny, asked_images, skip
):
    config = run_config(tiny, asked_images)
    config.data.train_split, config.data.bad_samples, config.train.global_batch_size = "bare", skip, 2
    texts = question_texts(config, build_task(config).tokenizer)
    with pytest.raises(
        AuroraError, match=r"Question 7\d of sample image-7\d has no answers.*data.train_split"
    ):
        next(iter(annotated_loader(config, "questions", texts, 1, 0, 0)))


def one_by_one(assembled: Assembled, split: str) -> list[str]:
    """Each question with its medium alone; ranked ones with every answer of the list in turn."""
    config, task, tokenizer = assembled.config, assembled.task, assembled.tokenizer
    task(None, what="prepare_evaluation")
    said = []
    for medium, (_, record) in enumerate(blocks.eval_records(config)):
        image = next(iter(eval_image_loader(config, split, [medium], 1, 0, 1)))["image"]
        for each in record["questions"]:
            read = as_read(each["question"], [], config.vqa, tokenizer)
            ids, mask = tokenizer.encode([read], config.vqa.max_tokens, single=True)
            batch = {"image": image, "input_ids": ids, "attention_mask": mask}
            if config.vqa.inference == "generate":
                said.append(tokenizer.decode(task(batch, what="generate")["ids"])[0])
                continue
            losses = []
            for answer in ANSWERS:
                answer_ids, answer_mask = encode_answers([answer], 16, tokenizer)
                training = {"answer_ids": answer_ids, "answer_mask": answer_mask}
                training |= {"answer_question": torch.tensor([0]), "answer_weights": torch.tensor([1.0])}
                losses.append(float(task(batch | training)["loss"]))
            said.append(ANSWERS[losses.index(min(losses))])
    return said


@pytest.mark.parametrize("options", [{"k_test": 20}, GENERATE], ids=["rank", "generate"])
@torch.no_grad()
def test_answers_and_accuracy_are_those_of_a_plain_loop(tiny, asked_images, options):
    assembled, evaluation = judged(run_config(tiny, asked_images, options))
    said = one_by_one(assembled, "test")
    questions = [each for n in range(50, 57) for each in image_questions(n)]
    assert [entry["answer"] for entry in evaluation.files["vqa_result.json"]] == said
    assert [entry["question_id"] for entry in evaluation.files["vqa_result.json"]] == [
        each["question_id"] for each in questions
    ]
    credit = []
    for each, answer in zip(questions, said, strict=True):
        people = [a["answer"] for a in each["answers"] for _ in range(round(10 * a["weight"]))]
        credit.append(100 * answer_accuracy(answer, people))
    assert evaluation.metrics["accuracy"] == pytest.approx(sum(credit) / len(credit))
    assert evaluation.details.credit == pytest.approx([each / 100 for each in credit])
    for kind, name in (("number", "number"), ("yes/no", "yes_no"), ("other", "other")):
        own = [c for c, each in zip(credit, questions, strict=True) if each["answer_type"] == kind]
        assert evaluation.metrics[f"accuracy_answer_type/{name}"] == pytest.approx(sum(own) / len(own))
    assert len(set(said)) > 1, "the model tells questions apart"


@torch.no_grad()
def test_clips_are_judged_by_equality_for_each_type_of_question(tiny, asked_clips):
    assembled, evaluation = judged(run_config(tiny, asked_clips, {"accuracy": "exact", "k_test": 20}))
    said = one_by_one(assembled, "test")
    assert [entry["answer"] for entry in evaluation.files["vqa_result.json"]] == said
    right = [ANSWERS[(n + place) % 8] for n in range(4, 9) for place in range(1 + n % 3)]
    types = [("what", "who", "how")[place] for n in range(4, 9) for place in range(1 + n % 3)]
    same = [a == b for a, b in zip(said, right, strict=True)]
    assert evaluation.metrics["accuracy"] == pytest.approx(100 * sum(same) / len(same))
    what = [s for s, kind in zip(same, types, strict=True) if kind == "what"]
    assert evaluation.metrics["accuracy_question_type/what"] == pytest.approx(100 * sum(what) / len(what))
    assert evaluation.facts["clips"] == 5 and evaluation.facts["frames"] == 3
    assert evaluation.facts["sampling"] == "uniform"


def test_an_image_is_encoded_once_whatever_its_questions(tiny, asked_images):
    assembled = build_task(run_config(tiny, asked_images))
    seen, asked, plain = [], [], task_forward(assembled.task.eval() and assembled)

    def forward(batch: dict, what: str, **arguments):
        if what == "encode_images":
            seen.append(len(batch["image"]))
        if what == "rank":
            asked.append(len(batch["input_ids"]))
            assert len(batch["tokens"]) == batch["image_index"].max() + 1, "no image without a question"
        return plain(batch, what, **arguments)

    assembled.wiring.evaluate(forward, assembled.tokenizer)
    assert sum(seen) == 7 and max(seen) == 2
    assert sum(asked) == sum(1 + n % 3 for n in range(50, 57)) and max(asked) == 3


@pytest.mark.parametrize("options", [{}, GENERATE], ids=["rank", "generate"])
def test_two_ranks_give_what_one_gives(tiny, asked_images, options, monkeypatch):
    config = run_config(tiny, asked_images, options)
    _, alone = judged(config)
    parts: list[list] = []

    def keep(own, count):
        parts.append(list(own))
        raise StopIteration

    for rank in range(2):
        monkeypatch.setattr(blocks, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(vqa, "in_order", keep)
        with pytest.raises(StopIteration):
            judged(config)
    assert [len(part) for part in parts] == [2, 2], "4 blocks of 7 images"
    assert [
        each for turn in zip(*parts, strict=True) for block in turn for each in block
    ] == alone.details.said


def test_a_split_without_answers_gives_the_file_alone(tiny, asked_images):
    config = run_config(tiny, asked_images)
    config.data.eval_split = "bare"
    assembled, evaluation = judged(config)
    assert evaluation.metrics == {} and evaluation.facts["judged_by"] is None
    assert [entry["question_id"] for entry in evaluation.files["vqa_result.json"]] == [70, 71, 72]
    name, shown = assembled.wiring.picture(assembled.tokenizer, evaluation)
    assert name == "answers" and shown.dtype == "uint8" and shown.shape[0] == 3


def test_limit_judges_the_first_media_alone(tiny, asked_images):
    config = run_config(tiny, asked_images)
    config.evaluate.limit = 3
    _, evaluation = judged(config)
    assert evaluation.facts["images"] == 3 and len(evaluation.files["vqa_result.json"]) == 6

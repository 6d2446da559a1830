"""Question answering in a run: batches, evaluation by blocks, the server's file, errors, predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from question_runs import (
    ANSWERS,
    answer_file,
    backbone,
    clip_shards,
    image_questions,
    image_sample,
    image_shards,
    question,
    run_config,
    write_shards,
)

from aurora_ds import evaluate, train
from aurora_ds.assemble import Assembled, build_task, load_trained
from aurora_ds.config import MixEntry, RunConfig
from aurora_ds.contradictions import contradictions
from aurora_ds.data.loader import annotated_loader, eval_image_loader
from aurora_ds.data.questions import answer_list, answered, encode_answers, encode_questions, question_texts
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.recipe import to_yaml
from aurora_ds.tasks.metrics.vqa_accuracy import answer_accuracy
from aurora_ds.wiring import asked as asked_module
from aurora_ds.wiring import blocks, vqa
from aurora_ds.wiring.base import Evaluation


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    bare = [image_sample(n, questions=[question(n, "what is it")]) for n in (70, 71, 72)]
    image_shards(folder, bare=[bare])
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clip_shards(folder)
    return folder


def judged(config: RunConfig) -> tuple[Assembled, Evaluation]:
    """A fresh task over random weights and its evaluation, all in this process."""
    assembled = build_task(config)
    assembled.task.eval()
    if assembled.task.prompts is not None:
        assembled.task.prompts.disable()
    return assembled, assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer)


# ---- batches


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
    assembled = build_task(config)
    ids, _ = encode_questions(["Is it in. The grass is it?"], config.vqa, assembled.tokenizer)
    assert assembled.tokenizer.decode(ids) == [expected]


def test_answers_are_never_cut(tiny):
    tokenizer = build_task(run_config(tiny, None)).tokenizer
    long = " ".join(["red"] * 14)
    assert encode_answers(["no", long], 16, tokenizer)[1].sum(1).tolist() == [3, 16]
    with pytest.raises(AuroraError, match=r"red red.* has 16 tokens and the text transformer 15 positions"):
        encode_answers(["no", long], 15, tokenizer)


def test_the_loss_of_a_batch_is_that_of_each_answer_alone(tiny, images):
    config = run_config(tiny, images)
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
def test_a_question_without_answers_stops_training_whatever_is_done_with_bad_samples(tiny, images, skip):
    config = run_config(tiny, images)
    config.data.train_split, config.data.bad_samples, config.train.global_batch_size = "bare", skip, 2
    texts = question_texts(config, build_task(config).tokenizer)
    with pytest.raises(
        AuroraError, match=r"Question 7\d of sample image-7\d has no answers.*data.train_split"
    ):
        next(iter(annotated_loader(config, "questions", texts, 1, 0, 0)))


# ---- evaluation


def one_by_one(assembled: Assembled, split: str) -> list[str]:
    """Each question with its medium alone; ranked ones with every answer of the list in turn."""
    config, task, tokenizer = assembled.config, assembled.task, assembled.tokenizer
    task(None, what="prepare_evaluation")
    said = []
    for medium, (_, record) in enumerate(blocks.eval_records(config)):
        image = next(iter(eval_image_loader(config, split, [medium], 1, 0, 1)))["image"]
        for each in record["questions"]:
            ids, mask = encode_questions([each["question"]], config.vqa, tokenizer)
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


GENERATE = {"inference": "generate", "generation": {"max_length": 6, "min_length": 1, "beams": 2}}


@pytest.mark.parametrize("options", [{"k_test": 20}, GENERATE], ids=["rank", "generate"])
@torch.no_grad()
def test_answers_and_accuracy_are_those_of_a_plain_loop(tiny, images, options):
    assembled, evaluation = judged(run_config(tiny, images, options))
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
def test_clips_are_judged_by_equality_for_each_type_of_question(tiny, clips):
    assembled, evaluation = judged(run_config(tiny, clips, {"accuracy": "exact", "k_test": 20}))
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


def test_an_image_is_encoded_once_whatever_its_questions(tiny, images):
    assembled = build_task(run_config(tiny, images))
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
def test_two_ranks_give_what_one_gives(tiny, images, options, monkeypatch):
    config = run_config(tiny, images, options)
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


def test_a_split_without_answers_gives_the_file_alone(tiny, images):
    config = run_config(tiny, images)
    config.data.eval_split = "bare"
    assembled, evaluation = judged(config)
    assert evaluation.metrics == {} and evaluation.facts["judged_by"] is None
    assert [entry["question_id"] for entry in evaluation.files["vqa_result.json"]] == [70, 71, 72]
    name, shown = assembled.wiring.picture(assembled.tokenizer, evaluation)
    assert name == "answers" and shown.dtype == "uint8" and shown.shape[0] == 3


def test_limit_judges_the_first_media_alone(tiny, images):
    config = run_config(tiny, images)
    config.evaluate.limit = 3
    _, evaluation = judged(config)
    assert evaluation.facts["images"] == 3 and len(evaluation.files["vqa_result.json"]) == 6


# ---- wrong input


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
def test_lists_of_answers_that_cannot_be_ranked(tiny, images, tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    config = run_config(tiny, images, {"answer_list": str(path)})
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


# ---- whole runs


def test_a_run_leaves_results_the_file_and_an_adapter_that_predicts_without_shards(
    tiny, images, tmp_path, capsys
):
    config = run_config(tiny, images)
    config.train.evaluate_every = 1
    record = train.run(config, tmp_path / "run")
    assert record["questions"] == 15 and record["answers"] == len(ANSWERS) and record["k_test"] == 5
    assert record["best"].keys() == {"step", "accuracy"}
    saved = json.loads((tmp_path / "run" / "vqa_result.json").read_text())
    assert len(saved) == 15 and set(saved[0]) == {"question_id", "answer"}

    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    again = ["--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "again")]
    assert evaluate.main([str(tmp_path / "recipe.yaml"), *again]) == 0
    printed = capsys.readouterr().out
    assert "7 images, 15 questions" in printed and "yes_no" in printed
    assert f"(sha256 {record['adapter_sha256'][:12]}), ranked 11 answers" in printed, "not broken into lines"
    assert json.loads((tmp_path / "again" / "vqa_result.json").read_text()) == saved
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    assert results["metrics"] == record["metrics"] and len(results["answer_list_sha256"]) == 64

    bare = run_config(tiny, None)
    with pytest.raises(AuroraError, match="was trained for the task vqa, but this recipe is of caption"):
        load_trained(bare.model_copy(update={"task": "caption"}), str(tmp_path / "run" / "adapter"))
    assembled = load_trained(bare, str(tmp_path / "run" / "adapter"))
    assembled.task.eval()
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = assembled.wiring.predict(
        task_forward(assembled), assembled.tokenizer, image, ["What is it?", "how many"]
    )
    for each in found:
        assert each["answer"] == each["answers"][0]["answer"] and each["score"] <= 1
        shares = [other["probability"] for other in each["answers"]]
        assert shares == sorted(shares, reverse=True) and len(shares) == 5 and sum(shares) == pytest.approx(1)


def test_full_fine_tuning_leaves_a_backbone(tiny, images, tmp_path):
    config = run_config(tiny, images)
    config.train.method, config.train.lr = "full", 1e-4
    record = train.run(config, tmp_path / "run")
    config = run_config(tiny | {"checkpoint": str(tmp_path / "run/adapter/backbone.safetensors")}, images)
    again = evaluate.run(config, None, tmp_path / "again")
    assert again["metrics"] == record["metrics"]
    files = [(tmp_path / place / "vqa_result.json").read_text() for place in ("run", "again")]
    assert files[0] == files[1]


def test_there_are_no_heads_to_train_alone(tiny):
    config = run_config(tiny, None)
    assert contradictions(config) == []
    config.train.method = "heads"
    assert "the model of vqa has none" in " ".join(contradictions(config))


def test_zero_shot_of_a_split_without_answers_writes_no_metrics(tiny, images, tmp_path, capsys):
    config = run_config(tiny, images, GENERATE)
    config.data.eval_split = "bare"
    record = evaluate.run(config, None, tmp_path)
    assert record["metrics"] == {} and record["method"] == "frozen"
    assert len(json.loads((tmp_path / "vqa_result.json").read_text())) == 3
    assert "no metrics" in capsys.readouterr().out


def test_videoqa_trains_and_says_how_clips_were_read(tiny, clips, tmp_path, capsys):
    config = run_config(tiny, clips, {"accuracy": "exact", "answer_weight": 0.05, **GENERATE})
    config.train.max_steps, config.train.global_batch_size = 2, 2
    config.data.shots, config.data.video.window = 3, [0, None]
    record = train.run(config, tmp_path / "run")
    assert record["clips"] == 5 and record["generation"]["beams"] == 2
    config.data.shots = None
    again = evaluate.run(config, tmp_path / "run", tmp_path / "again")
    assert (again["shots"], again["metrics"]) == (3, record["metrics"])
    for shown in capsys.readouterr().out.split("exact match")[1:]:
        assert "3 frames uniform, 0 s to the end" in shown and "trained on 3 media" in shown
    assert json.loads((tmp_path / "again" / "results.json").read_text())["window"] == [0, None]


def test_predictions_need_a_list_or_are_written(tiny):
    image = torch.zeros(1, 3, 16, 16)
    assembled = build_task(run_config(tiny, None))
    assembled.task.eval()
    forward = task_forward(assembled)
    with pytest.raises(AuroraError, match="none is given: set vqa.answer_list"):
        assembled.wiring.predict(forward, assembled.tokenizer, image, ["what is it"])
    for texts in ([], ["one", "two"], [" "]):
        with pytest.raises(AuroraError, match="one question for each"):
            assembled.wiring.predict(forward, assembled.tokenizer, image, texts)
    written = build_task(run_config(tiny, None, GENERATE))
    written.task.eval()
    (found,) = written.wiring.predict(task_forward(written), written.tokenizer, image, ["what is it"])
    assert isinstance(found["answer"], str) and found["score"] < 0 and "answers" not in found


def test_half_of_the_credit_is_right_in_the_picture(tiny, images):
    config = run_config(tiny, images)
    assembled, evaluation = judged(config)
    shown = []
    for credit in (0.3, 0.6):
        details = replace(evaluation.details, credit=[credit] * 15)
        shown.append(vqa.answer_gallery(config, details))
    red, green = (200, 30, 30), (22, 128, 57)
    for picture, colour, other in ((shown[0], red, green), (shown[1], green, red)):
        pixels = {tuple(each) for each in picture.reshape(3, -1).T.tolist()}
        assert colour in pixels and other not in pixels

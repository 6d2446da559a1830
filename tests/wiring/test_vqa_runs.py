"""Whole runs of question answering: results, files, adapters, predictions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from question_runs import (
    ANSWERS,
    GENERATE,
    judged,
    run_config,
)

from aurora_ds import evaluate, train
from aurora_ds.assemble import build_task, load_trained
from aurora_ds.contradictions import contradictions
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.recipe import load_config, to_yaml
from aurora_ds.wiring import vqa


def test_a_run_leaves_results_the_file_and_an_adapter_that_predicts_without_shards(
    tiny, asked_images, tmp_path, capsys
):
    config = run_config(tiny, asked_images)
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


def test_full_fine_tuning_leaves_a_backbone_whose_sizes_and_shots_are_beside_it(tiny, asked_images, tmp_path):
    config = run_config(tiny, asked_images)
    config.train.method, config.train.lr, config.data.shots = "full", 1e-4, 5
    record = train.run(config, tmp_path / "run")
    config.train.method, config.data.shots = "aurora", None
    settings = yaml.safe_load(to_yaml(config))
    settings["backbone"] = {"head": "vqa", "checkpoint": str(tmp_path / "run/adapter/backbone.safetensors")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    again = evaluate.run(load_config(str(tmp_path / "recipe.yaml")), None, tmp_path / "again")
    assert again["metrics"] == record["metrics"] and again["shots"] == record["shots"] == 5
    files = [(tmp_path / place / "vqa_result.json").read_text() for place in ("run", "again")]
    assert files[0] == files[1]


def test_there_are_no_heads_to_train_alone(tiny):
    config = run_config(tiny, None)
    assert contradictions(config) == []
    config.train.method = "heads"
    assert "the model of vqa has none" in " ".join(contradictions(config))


def test_zero_shot_of_a_split_without_answers_writes_no_metrics(tiny, asked_images, tmp_path, capsys):
    config = run_config(tiny, asked_images, GENERATE)
    config.data.eval_split = "bare"
    record = evaluate.run(config, None, tmp_path)
    assert record["metrics"] == {} and record["method"] == "frozen"
    assert len(json.loads((tmp_path / "vqa_result.json").read_text())) == 3
    assert "no metrics" in capsys.readouterr().out


def test_videoqa_trains_and_says_how_clips_were_read(tiny, asked_clips, tmp_path, capsys):
    config = run_config(tiny, asked_clips, {"accuracy": "exact", "answer_weight": 0.05, **GENERATE})
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


def test_half_of_the_credit_is_right_in_the_picture(tiny, asked_images):
    config = run_config(tiny, asked_images)
    assembled, evaluation = judged(config)
    shown = []
    for credit in (0.3, 0.6):
        details = replace(evaluation.details, credit=[credit] * 15)
        shown.append(vqa.answer_gallery(config, details))
    red, green = (200, 30, 30), (22, 128, 57)
    for picture, colour, other in ((shown[0], red, green), (shown[1], green, red)):
        pixels = {tuple(each) for each in picture.reshape(3, -1).T.tolist()}
        assert colour in pixels and other not in pixels

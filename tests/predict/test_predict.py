"""Single predictions from Python, for every task: as evaluation answers for the same media."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predict_media import ANSWERS, CAPTIONS, CLIPS, FAMILIES, QUESTIONS, TEST, scores

import aurora_ds
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import judged_task, task_forward
from aurora_ds.recipe import load_config
from aurora_ds.wiring.base import Evaluation


def evaluated(recipe: Path, run: Path | None, *overrides: str) -> Evaluation:
    """What evaluation finds on the whole test split."""
    adapter = None if run is None else str(run / "adapter")
    assembled = judged_task(load_config(str(recipe), list(overrides)), adapter, torch.device("cpu"))
    with torch.no_grad():
        return assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer)


@pytest.mark.parametrize(
    ("family", "keyword", "media"), [("folder", "image", TEST), ("clips", "video", CLIPS)]
)
def test_retrieval_scores_are_those_of_evaluation(
    family: str, keyword: str, media: list[Path], recipes, runs, shards
) -> None:
    there = [f"data.shards={shards(family)}", "data.video.frames=3"]
    result = evaluated(recipes("retrieval"), runs("retrieval"), *there).details
    predictor = aurora_ds.load(runs("retrieval"), overrides=["data.video.frames=3"])
    found = [scores(each) for each in predictor.predict(**{keyword: media}, text=CAPTIONS)]
    assert result.text_candidates.shape == (len(media), len(media))
    ranked = zip(result.text_candidates.tolist(), result.text_scores.tolist(), strict=True)
    for text, (candidates, values) in enumerate(ranked):
        expected = [found[medium][CAPTIONS[text % 3]] for medium in candidates]
        assert values == pytest.approx(expected, abs=1e-4)


def test_answers_are_those_of_evaluation(recipes, runs) -> None:
    details = evaluated(recipes("vqa"), runs("vqa")).details
    predictor = aurora_ds.load(runs("vqa"))
    found = predictor.predict(
        image=[TEST[each.medium] for each in details.asked], text=[each.text for each in details.asked]
    )
    assert [each["answer"] for each in found] == [said.answer for said in details.said]
    assert [each["score"] for each in found] == pytest.approx([said.score for said in details.said], rel=1e-4)
    assert len(found) == len(TEST) and all(len(each["answers"]) == 3 for each in found)


def test_answers_about_clips_by_the_frozen_backbone_are_those_of_evaluation(recipes, shards) -> None:
    settings = ["data.video.frames=3", "vqa.inference=generate", "vqa.accuracy=exact"]
    details = evaluated(recipes("vqa"), None, f"data.shards={shards('clip_questions')}", *settings).details
    predictor = aurora_ds.load(recipe=recipes("vqa"), overrides=settings)
    for asked, said in zip(details.asked, details.said, strict=True):
        found = predictor.predict(video=CLIPS[asked.medium], text=asked.text)
        assert found["answer"] == said.answer and found["score"] == pytest.approx(said.score, rel=1e-4)
    assert predictor.about["method"] == "frozen" and predictor.about["adapter"] is None


def test_captions_are_those_of_evaluation(recipes, runs) -> None:
    evaluation = evaluated(recipes("caption"), runs("caption"))
    found = aurora_ds.load(runs("caption")).predict(image=TEST)
    assert [each["caption"] for each in found] == [
        row["caption"] for row in evaluation.files["captions.json"]
    ]
    assert all(each["score"] < 0 for each in found)


def test_judged_statements_are_those_of_evaluation(recipes, runs, shards) -> None:
    details = evaluated(recipes("nlvr"), runs("nlvr")).details
    images = shards("pairs").parent / "raw" / "images" / "test"
    pairs = [[images / f"{each.medium:02d}-{side}.png" for side in (0, 1)] for each, _ in details]
    found = aurora_ds.load(runs("nlvr")).predict(images=pairs, text=[each.sentence for each, _ in details])
    for each, (_, judged) in zip(found, details, strict=True):
        assert each["label"] == ("False", "True")[judged.says]
        assert each["probabilities"]["True"] == pytest.approx(judged.probabilities[1], rel=1e-4)
    assert len(found) >= 6


def test_one_medium_gives_a_dict_and_lists_give_lists(runs) -> None:
    answers = aurora_ds.load(runs("vqa"))
    one = answers.predict(image=TEST[0], text=QUESTIONS[0])
    assert answers.predict(image=[TEST[0]], text=QUESTIONS[0]) == [one]
    two = answers.predict(image=TEST[0], text=QUESTIONS[:2])
    assert [each["question"] for each in two] == QUESTIONS[:2] and two[0]["answer"] == one["answer"]
    shared = answers.predict(image=TEST[:2], text=QUESTIONS[0])
    assert [each["question"] for each in shared] == [QUESTIONS[0]] * 2
    assert answers.predict(image=[], text=QUESTIONS[0]) == []


def test_however_an_image_comes_the_answer_is_the_same(runs) -> None:
    captions = aurora_ds.load(runs("caption"))
    wanted = captions.predict(image=TEST[0])
    opened = Image.open(TEST[0])
    for given in (str(TEST[0]), TEST[0].read_bytes(), opened, np.asarray(opened.convert("RGB"))):
        assert captions.predict(image=given) == wanted


def test_more_media_than_fit_a_batch_are_answered_in_order(runs) -> None:
    small = aurora_ds.load(runs("caption"), overrides=["evaluate.image_batch_size=2"])
    found = small.predict(image=TEST)
    alone = [small.predict(image=each) for each in TEST]
    assert [each["caption"] for each in found] == [each["caption"] for each in alone]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in alone], rel=1e-4)


def test_a_predictor_says_which_model_it_is(runs, recipes) -> None:
    from aurora_ds.backbones.checkpoint import load_backbone

    about = aurora_ds.load(runs("caption")).about
    assert (about["task"], about["method"], about["preset"]) == ("caption", "aurora", "aurora")
    assert about["adapter"] == str(runs("caption") / "adapter") and about["seed"] == 42
    assert about["backbone"]["sha256"] == load_backbone(load_config(str(recipes("caption"))).backbone).sha256


@pytest.mark.parametrize("task", FAMILIES)
def test_a_checkpoint_predicts_too_and_loading_leaves_the_callers_random_numbers(task: str, runs) -> None:
    place = next((runs(task) / "checkpoints").glob("step-*"))  # trains, when it is asked for first
    torch.manual_seed(7)
    before = torch.get_rng_state()
    predictor = aurora_ds.load(place)
    assert torch.equal(torch.get_rng_state(), before)
    assert not predictor._assembled.task.training and predictor.config.task == task


def test_the_frozen_backbone_answers_otherwise(runs, recipes) -> None:
    trained = aurora_ds.load(runs("retrieval")).predict(image=TEST[0], text=CAPTIONS)
    frozen = aurora_ds.load(recipe=str(recipes("retrieval"))).predict(image=TEST[0], text=CAPTIONS)
    assert scores(trained) != pytest.approx(scores(frozen), abs=1e-3)


def test_blank_media_are_answered_from_the_text_alone(recipes) -> None:
    blank = aurora_ds.load(recipe=recipes("retrieval"), overrides=["data.media=blank"])
    first, second = blank.predict(image=TEST[:2], text=CAPTIONS)
    assert first == second


def test_frames_and_window_are_those_of_the_call(recipes) -> None:
    clips = aurora_ds.load(recipe=recipes("caption"), overrides=["data.video.frames=2"])
    many = aurora_ds.load(
        recipe=recipes("caption"), overrides=["data.video.frames=4", "data.video.window=[3,6]"]
    )
    wanted = many.predict(video=CLIPS[0])["score"]
    assert clips.predict(video=CLIPS[0], frames=4, window=(3, 6))["score"] == wanted
    assert clips.predict(video=CLIPS[0])["score"] != wanted
    with pytest.raises(AuroraError, match="frames=0 of a clip: Input should be greater than 0"):
        clips.predict(video=CLIPS[0], frames=0)


def test_half_precision_and_a_named_device(runs) -> None:
    half = aurora_ds.load(runs("retrieval"), device="cpu", precision="bf16")
    full = aurora_ds.load(runs("retrieval"), device="cpu")
    found = [scores(each.predict(image=TEST[0], text=CAPTIONS)) for each in (half, full)]
    assert found[0] == pytest.approx(found[1], abs=0.2) and found[0] != found[1]


def test_exported_and_fully_trained_models_predict_from_their_folder(recipes, tmp_path: Path) -> None:
    from aurora_ds.export import run as export
    from aurora_ds.train import run

    short = ["train.max_steps=1", "evaluate.limit=1"]
    run(load_config(str(recipes("vqa")), [*short, "prompts.query_transform=false"]), tmp_path / "run")
    export(tmp_path / "run", "merged", tmp_path / "exported")
    shutil.move(tmp_path / "exported", tmp_path / "merged")  # it names its own weights wherever it is
    run(load_config(str(recipes("vqa")), [*short, "train.method=full"]), tmp_path / "full")
    asked = {"image": TEST[0], "text": QUESTIONS[0]}
    wanted = aurora_ds.load(tmp_path / "run").predict(**asked)
    merged = aurora_ds.load(tmp_path / "merged")
    assert merged.predict(**asked)["score"] == pytest.approx(wanted["score"], rel=1e-3)
    assert merged.about["adapter"] == str(tmp_path / "merged")
    full = aurora_ds.load(tmp_path / "full")
    assert full.about["method"] == "full" and full.predict(**asked)["answer"] in ANSWERS


def test_a_backbone_that_moved_is_named(runs, recipes, tmp_path: Path) -> None:
    shutil.copytree(runs("caption") / "adapter", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(place.read_text())
    here = Path(saved["backbone"]["config"]["checkpoint"])
    saved["backbone"]["config"]["checkpoint"] = "gone.safetensors"
    place.write_text(json.dumps(saved))
    with pytest.raises(AuroraError, match="gone.safetensors: there is no such file.*backbone=FILE"):
        aurora_ds.load(tmp_path)
    moved = aurora_ds.load(tmp_path, backbone=here).predict(image=TEST[0])
    assert moved == aurora_ds.load(runs("caption")).predict(image=TEST[0])


def test_an_adapter_without_settings_needs_a_recipe(runs, recipes, tmp_path: Path) -> None:
    shutil.copytree(runs("caption") / "adapter", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(place.read_text())
    del saved["settings"]
    place.write_text(json.dumps(saved))
    with pytest.raises(AuroraError, match="does not say how it is used.*Give the recipe"):
        aurora_ds.load(tmp_path)
    found = aurora_ds.load(tmp_path, recipe=recipes("caption")).predict(image=TEST[0])
    assert found == aurora_ds.load(runs("caption")).predict(image=TEST[0])

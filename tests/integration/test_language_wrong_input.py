"""What is wrong with the data of the language tasks: status 2, one paragraph that names it, and no results.

A clip with fewer frames than are asked for is none of it unless data.video.short_clips=error says so: frames are
repeated evenly (data/sampling.py).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import recipe

sys.path.append(str(Path(__file__).parents[1] / "data"))
from written_shards import Written, clip_sample, image_sample, pair_sample, write_shards

os.environ.setdefault("DS_ACCELERATOR", "cpu")

TASKS = ("vqa", "caption", "nlvr")
ANSWERS = [{"answer": "yes", "weight": 1.0}]
EXACT = "vqa.accuracy=exact"
WRITTEN = "vqa.inference=generate"  # so that no list of answers is needed


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task -> a recipe without shards."""
    folder = tmp_path_factory.mktemp("recipes")
    return {task: recipe(folder, task, Path()) for task in TASKS}


@pytest.fixture
def refused(recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`refused(command, task, splits, overrides…)`: the paragraph it ends with, after the checks that all share."""
    from aurora_ds.cli import main

    def refused(command: str, task: str, splits: dict[str, list[Written]], *overrides: str) -> str:
        shards, output = tmp_path / "shards", tmp_path / "output"
        if splits:
            write_shards(shards, {split: [samples] for split, samples in splits.items()})
        arguments = [
            command,
            str(recipes[task]),
            f"data.shards={shards}",
            *overrides,
            "--output",
            str(output),
        ]
        capsys.readouterr()
        status, printed = main(arguments), capsys.readouterr().err
        lines = [line for line in printed.splitlines() if line.startswith("aurora-ds")]
        assert status == 2 and len(lines) == 1 and "Traceback" not in printed, printed
        left = {path.name for path in output.rglob("*") if path.is_file()}
        said_by_ranks = {"rank-00000.json", "bad_samples.jsonl"}
        assert left <= {"run.json", "run.lock", "config.yaml", "metrics.jsonl"} | said_by_ranks, left
        return lines[0]

    return refused


def asked(number: int, **question: Any) -> Written:
    """An image with one question."""
    entry = {"question": "is it red", "question_id": number, "answers": ANSWERS, **question}
    return image_sample(number, questions=[entry])


def told(*captions: str) -> Callable[[int], Written]:
    return lambda number: image_sample(number, captions=list(captions), image_id=number)


def several(make: Callable[..., Written], first: int = 0, count: int = 4) -> list[Written]:
    return [make(number) for number in range(first, first + count)]


# ---- questions


def test_a_question_without_answers_in_training(refused) -> None:
    train = [*several(asked, count=3), asked(3, answers=[])]  # a batch
    said = refused("train", "vqa", {"train": train, "test": several(asked)}, EXACT, WRITTEN)
    assert "Question 3 of sample image-3 has no answers" in said and "data.train_split" in said


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_no_list_of_answers_to_rank(command: str, refused) -> None:
    said = refused(command, "vqa", {"train": several(asked), "test": several(asked)}, EXACT)
    assert "without answer_list.json" in said and "vqa.answer_list" in said


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_two_questions_of_one_id(command: str, refused) -> None:
    test = [*several(asked, count=3), asked(3, question_id=2)]
    said = refused(command, "vqa", {"train": several(asked), "test": test}, EXACT, WRITTEN)
    assert "Question id 2 is there twice, in samples image-2 and image-3" in said


# ---- captions


def test_an_empty_caption_in_training(refused) -> None:
    train = [*several(told("a red ball"), count=3), told(" . ")(3)]  # a batch
    said = refused("train", "caption", {"train": train, "test": several(told("a cup"))})
    assert "' . '" in said and "no words" in said


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_ground_truth_of_media_that_were_not_evaluated(command: str, refused, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", {split: [several(told("a red ball"))] for split in ("train", "test")})
    names = [0, 1, 2, 3, 77]
    truth = {
        "images": [{"id": name} for name in names],
        "annotations": [{"image_id": name, "id": name, "caption": "a cup"} for name in names],
    }
    (tmp_path / "shards" / "test_gt.json").write_text(json.dumps(truth))
    assert "77" in refused(command, "caption", {})


# ---- pairs


def test_a_statement_without_label_in_training(refused) -> None:
    bare = pair_sample(30)
    bare.record["statements"] = [{"sentence": "there is a red box", "identifier": "train-3-0-0"}]
    train = [*several(pair_sample, count=3), bare]  # a batch
    said = refused("train", "nlvr", {"train": train, "test": several(pair_sample)})
    assert "train-3-0-0 has no label" in said


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_statements_about_single_images(command: str, refused) -> None:
    statement = {"sentence": "there is a red box", "label": "True"}
    one = several(lambda number: image_sample(number, kind="image", statements=[statement]))
    assert "no pair of images (it holds 1)" in refused(command, "nlvr", {"train": one, "test": one})


# ---- clips


def test_a_clip_with_fewer_frames_than_asked_for_is_seen_with_frames_repeated(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    from aurora_ds.evaluate import main

    question = {"question": "is it red", "question_id": 1, "answers": ANSWERS}
    write_shards(tmp_path / "shards", {"test": [[clip_sample(0, questions=[question])]]})
    settings = [f"data.shards={tmp_path / 'shards'}", "data.video.frames=40", EXACT, WRITTEN]
    assert main([str(recipes["vqa"]), *settings, "--output", str(tmp_path / "output")]) == 0
    record = json.loads((tmp_path / "output" / "results.json").read_text())
    assert (record["clips"], record["frames"]) == (1, 40), "of a clip of 25"


def test_a_clip_with_fewer_frames_than_asked_for_can_be_refused(
    recipes: dict[str, Path], tmp_path: Path, capsys
) -> None:
    from aurora_ds.evaluate import main

    question = {"question": "is it red", "question_id": 1, "answers": ANSWERS}
    write_shards(tmp_path / "shards", {"test": [[clip_sample(0, questions=[question])]]})
    settings = [f"data.shards={tmp_path / 'shards'}", "data.video.frames=40", EXACT, WRITTEN]
    settings += ["data.video.short_clips=error", "--output", str(tmp_path / "output")]
    assert main([str(recipes["vqa"]), *settings]) == 2
    assert "40 frames are asked of clip clip-0, which has 25" in capsys.readouterr().err
    assert not (tmp_path / "output" / "results.json").exists()

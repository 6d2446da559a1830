"""A short run of every task, made when it is first asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from predict_media import ANSWERS, CAPTIONS, CLIPS, FAMILIES, QUESTIONS, TEST, TRAIN
from tiny_runs import pair_shards, recipe

import aurora_ds
from aurora_ds.data.convert import convert
from aurora_ds.recipe import load_config

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Shards of a family of own data: photographs or clips with captions or questions, drawn pairs with statements."""
    made: dict[str, Path] = {}

    def rows(media: list[Path], first: int) -> list[dict[str, Any]]:
        return [
            {"image": path.name, "video": path.name, "video_id": path.stem, "caption": CAPTIONS[number % 3]}
            | {
                "question": QUESTIONS[number % 3],
                "question_id": first + number,
                "answer": ANSWERS[number % 5],
            }
            for number, path in enumerate(media)
        ]

    def write(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        if family == "pairs":
            return pair_shards(folder, train=6, test=3)
        splits = {"train": CLIPS, "test": CLIPS} if "clip" in family else {"train": TRAIN, "test": TEST}
        for number, (split, media) in enumerate(splits.items()):
            listed = rows(media, 100 * number)
            (folder / f"{split}.json").write_text(json.dumps(listed))
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, listed)))
            for path in media:
                shutil.copy(path, folder)
        (folder / "answer_list.json").write_text(json.dumps(ANSWERS))
        convert(family, folder, folder / "shards")
        return folder / "shards"

    def shards(family: str) -> Path:
        if family not in made:
            made[family] = write(family)
        return made[family]

    return shards


@pytest.fixture(scope="session")
def recipes(shards, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The recipe of a task, over shards of its own and a backbone with random weights."""
    made: dict[str, Path] = {}
    options = {
        "retrieval": {"queue_size": 8, "beta": 0.5},
        "vqa": {"k_test": 3},
        "caption": {"prompt": "a photo of ", "generation": {"max_length": 9, "min_length": 4}},
        "nlvr": {},
    }

    def recipes(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(f"{task}-recipe")
            made[task] = recipe(folder, task, shards(FAMILIES[task]), **{task: options[task]})
        return made[task]

    return recipes


@pytest.fixture(scope="session")
def runs(recipes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a short run of a task."""
    made: dict[str, Path] = {}

    def runs(task: str) -> Path:
        if task not in made:
            from aurora_ds.train import run

            made[task] = tmp_path_factory.mktemp(task) / "run"
            with redirect_stdout(StringIO()):  # not what the test that comes first prints
                run(load_config(str(recipes(task)), ["evaluate.limit=1"]), made[task])
        return made[task]

    return runs


@pytest.fixture(scope="session")
def predictors(runs) -> Callable[[str], aurora_ds.Predictor]:
    made: dict[str, aurora_ds.Predictor] = {}

    def predictors(task: str) -> aurora_ds.Predictor:
        if task not in made:
            made[task] = aurora_ds.load(runs(task))
        return made[task]

    return predictors

"""Runs over a small mPLUG: trained, judged, exported and judged again, in every task that the family serves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_export_tasks import GREEDY, listed_shards
from tiny_runs import entailment_shards, pair_shards, recipe

from aurora_ds.cli import main
from aurora_ds.errors import AuroraError
from aurora_ds.export import run as export
from aurora_ds.recipe import load_config

os.environ.setdefault("DS_ACCELERATOR", "cpu")
SETTINGS = {
    "vqa": {"generation": GREEDY, "inference": "generate", "max_words": 12, "distillation": 0.4},
    "caption": {"generation": GREEDY, "max_words": 12},
    "retrieval": {"queue_size": 8, "max_words": 12},
}
FULL = {"vqa": "vqa.momentum_model=twin", "retrieval": "retrieval.momentum_model=twin"}


def a_recipe(folder: Path, head: str) -> tuple[Path, Path]:
    if head in ("nlvr", "entailment"):
        shards = (pair_shards if head == "nlvr" else entailment_shards)(folder)
    else:
        shards = listed_shards(folder, "questions" if head == "vqa" else "folder")
    sections = {head: SETTINGS.get(head, {}), "prompts": {"query_transform": False}}
    return recipe(folder, head, shards, name="mplug", **sections), shards


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.mark.parametrize(
    "head",
    [
        "vqa",
        "entailment",
        pytest.param("nlvr", marks=pytest.mark.slow),
        pytest.param("caption", marks=pytest.mark.slow),
        pytest.param("retrieval", marks=pytest.mark.slow),
    ],
)
def test_trained_judged_and_exported(tmp_path: Path, head):
    from aurora_ds.train import main as train

    path, shards = a_recipe(tmp_path, head)
    run = tmp_path / "run"
    assert train([str(path), "--output", str(run)]) == 0
    record = export(run, "merged", tmp_path / "merged")
    assert record["largest_relative_error"] < 1e-4
    again = [str(tmp_path / "merged" / "recipe.yaml"), f"data.shards={shards}"]
    assert main(["evaluate", *again, "--output", str(tmp_path / "again")]) == 0
    assert metrics(tmp_path / "again") == metrics(run)
    with pytest.raises(AuroraError, match="no model for backbone.name=mplug"):
        export(run, "transformers", tmp_path / "transformers")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["vqa", "caption", "retrieval", "nlvr", "entailment"])
def test_trained_as_a_whole(tmp_path: Path, head):
    from aurora_ds.train import main as train

    path, _ = a_recipe(tmp_path, head)
    changes = ["train.method=full", *([FULL[head]] if head in FULL else [])]
    assert train([str(path), "--output", str(tmp_path / "run"), *changes]) == 0
    assert metrics(tmp_path / "run")


@pytest.mark.slow
def test_self_critical_on_beams(tmp_path: Path):
    from aurora_ds.train import main as train

    path, _ = a_recipe(tmp_path, "caption")
    changes = [
        "caption.objective=self_critical",
        "caption.self_critical.texts=beams",
        "caption.self_critical.baseline=all",
        "caption.self_critical.samples=3",
    ]
    assert train([str(path), "--output", str(tmp_path / "run"), *changes]) == 0


def test_a_whole_model_needs_a_second_one_to_learn_from(tmp_path: Path):
    path, _ = a_recipe(tmp_path, "vqa")
    with pytest.raises(AuroraError, match=r"set vqa.momentum_model=twin"):
        load_config(str(path), ["train.method=full"])

"""Training that begins with an adapter: the values are there before the first step, for retrieval too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aurora_ds.assemble import build_task, start_from
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config


def test_a_task_begins_with_the_adapter_and_what_belongs_to_it(train, recipe: Path, tmp_path: Path) -> None:
    train(tmp_path / "first", "train.max_steps=2", "retrieval.train_temperature=true")
    saved = load_file(tmp_path / "first" / "adapter" / "adapter_model.safetensors")
    built = build_task(load_config(str(recipe), ["retrieval.train_temperature=true"]))
    before = built.task.temp.item()
    start_from(built, tmp_path / "first" / "adapter")
    for name, value in built.task.prompts.bank.named_parameters():
        assert torch.equal(value, saved[name]), name
    assert torch.equal(built.task.context.running, saved["context_running"])
    assert built.task.temp.item() != before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=nlvr", "backbone.head=nlvr", "backbone.checkpoint=null", "nlvr.max_tokens=9"],
            "task=retrieval, but this run has task=nlvr",
        ),
        (["train.method=heads"], "train.method=aurora, but this run has train.method=heads"),
    ],
)
def test_an_adapter_of_another_task_or_method_is_refused(
    train, recipe: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    train(tmp_path / "first", "train.max_steps=1")
    built = build_task(load_config(str(recipe), overrides))
    with pytest.raises(AuroraError, match=message):
        start_from(built, tmp_path / "first" / "adapter")

"""What each `train.method` trains of the mPLUG tasks: prompts and heads, heads alone, or everything that computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_grounding import BINS, VOCABULARY
from tiny_grounding import backbone as grounding_backbone
from tiny_runs import backbone

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.errors import AuroraError
from aurora_ds.plan.task import annotations
from aurora_ds.recipe import described_config

HEADED = {"retrieval", "nlvr", "entailment"}
TASKS = ["retrieval", "vqa", "caption", "nlvr", "entailment", "grounding"]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Task -> the `backbone` section of a small mPLUG."""
    folder = tmp_path_factory.mktemp("methods")
    made = {task: backbone(task, folder / task, name="mplug") for task in TASKS if task != "grounding"}
    return made | {"grounding": grounding_backbone(folder / "grounding")}


def assembled(section: dict[str, Any], method: str) -> Assembled:
    task = section["head"]
    settings: dict[str, Any] = {
        "task": task,
        "backbone": section,
        "prompts": {"rank": 4, "query_transform": False},
        "train": {"method": method},
        task: {"max_tokens": 12},
    }
    if method == "full":
        settings["retrieval"] = {"momentum_model": "twin", "max_tokens": 12}
    if task == "caption":
        settings["caption"] |= {"prompt": ""}
    if task == "grounding":
        first = len(VOCABULARY.read_text().split())
        settings["grounding"] |= {"bins": BINS, "prefix_id": first, "first_bin_id": first + 1}
    return build_task(described_config(settings, "a test"))


def trained(built: Assembled) -> set[str]:
    """Names of what a step's loss has a gradient for."""
    config, wiring = built.config, built.wiring
    texts = wiring.train_texts(built.tokenizer)
    given = [annotations(config, wiring.kind, wiring.every_annotation)] * 2
    side = config.backbone.vision.image_size
    shape = (2, 2, 3, side, side) if config.task == "nlvr" else (2, 3, side, side)
    numbers = {"media_index": torch.arange(2), "sample_index": torch.arange(2)}
    arguments = wiring.loss_arguments(0, 0, 10)
    built.task.train()
    built.task(texts(given) | numbers | {"image": torch.randn(shape)}, **arguments)["loss"].backward()
    return {name for name, each in built.task.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("task", TASKS)
def test_prompts_train_the_adapter_alone(sections, task: str) -> None:
    names = trained(assembled(sections[task], "aurora"))
    assert names and all(name.startswith("prompts.banks.default.") for name in names)
    assert any(".up_" in name for name in names)


@pytest.mark.parametrize("task", TASKS)
def test_full_trains_all_that_computes(sections, task: str) -> None:
    built = assembled(sections[task], "full")
    names = trained(built)
    own = {f"model.{name}" for name, _ in built.task.model.named_parameters()}
    assert own - names <= {"model.temp"} and built.task.prompts is None


@pytest.mark.parametrize("task", TASKS)
def test_heads_train_alone_where_there_are_any(sections, task: str) -> None:
    if task not in HEADED:
        with pytest.raises(AuroraError, match=f"the model of {task} has none: set aurora or full"):
            assembled(sections[task], "heads")
        return
    names = trained(assembled(sections[task], "heads"))
    heads = ("vision_proj", "text_proj", "itm_head") if task == "retrieval" else ("cls_head_0", "cls_head_2")
    assert names == {f"prompts.banks.default.{head}_{part}" for head in heads for part in ("weight", "bias")}

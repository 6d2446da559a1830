"""What EVE's public code does wrong and this one does not, by task, and the switch that brings it back."""

from __future__ import annotations

import pytest
import torch
from question_runs import ANSWERS
from safetensors.torch import save_file

from aurora_ds.assemble import build_task
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import new_model
from aurora_ds.config import RunConfig
from aurora_ds.recipe import load_config

TINY = [
    "backbone.checkpoint=null", "backbone.tokenizer=null", "backbone.embed_dim=8", "backbone.text.vocab_size=40",
    "backbone.vision.image_size=16", "backbone.vision.patch_size=8", "backbone.vision.width=16",
    "backbone.vision.depth=2", "backbone.vision.heads=2", "backbone.eve.top_layers=[1]", "backbone.eve.moe.experts=4",
    f"backbone.eve.answers={len(ANSWERS)}",
]  # fmt: skip
RECIPES = {"retrieval": "eve_retrieval_coco", "vqa": "eve_vqa", "nlvr": "eve_nlvr2"}


def config_of(task: str, *overrides: str) -> RunConfig:
    return load_config(RECIPES[task], [*TINY, *overrides])


def built(task: str, *overrides: str):
    """A task over random weights, large enough to tell things apart."""
    torch.manual_seed(0)
    made = build_task(config_of(task, *overrides)).task
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def texts() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6)[None] < torch.tensor([[6], [3], [4]])).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


@pytest.mark.parametrize("released", [False, True])
def test_retrieval_is_evaluated_with_the_last_norm_unless_released(released: bool) -> None:
    task = built("retrieval", f"backbone.eve.released={str(released).lower()}", "backbone.eve.top=vl").eval()
    trunk = task.model.backbone
    with torch.no_grad():
        one = trunk(image_tokens=task.model.image_tokens(images()))
        said = trunk(**texts())
        found = task.model.image_states(images())[1], task.model.text_states(*texts().values())[:, 0]
    expected = [each.before_norm if released else each.states for each in (one, said)]
    for state, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(state, wanted[:, 0])
    assert not torch.allclose(one.states, one.before_norm, atol=0.1)


@pytest.mark.parametrize("released", [False, True])
def test_the_gates_loss_counts_in_question_answering_unless_released(released: bool) -> None:
    task = built(
        "vqa", f"backbone.eve.released={str(released).lower()}", "backbone.eve.balance_weight=10"
    ).eval()
    targets = torch.rand(3, len(ANSWERS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        losses = task({"image": images(), "targets": targets, **texts()})
    assert losses["loss_auxiliary"] > 1
    counted = losses["loss"] - losses["loss_answers"]
    torch.testing.assert_close(counted, losses["loss_auxiliary"] * (not released))


def test_answers_depend_on_neither_batch_mates_nor_padding() -> None:
    task, answers = built("vqa").eval(), (torch.zeros(len(ANSWERS), 1), None)
    batch = {"image": images(), **texts()}

    def scores(part: slice, width: int) -> torch.Tensor:
        some = {
            "image": batch["image"][part],
            "input_ids": batch["input_ids"][part, :width],
            "attention_mask": batch["attention_mask"][part, :width],
        }
        return task.rank(some, answers, shown=len(ANSWERS))["probability"]

    torch.testing.assert_close(scores(slice(3), 6)[1:2], scores(slice(1, 2), 3), rtol=1e-4, atol=1e-6)
    ids = batch["input_ids"]
    whole = scores(slice(3), 6)
    batch["input_ids"] = torch.where(batch["attention_mask"].bool(), ids, 39)
    torch.testing.assert_close(scores(slice(3), 6), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", list(RECIPES))
def test_heads_come_with_the_checkpoint(task: str, tmp_path) -> None:
    """Also those of retrieval, which the public code throws away unless asked."""
    backbone = config_of(task).backbone
    torch.manual_seed(5)
    state = {name: tensor.clone() for name, tensor in new_model(backbone).state_dict().items()}
    save_file(state, tmp_path / "eve.safetensors")
    torch.manual_seed(6)
    loaded = load_backbone(backbone.model_copy(update={"checkpoint": str(tmp_path / "eve.safetensors")}))
    heads = [name for name in state if not name.startswith("backbone.")]
    assert heads and not loaded.fresh
    for name in heads:
        assert torch.equal(loaded.model.state_dict()[name], state[name]), name


def test_evaluation_draws_nothing() -> None:
    task = built("vqa").eval()
    batch = {"image": images(), **texts()}
    answers = (torch.zeros(len(ANSWERS), 1), None)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(task.rank(batch, answers)["score"])
    assert torch.equal(*found)


def test_topk_experts_are_asked() -> None:
    for topk in (1, 3):
        task = built("vqa", f"backbone.eve.moe.topk={topk}").eval()
        passed = task.model.backbone(image_tokens=task.model.image_tokens(images()))
        assert {len(routing.experts) for routing in passed.routings} == {topk}

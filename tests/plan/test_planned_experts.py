"""The planner with experts spread over ranks: what a rank holds, keeps and sends of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.backbones.experts import ExpertFeedForward
from aurora_ds.config import RunConfig
from aurora_ds.config.eve import ExpertConfig
from aurora_ds.errors import AuroraError
from aurora_ds.plan.memory import memory
from aurora_ds.plan.run import follow, make_plan, reason, record
from aurora_ds.plan.trace import Trace
from aurora_ds.plan.traffic import traffic
from aurora_ds.plan.variants import VARIANTS
from aurora_ds.runtime import process_group
from aurora_ds.runtime.expert_ranks import spread

WIDTH, EXPERTS, TOPK, ROWS, RANKS = 64, 4, 2, 2, 4
TOKENS = (32 // 16) ** 2 + 1 + 35  # patches, their class token, the longest question


def eve(expert_parallel: int, method: str = "full", precision: str = "fp32") -> RunConfig:
    """One layer of width 64, its feed-forward with four experts."""
    config = RunConfig.model_validate(
        {
            "task": "vqa",
            "backbone": {
                "name": "eve",
                "head": "vqa",
                "eve": {"top_layers": [0], "moe": {"experts": EXPERTS, "topk": TOPK}, "answers": 8},
                "vision": {"image_size": 32, "width": WIDTH, "depth": 1, "heads": 1},
                "text": {"width": WIDTH, "depth": 1, "heads": 1},
            },
        }
    )
    train = config.train
    train.method, train.precision, train.global_batch_size = method, precision, ROWS * RANKS
    train.expert_parallel = expert_parallel
    return config


def traced(expert_parallel: int, checkpointing: bool = False) -> Trace:
    return follow(eve(expert_parallel), ROWS, RANKS, checkpointing, "cuda")


@pytest.fixture(scope="module")
def whole() -> Trace:
    return traced(1)


@pytest.fixture(scope="module")
def halves() -> Trace:
    return traced(2)


def test_a_rank_holds_its_share_of_experts(whole: Trace, halves: Trace) -> None:
    expert = 2 * WIDTH * 4 * WIDTH + 4 * WIDTH + WIDTH
    assert halves.total == whole.total - 2 * expert == whole.total - halves.experts.absent
    assert halves.trained == halves.total and halves.experts.trained == 2 * expert
    assert halves.beside == whole.beside and whole.experts.sent == 0


def test_ranks_that_hold_the_same_experts_divide_their_optimizer(whole: Trace, halves: Trace) -> None:
    zero0, zero1 = VARIANTS[:2]
    own, every = (memory(trace, zero0, RANKS, "fp32", "cuda") for trace in (halves, whole))
    assert own.optimizer == 8 * halves.trained and own.weights == every.weights - 4 * halves.experts.absent
    alike = halves.trained - halves.experts.trained
    divided = memory(halves, zero1, RANKS, "fp32", "cuda").optimizer
    assert divided == 12 * (alike / RANKS + halves.experts.trained / 2)
    # all ranks together hold the moments of every number once, as they do without
    assert divided == memory(whole, zero1, RANKS, "fp32", "cuda").optimizer


def test_while_a_run_evaluates_all_experts_are_there(halves: Trace) -> None:
    held = memory(halves, VARIANTS[1], RANKS, "fp32", "cuda")
    assert held.gathered == 4 * halves.experts.absent
    assert held.peak >= held.weights + held.gathered + held.optimizer + held.workspace


def test_every_token_travels_there_and_back_twice(halves: Trace) -> None:
    rows = TOPK * ROWS * TOKENS * WIDTH * 4
    counts = EXPERTS * 8
    assert halves.experts.sent == (4 * rows + counts) / 2
    assert traced(2, True).experts.sent == (6 * rows + 2 * counts) / 2, "recomputed: there and back once more"
    assert traced(4).experts.sent == (4 * rows + counts) * 3 / 4


def test_gradients_of_experts_go_to_those_that_hold_them_too(whole: Trace, halves: Trace) -> None:
    alike = halves.trained - halves.experts.trained
    sent = traffic(halves, VARIANTS[0], RANKS, "fp32")
    assert sent.gradients == 2 * 4 * (alike * 3 / 4 + halves.experts.trained / 2)
    assert sent.gradients < traffic(whole, VARIANTS[0], RANKS, "fp32").gradients
    assert sent.tokens == halves.experts.sent and sent.total == sent.gradients + sent.task + sent.tokens
    assert traffic(traced(4), VARIANTS[0], RANKS, "fp32").gradients == 2 * 4 * alike * 3 / 4, (
        "they have no other"
    )


def test_tokens_leave_the_host_where_a_group_does(halves: Trace) -> None:
    inside, outside = (traffic(halves, VARIANTS[0], RANKS, "fp32", node=node) for node in (2, 1))
    assert inside.between_hosts == 0 < outside.between_hosts == halves.experts.sent


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_settings_that_a_run_refuses_are_no_choice(
    monkeypatch: pytest.MonkeyPatch, repository: Path, precision: str
) -> None:
    monkeypatch.setattr(process_group, "world_size", lambda: RANKS)
    config = eve(2, precision=precision)
    layer, refused = ExpertFeedForward(4, 8, ExpertConfig(experts=EXPERTS)), set()
    monkeypatch.setattr("aurora_ds.runtime.expert_ranks.ExpertRanks", lambda *_: None)
    for variant in VARIANTS:
        try:
            spread(layer, config.train, json.loads((repository / variant.file).read_text()))
        except AuroraError:
            refused.add(variant.name)
    plan = make_plan(config, gpus=RANKS, gpu_bytes=80e9)
    compared = {row.variant.name for row in plan.rows}
    assert {row.variant.name for row in plan.rows if row.obstacle} == refused & compared
    chosen = plan.recommended
    assert chosen is not None and chosen.variant.name == ("zero0" if precision == "fp32" else "zero1")
    assert "MB tokens to their experts" in reason(plan) and "while the run evaluates" in reason(plan)
    assert record(plan)["expert_parallel"] == 2 and record(plan)["settings"][0]["sent_per_step"]["tokens"] > 0


def test_experts_that_cannot_be_shared_equally_are_refused() -> None:
    config = eve(3)
    config.train.global_batch_size = 6
    with pytest.raises(AuroraError, match="cannot be shared equally by 3 ranks"):
        make_plan(config, gpus=3, gpu_bytes=80e9)
    with pytest.raises(AuroraError, match="4 ranks are no multiple of it"):
        make_plan(eve(3), gpus=4, gpu_bytes=80e9)

"""Every recipe can be planned, and its figures add up. One of each backbone and task by default, the others are slow.

Depth 1, so that a trace takes a second; the whole model is built, and its size is what its name says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import aurora_ds
from aurora_ds.config import RunConfig
from aurora_ds.plan.memory import BYTES, memory
from aurora_ds.plan.run import make_plan, reason
from aurora_ds.plan.task import build
from aurora_ds.plan.trace import Shapes
from aurora_ds.plan.traffic import traffic
from aurora_ds.recipe import load_config

RECIPES = sorted(path.stem for path in (Path(aurora_ds.__file__).parent / "recipes").glob("*.yaml"))
RANKS = 2
# millions of parameters, all of them: of the published models, our heads and momentum copies' originals
SIZES = {"retrieval_coco": 224, "retrieval_coco_large": 447, "vqa": 361, "grounding_refcoco": 565}


def shallow(recipe: str) -> RunConfig:
    """The recipe with one layer of everything and a row or two for a rank."""
    config = load_config(recipe, [])
    backbone = config.backbone
    backbone.vision.depth = backbone.text.depth = 1
    if backbone.name == "mplug":
        backbone.mplug.text_layers = backbone.mplug.fusion_layers = backbone.mplug.decoder_layers = 1
    if backbone.name == "eve":
        backbone.eve.top_layers, backbone.eve.moe.experts = [0], 4
    config.train.global_batch_size = 2 * RANKS * config.train.accumulation
    return config


def _cases() -> list:
    """Recipes; those whose backbone and task were there before are slow."""
    seen, cases = set(), []
    for recipe in RECIPES:
        config = load_config(recipe, [])
        kind = config.backbone.name, config.task
        cases.append(pytest.param(recipe, marks=[pytest.mark.slow] if kind in seen else []))
        seen.add(kind)
    return cases


@pytest.mark.parametrize("recipe", _cases())
def test_a_recipe_is_planned_and_its_figures_add_up(recipe: str) -> None:
    config = shallow(recipe)
    plan = make_plan(config, gpus=RANKS, gpu_bytes=141e9)
    assert plan.recommended is not None and "Take --deepspeed-config" in reason(plan)
    size = BYTES[config.train.precision]
    for row in plan.rows:
        trace, variant, held = plan.traces[row.checkpointing], row.variant, row.memory
        assert held.peak >= held.weights + held.optimizer + held.beside + held.workspace
        assert (
            held.peak
            <= sum(
                (held.weights, held.optimizer, held.beside, held.workspace, held.activations, held.gathered)
            )
            + 3 * held.gradients
            + 12 * trace.trained
        ), "no part is counted that is not there"
        if variant.stage < 3:
            assert (
                held.weights == size * trace.total and held.gathered == 0 and row.traffic.between_hosts == 0
            )
        if variant.optimizer == "gpu":
            assert held.optimizer <= 12 * trace.trained and held.host == held.disk == 0
        else:
            assert held.optimizer == 0 and held.host + held.disk >= 12 * trace.trained / RANKS
        assert row.traffic.total == row.traffic.gradients + row.traffic.weights + row.traffic.task
    kept, again = plan.traces[False], plan.traces[True]
    assert kept.total == again.total and kept.trained == again.trained and again.forward <= kept.forward


@pytest.mark.parametrize(("recipe", "millions"), SIZES.items())
def test_the_whole_model_has_its_size(recipe: str, millions: int) -> None:
    task = build(load_config(recipe, []), torch.bfloat16, Shapes()).task
    assert sum(p.numel() for p in task.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert all(p.is_meta for p in task.parameters())


def test_no_rank_holds_all_weights_of_a_large_model_at_stage_3() -> None:
    from aurora_ds.plan.run import follow
    from aurora_ds.plan.variants import VARIANTS

    trace = follow(shallow("grounding_refcoco"), 1, 8, False, "cuda")
    held = {variant.name: memory(trace, variant, 8, "bf16", "cuda") for variant in VARIANTS[:5]}
    assert held["zero3"].weights < 0.25 * held["zero0"].weights
    assert held["zero1"].optimizer == held["zero0"].optimizer / 8 == held["zero3"].optimizer
    sent = {variant.name: traffic(trace, variant, 8, "bf16") for variant in VARIANTS[:5]}
    assert sent["zero3"].weights > sent["zero2"].weights == sent["zero1"].weights > sent["zero0"].weights == 0
    assert sent["zero3"].gradients == sent["zero0"].gradients / 2

"""`aurora-ds plan`: what a recipe needs per GPU and sends per step under every DeepSpeed setting, and which to take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.plan.memory import Memory, memory
from aurora_ds.plan.task import batch, build, placed
from aurora_ds.plan.trace import Shapes, Trace, trace_step
from aurora_ds.plan.traffic import Traffic, traffic
from aurora_ds.plan.variants import VARIANTS, Variant
from aurora_ds.recipe import load_config

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESERVE = 0.92  # of a GPU's memory: the allocator's fragments and what others hold
GB = 1e9
# scripts/bench/results/memory.md; the test of it is tests/plan/test_against_processes.py
CHECKED = (
    "16 of 16 runs on CPUs (stages 0 to 3, fp32, bf16) took within 15 % of this memory. On GPUs, with offload or "
    "ZeRO++ figures are computed and were not measured: leave room."
)
_WIDTH = 150  # columns; a narrower table would cut the settings' names off


@dataclass(frozen=True)
class Row:
    """One setting, with activation checkpointing or without. `obstacle`: why it cannot run, or empty."""

    variant: Variant
    checkpointing: bool
    memory: Memory
    traffic: Traffic
    obstacle: str = ""

    def fits(self, gpu_bytes: float) -> bool:
        return not self.obstacle and self.memory.peak <= RESERVE * gpu_bytes


@dataclass(frozen=True)
class Plan:
    """Every setting for one run. `micro_batch`: samples of a rank at once."""

    rows: tuple[Row, ...]
    traces: dict[bool, Trace]  # by activation checkpointing
    config: RunConfig
    ranks: int
    micro_batch: int
    gpu_bytes: float

    @property
    def recommended(self) -> Row | None:
        """The first that fits: no checkpointing before checkpointing, and in either the order of VARIANTS."""
        return next((row for row in self.rows if row.fits(self.gpu_bytes)), None)


def make_plan(
    config: RunConfig, gpus: int, gpu_bytes: float, nodes: int = 1, device: Literal["cuda", "cpu"] = "cuda"
) -> Plan:
    """The plan of a run on `nodes` hosts with `gpus` GPUs each. Raises AuroraError for a recipe that cannot run so."""
    ranks, train = gpus * nodes, config.train
    per_step = ranks * train.accumulation
    if train.global_batch_size % per_step:
        raise AuroraError(
            f"train.global_batch_size is {train.global_batch_size}, which {ranks} ranks with train.accumulation "
            f"{train.accumulation} cannot share equally. Plan with a multiple of {per_step}, or other GPUs."
        )
    rows, traces = [], {}
    micro_batch = train.global_batch_size // per_step
    followed, rows_followed = _as_likelihood(config, micro_batch)
    for checkpointing in (False, True):
        traces[checkpointing] = trace = follow(followed, rows_followed, ranks, checkpointing, device)
        for variant in VARIANTS:
            if variant.hpz and nodes == 1:
                continue  # there a second copy within the host saves nothing
            rows.append(
                Row(
                    variant,
                    checkpointing,
                    memory(trace, variant, ranks, train.precision, device, train.accumulation, gpus),
                    traffic(trace, variant, ranks, train.precision, train.accumulation, gpus),
                    _obstacle(config, variant),
                )
            )
    return Plan(tuple(rows), traces, config, ranks, micro_batch, gpu_bytes)


def _as_likelihood(config: RunConfig, micro_batch: int) -> tuple[RunConfig, int]:
    """(recipe to follow, its rows of a rank). Nobody knows how long the captions of a self-critical step will be; more
    than it needs is a step that learns as many captions of the greatest length, each with its own image."""
    if not _is_self_critical(config):
        return config, micro_batch
    config = config.model_copy(deep=True)
    config.caption.objective = "likelihood"
    return config, micro_batch * config.caption.self_critical.samples


def _is_self_critical(config: RunConfig) -> bool:
    return config.task == "caption" and config.caption.objective == "self_critical"


def follow(config: RunConfig, micro_batch: int, ranks: int, checkpointing: bool, device: str) -> Trace:
    """One traced step of `config`."""
    config = config.model_copy(deep=True)
    config.backbone.activation_checkpointing = checkpointing
    shapes, dtype = Shapes(), _DTYPES[config.train.precision]
    assembled = build(config, dtype, shapes)
    # what the loader gave is held while the step goes on; a GPU has it in its host's memory
    with shapes if device == "cpu" else nullcontext():
        loaded = batch(assembled, micro_batch)
    return trace_step(assembled, lambda: placed(loaded, dtype, device), shapes, ranks, device)


def _obstacle(config: RunConfig, variant: Variant) -> str:
    if variant.stage == 0 and config.train.precision == "fp16":
        return "fp16 needs a stage of 1 or more"
    if variant.stage == 3 and config.task == "retrieval" and config.retrieval.momentum_model == "twin":
        return "a momentum twin needs whole weights"
    if config.train.expert_parallel > 1:
        if variant.stage == 3:
            return "experts on other ranks need stages 0 to 2"
        if variant.stage == 0 and config.train.precision != "fp32":
            return f"experts on other ranks in {config.train.precision} need stage 1 or 2"
        if variant.optimizer != "gpu":
            return "experts on other ranks and offload do not go together"
    return ""


def reason(plan: Plan) -> str:
    """The recommendation in a sentence. Raises AuroraError when nothing fits."""
    chosen, room = plan.recommended, plan.gpu_bytes * RESERVE
    if chosen is None:
        able = [row for row in plan.rows if not row.obstacle]
        least = min(able, key=lambda row: row.memory.peak)
        raise AuroraError(
            f"Nothing fits into {plan.gpu_bytes / GB:.0f} GB: the least is {least.memory.peak / GB:.1f} GB, with "
            f"{least.variant.file}{' and activation checkpointing' if least.checkpointing else ''}, of which "
            f"{least.memory.activations / GB:.1f} GB are activations of {plan.micro_batch} samples. Raise "
            "train.accumulation (the same step in smaller parts), use train.precision=bf16, fewer frames or smaller "
            "images, or more GPUs."
        )
    words = [f"needs {chosen.memory.peak / GB:.1f} of {room / GB:.1f} GB"]
    if chosen.variant.stage == 0 and plan.config.train.method != "full":
        share = plan.traces[False].trained
        words.append(
            f"gradients and optimizer are of {share:,} numbers only, so that cutting them saves nothing"
        )
    simpler = plan.rows[: plan.rows.index(chosen)]
    if simpler and all(not row.fits(plan.gpu_bytes) for row in simpler):
        closest = min(simpler, key=lambda row: row.memory.peak if not row.obstacle else float("inf"))
        if not closest.obstacle:
            words.append(f"the simpler ones need {closest.memory.peak / GB:.1f} GB or more")
    sent = chosen.traffic
    words.append(
        f"a rank sends {sent.total / 1e6:.1f} MB a step, {sent.gradients / 1e6:.1f} MB of it gradients"
        + (f", {sent.tokens / 1e6:.1f} MB tokens to their experts" if sent.tokens else "")
    )
    absent = plan.traces[False].experts.absent
    if absent:
        words.append(
            f"{absent:,} numbers of experts are on other ranks, and here too while the run evaluates"
        )
    if _is_self_critical(plan.config):
        words.append(
            f"planned as {plan.config.caption.self_critical.samples} captions of the greatest length for each image, "
            "which is more than a self-critical step needs"
        )
    settings = " backbone.activation_checkpointing=true" if chosen.checkpointing else ""
    return f"Take --deepspeed-config {chosen.variant.file}{settings}: {'; '.join(words)}."


def record(plan: Plan) -> dict[str, Any]:
    """The plan for results.json."""
    trace, chosen = plan.traces[False], plan.recommended
    return {
        "task": plan.config.task,
        "method": plan.config.train.method,
        "precision": plan.config.train.precision,
        "ranks": plan.ranks,
        "micro_batch": plan.micro_batch,
        "expert_parallel": plan.config.train.expert_parallel,
        "gpu_memory": plan.gpu_bytes,
        "parameters": trace.total,
        "trained": trace.trained,
        "recommended": None
        if chosen is None
        else {"deepspeed_config": chosen.variant.file, "activation_checkpointing": chosen.checkpointing},
        "settings": [
            {
                "deepspeed_config": row.variant.file,
                "activation_checkpointing": row.checkpointing,
                "fits": row.fits(plan.gpu_bytes),
                "obstacle": row.obstacle,
                "memory": row.memory.record(),
                "sent_per_step": row.traffic.record(),
            }
            for row in plan.rows
        ],
    }


def print_plan(plan: Plan) -> None:
    """One table: a row for each setting; gigabytes, and megabytes sent a step."""
    from rich.console import Console
    from rich.table import Table

    config, trace = plan.config, plan.traces[False]
    title = (
        f"{config.task}, {config.train.method}, {config.train.precision}: {trace.trained:,} of {trace.total:,} numbers "
        f"trained; {plan.ranks} ranks, {plan.micro_batch} samples each"
        + (f", experts over {config.train.expert_parallel}" if config.train.expert_parallel > 1 else "")
    )
    table = Table(title=title, title_justify="left", title_style="")
    for heading in ("setting", "recompute", "weights", "optimizer", "beside", "activations", "gathered"):
        table.add_column(heading, justify="left" if heading in ("setting", "recompute") else "right")
    for heading in ("GB a GPU", "host GB", "disk GB", "MB sent a step", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for row in plan.rows:
        held = row.memory
        parts = (held.weights, held.optimizer, held.beside, held.activations, held.gathered, held.peak)
        verdict = row.obstacle or ("fits" if row.fits(plan.gpu_bytes) else "too large")
        table.add_row(
            row.variant.name,
            "yes" if row.checkpointing else "no",
            *(f"{value / GB:.2f}" for value in parts),
            *(f"{value / GB:.2f}" if value else "" for value in (held.host, held.disk)),
            f"{row.traffic.total / 1e6:,.1f}",
            verdict,
        )
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)
    console.print(CHECKED)


def run(
    recipe: str, overrides: Sequence[str], gpus: int, gpu_memory: float, nodes: int, output: Path | None
) -> int:
    """The command. `gpu_memory` in 10^9 bytes. Raises AuroraError, also when nothing fits."""
    plan = make_plan(load_config(recipe, list(overrides)), gpus, gpu_memory * GB, nodes)
    print_plan(plan)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(record(plan), indent=1) + "\n", encoding="utf-8")
    print(reason(plan))
    return 0

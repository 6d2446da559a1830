"""Recorded rules of EVE that need no model: text, masks, positions, the optimizer's steps and learning rates."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from aurora_ds.backbones.published import resize_positions
from aurora_ds.config import TrainConfig
from aurora_ds.data.answer_classes import answer_score
from aurora_ds.data.patch_masks import block_mask, random_mask
from aurora_ds.data.text import eve_caption, eve_question
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.groups import groups_of
from aurora_ds.runtime.schedule import learning_rate
from aurora_ds.verify.golden import Check

MASK = re.compile(
    r"(?P<kind>A random|[AB] blockwise) (?P<rows>\d+)x(?P<columns>\d+) n=(?P<count>[\d.]+)(.* min (?P<least>\d+))?"
)
DRAWS = 2000
NO_DECAY = ["bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight"]
HEADS = ["itc_", "itm_head", "output.", "attn1.", "attn2.", "fc.0", "attn_pool."]
DECAY_FIRST = (
    "torch's AdamW decays before the update, the published one after it: by `adamw.difference` at most"
)


def checks_of(folder: Path) -> list[Check] | None:
    """All checks of a folder with recorded rules; None for a folder of another kind.

    Raises AuroraError when its record cannot be read."""
    if (folder / "facts.json").is_file():
        record = _record(folder / "facts.json")
        return _masks(record) if "stats" in record else _texts(record)
    kinds = {"posinterp": _positions, "adamw": _optimizer}
    record = _record(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = kinds.get(record.get("kind"))
    return None if kind is None else kind(folder, record)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AuroraError(f"{path} cannot be read: {error}.") from error
    if not isinstance(record, dict):
        raise AuroraError(f"{path} holds a {type(record).__name__}, not an object.")
    return record


def _exact(name: str, same: bool, note: str = "") -> Check:
    return Check(name, float(not same), float(not same), "exact", same, note)


def _close(name: str, value: float, expected: float, tolerance: float) -> Check:
    difference = abs(float(value) - expected)
    return Check(
        name, difference, difference / (abs(expected) or 1.0), f"{tolerance:g}", difference <= tolerance
    )


def _texts(record: dict[str, Any]) -> list[Check]:
    rules = {"pre_caption": eve_caption, "pre_question": eve_question}
    return [
        _exact(f"{each['fn']} {number}", rules[each["fn"]](each["text"], each["max_words"]) == each["out"])
        for number, each in enumerate(record["examples"])
    ] + [
        _close(f"answer score {count}", answer_score(int(count) / 10), score, 1e-9)
        for count, score in record["vqa_count_to_score"].items()
    ]


def _masks(record: dict[str, Any]) -> list[Check]:
    """Examples bit for bit; means of 2000 draws within their spread."""
    checks = []
    for number, each in enumerate(record["examples"]):
        found = _mask(each["config"], random.Random(each["python_random_seed"]), each["numpy_seed"])
        checks.append(_exact(f"{each['config']} {number}", bool((found == np.array(each["mask"])).all())))
    for each in record["stats"]:
        generator, numbers = random.Random(0), np.random.RandomState(0)
        masks = np.stack([_mask(each["config"], generator, numbers) for _ in range(DRAWS)])
        counts, frequency = masks.sum((1, 2)), masks.mean(0)
        # 5 standard errors of the difference of two means of 2000 draws; a quarter of a patch where all are equal
        spread = 5 * each["count_std"] * (2 / DRAWS) ** 0.5
        checks += [
            _close(f"{each['config']}: mean", counts.mean(), each["count_mean"], max(spread, 0.25)),
            _close(f"{each['config']}: most", counts.max(), each["count_max"], 0),
            _close(f"{each['config']}: corner", frequency[0, 0], each["corner_freq"], 0.08),
        ]
    return checks


def _mask(described: str, generator: random.Random, numbers: int | np.random.RandomState) -> np.ndarray:
    match = MASK.match(described)
    if match is None:
        raise AuroraError(f"facts.json records a mask '{described}', which is none that this release draws.")
    grid, count = (int(match["rows"]), int(match["columns"])), int(float(match["count"]))
    if match["kind"] == "A random":
        state = np.random.RandomState(numbers) if isinstance(numbers, int) else numbers
        return random_mask(grid, count, state)
    return block_mask(grid, count, generator, int(match["least"] or 4))


def _positions(folder: Path, record: dict[str, Any]) -> list[Check]:
    inputs, outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    checks = []
    for name in record["cases"]:
        found = resize_positions(inputs[name][None], len(outputs[name]) - 1)[0]
        checks.append(_close(name, (found - outputs[name]).abs().max().item(), 0.0, 1e-5))
    return checks


def _optimizer(folder: Path, record: dict[str, Any]) -> list[Check]:
    inputs, outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    parameter = torch.nn.Parameter(inputs["param0"].clone())
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=record["lr"],
        betas=tuple(record["betas"]),
        eps=record["eps"],
        weight_decay=record["weight_decay"],
    )
    checks = []
    for step in range(1, len(outputs) + 1):
        parameter.grad = inputs[f"grad{step}"].clone()
        optimizer.step()
        checks.append(Check(f"param_after_step{step}", 0.0, 0.0, "-", True, DECAY_FIRST))
    apart = (parameter.detach() - outputs[f"param_after_step{len(outputs)}"]).abs().max().item()
    recorded = record["max_abs_diff_vs_torch_AdamW_after_4_steps"]
    checks.append(_close("adamw.difference", apart, recorded, 1e-7))
    return checks + _groups(folder) + _schedules(folder)


def _groups(folder: Path) -> list[Check]:
    """Every parameter's learning rate and weight decay."""
    checks = []
    for model, record in json.loads((folder / "groups.json").read_text(encoding="utf-8")).items():
        recorded = {
            name: (group["lr"], group["weight_decay"])
            for group in record["groups"]
            for name in group["params"]
        }
        config = TrainConfig(
            lr=record["hyper"]["lr"],
            weight_decay=0.01,
            no_decay=NO_DECAY,
            lr_multiple=10,
            lr_multiple_of=HEADS,
        )
        for group in groups_of(recorded, config):
            for name in group.names:
                lr, decay = recorded[name]
                same = abs(group.lr - lr) <= 1e-9 * lr and group.weight_decay == decay
                checks.append(_exact(f"{model}: {name}", same))
    return checks


def _schedules(folder: Path) -> list[Check]:
    checks = []
    for record in json.loads((folder / "schedules.json").read_text(encoding="utf-8")):
        steps, warmup = record["epochs"] * record["step_per_epoch"], record["num_warmup_steps"]
        config = TrainConfig(
            lr=1.0,
            schedule={"linear": "linear", "cos": "cosine"}[record["sched"]],
            warmup_steps=int(warmup * steps) if isinstance(warmup, float) else warmup,
        )
        for step, multiplier in record["multiplier"].items():
            found = learning_rate(int(step), config, steps, record["step_per_epoch"])
            checks.append(_close(f"{record['sched']} {steps} {step}", found, multiplier, 1e-9))
    return checks

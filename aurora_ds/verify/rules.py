"""Recorded rules that need no model: text normalisation, learning rates, the ramp of alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aurora_ds.data.text import pre_caption, pre_question
from aurora_ds.runtime.schedule import cosine_lr_schedule, itc_alpha, step_lr_schedule, warmup_lr_schedule
from aurora_ds.verify.golden import Check


def text_rules(record: dict[str, Any]) -> list[Check]:
    """Caption and question normalisation, string for string."""
    rules = {"pre_caption": pre_caption, "pre_question": pre_question}
    checks = []
    for number, vector in enumerate(record["vectors"]):
        same = rules[vector["fn"]](vector["in"], vector["max_words"]) == vector["out"]
        checks.append(Check(f"{vector['fn']} {number}", float(not same), float(not same), "exact", same))
    return checks


def schedules(record: dict[str, Any]) -> list[Check]:
    """Learning rates and the ramp of alpha."""
    functions: dict[str, Callable[..., float]] = {
        "cosine_lr_schedule": cosine_lr_schedule,
        "warmup_lr_schedule": warmup_lr_schedule,
        "step_lr_schedule": step_lr_schedule,
    }
    rows = [
        (name, {k: v for k, v in row.items() if k != "lr"}, row["lr"])
        for name in functions
        for row in record[name]
    ]
    rows += [
        ("itc_alpha", {k: v for k, v in row.items() if k != "value"}, row["value"])
        for row in record["itc_alpha"]["values"]
    ]
    functions["itc_alpha"] = itc_alpha
    checks = []
    for name, arguments, expected in rows:
        difference = abs(functions[name](**arguments) - expected)
        relative = difference / abs(expected) if expected else difference
        checks.append(
            Check(
                f"{name}({', '.join(f'{k}={v}' for k, v in arguments.items())})",
                difference,
                relative,
                "1e-9 rel",
                relative <= 1e-9,
            )
        )
    return checks

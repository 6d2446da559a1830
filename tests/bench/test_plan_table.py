"""The table of ds_configs/README.md is what scripts/bench/plan_table.py makes of its results, no more and no less."""

from __future__ import annotations

import plan_table


def test_the_table_is_that_of_the_results() -> None:
    rows = plan_table.stored()
    assert [(row["recipe"], row["what"], row["method"]) for row in rows] == list(plan_table.RUNS)
    assert plan_table.section(rows) in plan_table.README.read_text(encoding="utf-8")


def test_a_cell_names_the_first_setting_that_fits() -> None:
    settings = [
        {"name": "zero0", "checkpointing": False, "peak": None},
        {"name": "zero1", "checkpointing": False, "peak": 23e9},
        {"name": "zero1", "checkpointing": True, "peak": 9e9},
    ]
    chosen = [plan_table._choice(settings, memory * 1e9) for memory in plan_table.MEMORIES]
    assert chosen == ["more accumulation", "zero1, recompute", "zero1, recompute", "zero1", "zero1"]

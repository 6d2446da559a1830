"""The table of ds_configs/README.md: which setting a model of some size needs on a GPU of some memory.

From the planner, for 8 GPUs, bf16. What it says of every setting is in results/plan_table.json, and the table between
the two marks of the README is made of that. Rows are written one by one; --missing plans those alone that the results
do not have, --again none, and only the table is written.

    python scripts/bench/plan_table.py [--missing | --again]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from measurement import HERE, REPOSITORY, markdown_table

README, RESULTS = REPOSITORY / "ds_configs" / "README.md", HERE / "results" / "plan_table.json"
BEGIN, END = "<!-- plan table: scripts/bench/plan_table.py -->", "<!-- end of plan table -->"
MEMORIES = (8, 16, 24, 40, 80)
RUNS = (
    ("retrieval_coco", "ViT-B, 384 px", "aurora"),
    ("retrieval_coco_large", "ViT-L, 384 px", "aurora"),
    ("retrieval_msrvtt_9k", "ViT-B, clips", "aurora"),
    ("vqa", "ViT-B, 480 px", "aurora"),
    ("vqa", "ViT-B, 480 px", "full"),
    ("grounding_refcoco", "mPLUG large, 336 px", "full"),
    ("eve_vqa_large", "EVE large, 480 px", "full"),
)


def planned(recipe: str, what: str, method: str) -> dict[str, Any]:
    """A row of the results: peaks in bytes of every setting, None where it cannot run, in the order of preference."""
    from aurora_ds.plan.run import make_plan
    from aurora_ds.recipe import load_config

    config = load_config(recipe, ["train.precision=bf16", f"train.method={method}"])
    plan = make_plan(config, gpus=8, gpu_bytes=0.0)
    kept = plan.traces[False]
    return {
        "recipe": recipe,
        "what": what,
        "method": method,
        "parameters": kept.total,
        "trained": kept.trained,
        "micro_batch": plan.micro_batch,
        "settings": [
            {
                "name": row.variant.name,
                "checkpointing": row.checkpointing,
                "peak": None if row.obstacle else round(row.memory.peak),
            }
            for row in plan.rows
        ],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    needs = [
        next(each["peak"] for each in row["settings"] if each["checkpointing"] == again) / 1e9
        for again in (False, True)
    ]
    return [
        f"`{row['recipe']}`, {row['what']}, {row['method']}",
        f"{row['parameters'] / 1e6:.0f} M, {row['trained'] / 1e6:.1f} M",
        str(row["micro_batch"]),
        " / ".join(f"{need:.1f}" for need in needs),
        *(_choice(row["settings"], memory * 1e9) for memory in MEMORIES),
    ]


def _choice(settings: list[dict[str, Any]], gpu_bytes: float) -> str:
    from aurora_ds.plan.run import RESERVE

    for each in settings:
        if each["peak"] is not None and each["peak"] <= RESERVE * gpu_bytes:
            return each["name"] + (", recompute" if each["checkpointing"] else "")
    return "more accumulation"


def section(rows: list[dict[str, Any]]) -> str:
    """What stands between the marks, with them."""
    head = ["recipe, model, method", "parameters, trained", "rows a GPU", "GB at zero0, kept / recomputed"]
    table = markdown_table([*head, *(f"{memory} GB" for memory in MEMORIES)], [cells(row) for row in rows])
    return f"{BEGIN}\n8 GPUs, bf16, the recipe's batch; written by `scripts/bench/plan_table.py`.\n\n{table}\n{END}"


def stored() -> list[dict[str, Any]]:
    """The rows of the results, in the order of RUNS."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    found = {(row["recipe"], row["what"], row["method"]): row for row in rows}
    return [found[run] for run in RUNS if run in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--missing", action="store_true", help="plan only what the results do not have")
    which.add_argument("--again", action="store_true", help="plan nothing, write the table")
    arguments = parser.parse_args()
    before = {(row["recipe"], row["what"], row["method"]): row for row in stored()}
    for run in () if arguments.again else RUNS:
        if arguments.missing and run in before:
            continue
        before[run] = planned(*run)
        print(cells(before[run]), flush=True)
        rows = [before[each] for each in RUNS if each in before]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    start, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(start + section(stored()) + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()

"""The table of ds_configs/README.md: which setting a model of some size needs on a GPU of some memory.

From the planner, for 8 GPUs, bf16; written between the two marks of the README.

    python scripts/bench/plan_table.py [--print]
"""

from __future__ import annotations

import argparse
from typing import Any

from measurement import REPOSITORY, markdown_table

README = REPOSITORY / "ds_configs" / "README.md"
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


def rows() -> list[list[str]]:
    from aurora_ds.plan.run import make_plan
    from aurora_ds.recipe import load_config

    found = []
    for recipe, what, method in RUNS:
        config = load_config(recipe, ["train.precision=bf16", f"train.method={method}"])
        plan = make_plan(config, gpus=8, gpu_bytes=0.0)
        cells = [_choice(plan, memory * 1e9) for memory in MEMORIES]
        kept = plan.traces[False]
        need = {
            c: next(r for r in plan.rows if r.checkpointing == c).memory.peak / 1e9 for c in (False, True)
        }
        found.append(
            [
                f"`{recipe}`, {what}, {method}",
                f"{kept.total / 1e6:.0f} M, {kept.trained / 1e6:.1f} M",
                str(plan.micro_batch),
                f"{need[False]:.1f} / {need[True]:.1f}",
                *cells,
            ]
        )
        print(found[-1], flush=True)
    return found


def _choice(plan: Any, gpu_bytes: float) -> str:
    for row in plan.rows:
        if row.fits(gpu_bytes):
            return row.variant.name + (", recompute" if row.checkpointing else "")
    return "more accumulation"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="do not write the README")
    arguments = parser.parse_args()
    head = ["recipe, model, method", "parameters, trained", "rows a GPU", "GB at zero0, kept / recomputed"]
    table = markdown_table([*head, *(f"{memory} GB" for memory in MEMORIES)], rows())
    text = f"{BEGIN}\n8 GPUs, bf16, the recipe's batch; written by `scripts/bench/plan_table.py`.\n\n{table}\n{END}"
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    if arguments.print:
        print(text)
    else:
        README.write_text(before + text + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()

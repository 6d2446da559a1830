"""The Triton kernels, compiled for GPUs that need not be here: registers, spills, shared memory, and what they cost.

For every site shape of BLIP-base and BLIP-large, both forms, rank 32 and 64, bf16: each kernel is compiled for sm_80,
sm_90, sm_100 and gfx942 (Triton carries the assemblers). The cost model counts operations and bytes and gives the least
time at the rates given; it measures nothing.

    python scripts/bench/kernel_report.py [--quick] [--targets sm_90 …] [--rows 18464] [--tera-operations 790]
                                          [--gigabytes 4800]

Ends with status 1 when a kernel spills registers or needs more shared memory than the device has.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import kernel_costs
from measurement import facts_line, machine_facts, markdown_table, write_results

RANKS, FORMS = (32, 64), ("tucker", "cp")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def needs(targets: list[str], quick: bool) -> list[dict[str, Any]]:
    """One row per distinct compiled kernel: what it makes, for which site first, and what it needs."""
    import torch

    from aurora_ds.kernels import Plan
    from aurora_ds.kernels.gpu import ahead_of_time as ahead

    rows: list[dict[str, Any]] = []
    for target in targets:
        launches = {}
        for size, shapes in kernel_costs.SHAPES.items():
            for shape in shapes[:1] if quick else shapes:
                for form in FORMS:
                    for rank in RANKS[-1:] if quick else RANKS:
                        site = ahead.SiteShape(
                            shape.d_out, shape.d_in, shape.outputs, shape.inputs, rank, form
                        )
                        for part, launch in ahead.launches_of_projection(site, target).items():
                            launches[f"{part}, {shape.name}, {form}, rank {rank}"] = launch
            if quick:
                continue
            wide = 768 if size == "base" else 1024
            for rank in RANKS:
                made = ahead.launches_of_norm(wide, rank, torch.bfloat16, target)
                launches |= {f"{part}, norm {wide}, rank {rank}": each for part, each in made.items()}
                plan = Plan((wide, 768, wide), (3, 2, 1), (1, 1, 4), rank)
                for part, launch in ahead.launches_of_bank(plan, target, torch.bfloat16).items():
                    launches[f"{part}, all sites of {size}, rank {rank}"] = launch
        for name, launch in ahead.distinct(launches).items():
            need = ahead.compile_for(launch, target)
            rows.append(
                {
                    "target": target,
                    "makes": name,
                    "kernel": need.kernel,
                    "registers": need.registers,
                    "spilled": need.spilled,
                    "shared": need.shared,
                    "shared_limit": ahead.SHARED_LIMIT[target],
                    "matrix_instructions": need.matrix_instructions,
                }
            )
            print(f"{target} {name}: {need.registers} registers, {need.shared} bytes", flush=True)
    return rows


def costs(rows: int, operations: float, transfer: float) -> list[dict[str, Any]]:
    """The cost model per shape and rank, in bf16; rates per second."""
    found = []
    for shapes in kernel_costs.SHAPES.values():
        for shape in shapes:
            alone = kernel_costs.frozen(shape, rows, 2)
            for rank in RANKS:
                ours, twin = (
                    make(shape, rank, rows, 2) for make in (kernel_costs.prompted, kernel_costs.twin)
                )
                found.append(
                    {
                        "shape": shape.name,
                        "rank": rank,
                        "operations_ratio": kernel_costs.floor(shape, rank),
                        "tera_operations": ours.operations / 1e12,
                        "megabytes": ours.bytes / 1e6,
                        "twin_megabytes": twin.bytes / 1e6,
                        "frozen_microseconds": 1e6 * alone.seconds(operations, transfer),
                        "floor_microseconds": 1e6 * ours.seconds(operations, transfer),
                        "transfer_microseconds": 1e6 * ours.bytes / transfer,
                    }
                )
    return found


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    summary, setting = [], record["setting"]
    for target in setting["targets"]:
        rows = [row for row in record["kernels"] if row["target"] == target]
        for kernel in sorted({row["kernel"] for row in rows}):
            own = [row for row in rows if row["kernel"] == kernel]
            worst = max(own, key=lambda row: row["shared"])
            instructions = sorted({name for row in own for name in row["matrix_instructions"]})
            summary.append(
                [
                    target,
                    kernel.removesuffix("_kernel"),
                    str(len(own)),
                    f"{min(row['registers'] for row in own)}–{max(row['registers'] for row in own)}",
                    str(sum(row["spilled"] > 0 for row in own)),
                    f"{worst['shared'] / 1024:.0f} of {worst['shared_limit'] / 1024:.0f}",
                    ", ".join(instructions),
                ]
            )
    table = markdown_table(
        ["target", "kernel", "variants", "registers", "that spill", "shared KB, most", "matrix instructions"],
        summary,
    )
    model = markdown_table(
        [
            "shape",
            "rank",
            "operations over frozen",
            "TFLOP",
            "MB",
            "MB, twin",
            "frozen µs",
            "floor µs",
            "moving µs",
        ],
        [
            [
                row["shape"],
                str(row["rank"]),
                f"{row['operations_ratio']:.3f}",
                f"{row['tera_operations']:.3f}",
                f"{row['megabytes']:.0f}",
                f"{row['twin_megabytes']:.0f}",
                f"{row['frozen_microseconds']:.0f}",
                f"{row['floor_microseconds']:.0f}",
                f"{row['transfer_microseconds']:.0f}",
            ]
            for row in record["costs"]
        ],
    )
    return (
        "# Triton kernels, compiled ahead of time\n\n"
        "Every distinct kernel that the sites of BLIP-base and BLIP-large need in bf16, both forms, rank 32 and 64, "
        "forward and backward, with dropout. Nothing was run.\n\n"
        f"{table}\n\n"
        "## Cost model\n\n"
        f"One call, forward and backward, M = {setting['rows']} rows, bf16, at {setting['tera_operations']:g} TFLOP/s "
        f"and {setting['gigabytes']:g} GB/s. `floor` is the longer of computing and moving; nothing here is measured."
        f"\n\n{model}\n\n{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="qkv at rank 64 for sm_90 alone; writes nothing")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rows", type=int, default=32 * 577)
    parser.add_argument("--tera-operations", type=float, default=790.0)
    parser.add_argument("--gigabytes", type=float, default=4800.0)
    arguments = parser.parse_args()
    targets = ["sm_90"] if arguments.quick else arguments.targets
    record = {
        "what": "Triton kernels compiled ahead of time, and their cost model",
        "setting": {
            "targets": targets,
            "rows": arguments.rows,
            "tera_operations": arguments.tera_operations,
            "gigabytes": arguments.gigabytes,
        },
        "machine": machine_facts(1),
        "kernels": needs(targets, arguments.quick),
        "costs": costs(arguments.rows, arguments.tera_operations * 1e12, arguments.gigabytes * 1e9),
    }
    write_results("kernel_report", record, report(record), arguments.quick)
    bad = [row for row in record["kernels"] if row["spilled"] or row["shared"] > row["shared_limit"]]
    for row in bad:
        print(f"{row['target']} {row['makes']}: {row['spilled']} bytes spilled, {row['shared']} bytes shared")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

"""What sharing x Uᵀ saves where several sites read one input, and what making it in a LayerNorm's epilogue would save.

Measured on the CPU: the keys and values of all 12 text layers, which read the same image tokens (d = 768, rank 64,
fp32, M = 2·577), forward and backward: frozen linears alone, sites that make their own x Uᵀ each, sites that share it.
They take turns in one process; time is the processor's, operations are counted by torch.utils.flop_counter.

Modelled, at given rates (a GPU's; nothing of it is measured): the same sites in bf16, M = 32·577; and a LayerNorm with
x Uᵀ as a launch of its own, and in its epilogue.

    python scripts/bench/kernel_sharing.py [--quick] [--repeat 7] [--tera-operations 790] [--gigabytes 4800]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import kernel_costs
from measurement import facts_line, machine_facts, markdown_table, median, processor_seconds, write_results

LAYERS = 12
WAYS = ("frozen", "own x Uᵀ", "shared x Uᵀ")


def steps(rows: int, width: int, rank: int) -> dict[str, Callable[[], None]]:
    """By contender, one forward and backward pass of the stack; gradients of x and of the factors."""
    import torch
    from torch.nn import functional as F

    from aurora_ds.kernels import low_rank, prompted_linear, prompted_linear_from

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int, by: int = 1, trained: bool = False) -> torch.Tensor:
        return (torch.randn(sizes, generator=generator) / by**0.5).requires_grad_(trained)

    out = 2 * width
    x, dy = tensor(rows, width, trained=True), tensor(rows, out)
    weights = [(tensor(out, width, by=width), tensor(out)) for _ in range(LAYERS)]
    down = tensor(rank, width, by=width, trained=True)
    mixes = [tensor(out, rank, by=rank, trained=True) for _ in range(LAYERS)]

    def gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
        torch.autograd.grad(outputs, leaves, [dy] * LAYERS)

    def frozen() -> None:
        gradients([F.linear(x, *each) for each in weights], [x])

    def own() -> None:
        outputs = [prompted_linear(x, *each, down, mix) for each, mix in zip(weights, mixes, strict=True)]
        gradients(outputs, [x, down, *mixes])

    def shared() -> None:
        z = low_rank(x, down)
        outputs = [prompted_linear_from(x, z, *each, mix) for each, mix in zip(weights, mixes, strict=True)]
        gradients(outputs, [x, down, *mixes])

    return dict(zip(WAYS, (frozen, own, shared), strict=True))


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Per contender: operations and processor seconds of one pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, mm_flop

    # the counter does not know the sum in place by itself
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, out_shape=None, **_: mm_flop(a, b)}
    rows, width, rank = (64, 96, 8) if arguments.quick else (2 * 577, 768, 64)
    contenders = steps(rows, width, rank)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for name, step in contenders.items():
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            step()
        found[name] = {"operations": float(counter.get_total_flops())}
    for _ in range(arguments.repeat):
        for name, step in contenders.items():
            start = processor_seconds()
            step()
            seconds[name].append(processor_seconds() - start)
    return {name: found[name] | {"processor_seconds": median(seconds[name])} for name in found}


def model_of_sharing(operations: float, transfer: float) -> list[dict[str, Any]]:
    """Least microseconds of all sites that read one input, forward and backward, bf16."""
    found, rows = [], 32 * 577
    for shapes in kernel_costs.SHAPES.values():
        shape = next(each for each in shapes if each.outputs == 2)
        for rank in (32, 64):
            ways = (
                kernel_costs.frozen(shape, rows, 2),
                kernel_costs.prompted(shape, rank, rows, 2),
                kernel_costs.shared(shape, rank, rows, 2, LAYERS),
            )
            micro = [1e6 * LAYERS * cost.seconds(operations, transfer) for cost in ways]
            found.append(
                {"shape": shape.name, "rank": rank, "microseconds": dict(zip(WAYS, micro, strict=True))}
            )
    return found


def model_of_epilogue(operations: float, transfer: float) -> list[dict[str, Any]]:
    """Least microseconds of a LayerNorm and the x Uᵀ after it, forward and backward without dU, bf16."""
    found, rows = [], 32 * 577
    for shapes in kernel_costs.SHAPES.values():
        for shape in (each for each in shapes if each.outputs in (3, 4)):
            for rank in (32, 64):
                apart, fused = (
                    [1e6 * cost.seconds(operations, transfer) for cost in make(shape.d_in, rank, rows, 2)]
                    for make in (kernel_costs.norm_apart, kernel_costs.norm_fused)
                )
                site = 1e6 * kernel_costs.prompted(shape, rank, rows, 2).seconds(operations, transfer)
                norm = 1e6 * 5 * 2 * rows * shape.d_in / transfer
                found.append(
                    {
                        "shape": shape.name,
                        "rank": rank,
                        "apart_microseconds": sum(apart),
                        "fused_microseconds": sum(fused),
                        "share_of_site_and_norm": (sum(apart) - sum(fused)) / (site + norm),
                    }
                )
    return found


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    measured, base = record["measured"], record["measured"]["frozen"]
    own = measured[WAYS[1]]
    first = markdown_table(
        ["", "GFLOP", "over frozen", "processor ms", "over frozen", "over own x Uᵀ"],
        [
            [
                name,
                f"{found['operations'] / 1e9:.2f}",
                f"{found['operations'] / base['operations']:.3f}",
                f"{1e3 * found['processor_seconds']:.0f}",
                f"{found['processor_seconds'] / base['processor_seconds']:.3f}",
                f"{found['processor_seconds'] / own['processor_seconds']:.3f}",
            ]
            for name, found in measured.items()
        ],
    )
    second = markdown_table(
        ["shape", "rank", *(f"{name}, µs" for name in WAYS)],
        [
            [each["shape"], str(each["rank"]), *(f"{each['microseconds'][name]:.0f}" for name in WAYS)]
            for each in record["sharing"]
        ],
    )
    third = markdown_table(
        ["site after it", "rank", "apart, µs", "in the epilogue, µs", "saved of norm and site"],
        [
            [
                each["shape"],
                str(each["rank"]),
                f"{each['apart_microseconds']:.1f}",
                f"{each['fused_microseconds']:.1f}",
                f"{100 * each['share_of_site_and_norm']:.1f} %",
            ]
            for each in record["epilogue"]
        ],
    )
    rates = f"{record['tera_operations']:g} TFLOP/s and {record['gigabytes']:g} GB/s"
    return (
        f"# x Uᵀ once per input\n\nKeys and values of {LAYERS} text layers that read the same image tokens, forward "
        f"and backward, d = 768, rank 64, fp32, M = 1154, one thread; medians of {record['repeat']} passes in turn.\n\n"
        f"{first}\n\n## On a GPU, by the model\n\nBoth tables are least times at {rates}, bf16, M = 18464; nothing in "
        f"them is measured.\n\nAll {LAYERS} sites together:\n\n{second}\n\nA LayerNorm and x Uᵀ after it, forward and "
        "backward; dz U counts where it is computed, dU is the same in both ways and left out. Launches are not "
        f"counted; the epilogue has one less:\n\n{third}\n\n{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small stack, once; writes nothing")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--tera-operations", type=float, default=790.0)
    parser.add_argument("--gigabytes", type=float, default=4800.0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeat = 1
    rates = arguments.tera_operations * 1e12, arguments.gigabytes * 1e9
    record = {
        "what": "x Uᵀ shared by the sites of one input, and in a LayerNorm's epilogue",
        "repeat": arguments.repeat,
        "tera_operations": arguments.tera_operations,
        "gigabytes": arguments.gigabytes,
        "machine": machine_facts(1),
        "measured": measure(arguments),
        "sharing": model_of_sharing(*rates),
        "epilogue": model_of_epilogue(*rates),
    }
    write_results("kernel_sharing", record, report(record), arguments.quick)


if __name__ == "__main__":
    main()

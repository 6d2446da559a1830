"""One prompted linear, forward and backward, against the frozen linear alone, the formula written out, and LoRA.

CPU (default): fp32, M = 4·577, d = 768, qkv, rank 64. With a GPU: bf16, M = 32·577, qkv, kv, fc1 and fc2 at d = 768 and
1024, rank 32 and 64, Triton and PyTorch. Every contender gets the gradient of x and of what it trains:

| contender | computes |
|---|---|
| frozen | x Wᵀ + b |
| ours, torch | A from V and the core slices; x Wᵀ + b + (x Uᵀ) Aᵀ by PyTorch |
| ours, triton | the same by the Triton kernels (tucker), or with the diagonals and no A (cp) |
| literal | x Wᵀ + b + cat over the blocks of ((x Uᵀ) G) Vᵀ, x Uᵀ anew for each block |
| lora | peft's LoRA of the same rank, no dropout |

    python scripts/bench/prompted_linear.py [--quick] [--repeat 5] [--steps 7] [--write-choices]

CPU: contenders take turns in fresh processes. Aim: <= 1.25 of frozen, <= 0.9 of literal, <= 0.95 of lora. GPU: calls
take turns in one process, timed by events, with the caches flushed. Aim: <= 1.08 of the floor by operations (times
frozen), <= 0.45 of literal, <= 0.8 of lora. --write-choices puts the faster path of every shape into
aurora_ds/kernels/choices.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import chart
import kernel_choices
import kernel_costs
from measurement import (
    RESULTS,
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    processor_seconds,
    sharing_note,
    write_results,
)

CPU_BARS = {"frozen": 1.25, "literal": 0.9, "lora": 0.95}
GPU_BARS = {"frozen": 1.08, "literal": 0.45, "lora": 0.8}  # frozen: times the floor by operations
CPU_CONTENDERS = ("frozen", "ours, torch", "literal", "lora")
GPU_CONTENDERS = ("frozen", "ours, torch", "ours, triton", "ours, triton, cp", "literal", "lora")


def contender(name: str, shape: kernel_costs.Shape, rank: int, rows: int, device: str, dtype) -> Callable:
    """A function that does one forward and backward pass. All contenders get the same x, W, b and dy."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from aurora_ds.kernels import Plan, choice, prompted_linear, reconstruct

    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int, by: int = 1, trained: bool = False) -> torch.Tensor:
        made = (torch.randn(sizes, generator=generator) / by**0.5).to(device, dtype)
        return made.requires_grad_(trained)

    width_in, width_out = shape.d_in // shape.inputs, shape.d_out // shape.outputs
    columns = max(shape.inputs, shape.outputs)
    x, dy = tensor(rows, shape.d_in, trained=True), tensor(rows, shape.d_out)
    weight, bias = tensor(shape.d_out, shape.d_in, by=shape.d_in), tensor(shape.d_out)
    down, up = (
        tensor(rank, width_in, by=width_in, trained=True),
        tensor(width_out, rank, by=rank, trained=True),
    )
    slices = (torch.randn(columns, rank, rank, generator=generator) / rank**0.5).to(device).requires_grad_()
    diagonal = torch.randn(columns, rank, generator=generator).to(device).requires_grad_()
    plan = Plan((width_out,), (shape.outputs,), (shape.inputs,), rank)

    def frozen():
        return F.linear(x, weight, bias), (x,)

    def ours():
        (mix,) = reconstruct([up.float()], slices, plan, dtype)
        return prompted_linear(x, weight, bias, down, mix, inputs=shape.inputs), (x, down, up, slices)

    def ours_cp():
        y = prompted_linear(x, weight, bias, down, up, diagonal, inputs=shape.inputs)
        return y, (x, down, up, diagonal)

    def literal():
        parts = x.chunk(shape.inputs, dim=1) if shape.inputs > 1 else [x] * shape.outputs
        cores = slices.to(dtype)
        terms = [F.linear(F.linear(part, down) @ core, up) for part, core in zip(parts, cores, strict=True)]
        update = sum(terms) if shape.inputs > 1 else torch.cat(terms, dim=1)
        return F.linear(x, weight, bias) + update, (x, down, up, slices)

    if name == "lora":
        from peft import LoraConfig, get_peft_model

        linear = nn.Linear(shape.d_in, shape.d_out, device=device, dtype=dtype)
        adapted = get_peft_model(
            nn.ModuleDict({"linear": linear}),
            LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=["linear"]),
            autocast_adapter_dtype=False,
        )
        layer = adapted.base_model.model["linear"]
        leaves = (x, *(p for p in adapted.parameters() if p.requires_grad))

        def make():
            return layer(x), leaves
    else:
        choice.use("triton" if "triton" in name else "torch")
        make = {
            "frozen": frozen,
            "ours, torch": ours,
            "ours, triton": ours,
            "ours, triton, cp": ours_cp,
            "literal": literal,
        }[name]

    path = choice.setting()

    def step() -> None:
        choice.use(path)
        y, leaves = make()
        torch.autograd.grad(y, leaves, dy)

    return step


def measure_on_cpu(name: str, steps: int, threads: int, small: bool) -> dict[str, Any]:
    """Seconds of `steps` passes after two that warm up, in this process."""
    import torch

    torch.set_num_threads(threads)
    rows, rank = (64, 16) if small else (4 * 577, 64)
    step = contender(name, kernel_costs.SHAPES["base"][0], rank, rows, "cpu", torch.float32)
    seconds, processor = [], []
    for number in range(steps + 2):
        start, start_processor = time.perf_counter(), processor_seconds()
        step()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
            processor.append(processor_seconds() - start_processor)
    return {"seconds": seconds, "processor_seconds": processor}


def compare_on_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    options += ["--quick"] if arguments.quick else []
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CPU_CONTENDERS}
    for _ in range(arguments.repeat):
        for name, each in runs.items():
            each.append(fresh_process("prompted_linear.py", ["--measure", name, *options], arguments.threads))
    # processor time is what this machine's other users disturb least; both are kept
    found = {
        name: {
            kind: median([s for run in each for s in run[kind]]) for kind in ("seconds", "processor_seconds")
        }
        for name, each in runs.items()
    }
    ours = found["ours, torch"]
    return {
        "what": "one prompted linear, forward and backward, CPU",
        "setting": {
            "rows": 64 if arguments.quick else 4 * 577,
            "shape": "qkv 768",
            "rank": 16 if arguments.quick else 64,
            "dtype": "float32",
            "steps": arguments.steps,
            "repeat": arguments.repeat,
        },
        "machine": machine_facts(arguments.threads),
        "summary": found,
        "ratios": {name: {kind: ours[kind] / found[name][kind] for kind in ours} for name in CPU_BARS},
        "bars": CPU_BARS,
        "operations_ratio": kernel_costs.floor(kernel_costs.SHAPES["base"][0], 64),
    }


def report_cpu(record: dict[str, Any]) -> str:
    setting = record["setting"]
    rows = []
    for name, found in record["summary"].items():
        ratio, bar = record["ratios"].get(name), record["bars"].get(name)
        rows.append(
            [
                name,
                f"{1e3 * found['seconds']:.1f}",
                f"{1e3 * found['processor_seconds']:.1f}",
                f"{ratio['seconds']:.3f}" if ratio else "",
                f"{ratio['processor_seconds']:.3f}" if ratio else "",
                f"<= {bar}" if bar else "",
            ]
        )
    table = markdown_table(["", "ms", "processor ms", "ours over it", "by processor time", "aim"], rows)
    frozen = record["summary"]["frozen"]
    note = sharing_note(frozen["seconds"], frozen["processor_seconds"], record["machine"]["threads"])
    return (
        f"# Prompted linear, forward and backward, CPU\n\n{setting['shape']}, {setting['dtype']}, "
        f"M = {setting['rows']}, rank {setting['rank']}; gradients of x and of what is trained. "
        f"{setting['repeat']} fresh processes each, in turn, {setting['steps']} timed passes in each; medians. By "
        f"operations ours is {record['operations_ratio']:.3f} times the frozen linear.\n\n{table}\n\n"
        f"{note}{facts_line(record['machine'])}\n"
    )


def compare_on_gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of each contender per shape and rank, calls in turn, caches flushed before each."""
    import torch

    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    rows, found = 32 * 577, []
    shapes = [s for each in kernel_costs.SHAPES.values() for s in each]
    for shape in shapes[:1] if arguments.quick else shapes:
        for rank in (64,) if arguments.quick else (32, 64):
            steps = {
                name: contender(name, shape, rank, rows, "cuda", torch.bfloat16) for name in GPU_CONTENDERS
            }
            times: dict[str, list[float]] = {name: [] for name in steps}
            for number in range(arguments.steps * arguments.repeat + 5):
                for name, step in steps.items():
                    flush.zero_()
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    step()
                    end.record()
                    end.synchronize()
                    if number >= 5:
                        times[name].append(1e3 * start.elapsed_time(end))
            micro = {name: median(each) for name, each in times.items()}
            found.append(
                {
                    "shape": shape.name,
                    "sizes": [shape.d_out, shape.d_in, shape.inputs],
                    "rank": rank,
                    "microseconds": micro,
                    "floor": kernel_costs.floor(shape, rank) * micro["frozen"],
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return {
        "what": "one prompted linear, forward and backward, GPU",
        "device": torch.cuda.get_device_name(),
        "rows": rows,
        "machine": machine_facts(1),
        "shapes": found,
        "reconstruction": compare_reconstruction(arguments),
        "bars": GPU_BARS,
    }


def compare_reconstruction(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds of A for all sites of BLIP-base and its gradients, on both paths."""
    import torch

    from aurora_ds.kernels import Plan, choice, reconstruct

    blocks = [(3, 1), (1, 1), (4, 1), (1, 4)] * 12 + [(3, 1), (1, 1), (2, 1)] * 12
    found = []
    for rank in (64,) if arguments.quick else (32, 64):
        plan = Plan((768,) * len(blocks), *zip(*blocks, strict=True), rank)
        up = torch.randn(768, rank, device="cuda", requires_grad=True)
        slices = torch.randn(sum(plan.columns), rank, rank, device="cuda", requires_grad=True)
        gradients = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in plan.shapes]
        times: dict[str, list[float]] = {"triton": [], "torch": []}
        for number in range(arguments.steps * arguments.repeat + 5):
            for path, each in times.items():
                choice.use(path)
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                mixes = reconstruct([up], slices, plan, torch.bfloat16)
                torch.autograd.grad(mixes, [up, slices], gradients)
                end.record()
                end.synchronize()
                if number >= 5:
                    each.append(1e3 * start.elapsed_time(end))
        found.append({"rank": rank, "microseconds": {path: median(each) for path, each in times.items()}})
    return found


def report_gpu(record: dict[str, Any]) -> str:
    rows = []
    for found in record["shapes"]:
        micro = found["microseconds"]
        best = min(micro[name] for name in micro if name.startswith("ours"))
        rows.append(
            [found["shape"], str(found["rank"]), *(f"{micro[name]:.0f}" for name in GPU_CONTENDERS)]
            + [
                f"{best / found['floor']:.3f}",
                f"{best / micro['literal']:.3f}",
                f"{best / micro['lora']:.3f}",
            ]
        )
    made = [
        f"rank {each['rank']}: triton {each['microseconds']['triton']:.0f}, torch {each['microseconds']['torch']:.0f}"
        for each in record["reconstruction"]
    ]
    head = ["shape", "rank", *(f"{name}, µs" for name in GPU_CONTENDERS)]
    head += ["best over floor", "over literal", "over lora"]
    return (
        f"# Prompted linear, forward and backward, {record['device']}\n\nbf16, M = {record['rows']}. `floor`: the "
        f"frozen linear's time by operations. Aim: <= {GPU_BARS['frozen']} of the floor, <= {GPU_BARS['literal']} of "
        f"literal, <= {GPU_BARS['lora']} of lora.\n\n{markdown_table(head, rows)}\n\n"
        f"A of all sites of BLIP-base, forward and backward, µs: {'; '.join(made)}.\n\n"
        f"{facts_line(record['machine'])}\n"
    )


def write_choices(record: dict[str, Any]) -> None:
    """The faster path per shape into the table that `kernels=auto` reads, for this device's family."""
    import torch

    from aurora_ds.kernels import choice

    rows = {}
    for found in record["shapes"]:
        d_out, d_in, inputs = found["sizes"]
        micro = found["microseconds"]
        faster = "triton" if micro["ours, triton"] < micro["ours, torch"] else "torch"
        for dtype in (torch.bfloat16, torch.float16):  # the same products on the same units
            rows[choice.key(dtype, d_out, d_in, found["rank"], inputs)] = faster
    for found in record["reconstruction"]:
        micro = found["microseconds"]
        rows[f"reconstruct r{found['rank']}"] = min(micro, key=micro.get)
    kernel_choices.write(rows)


def plot(record: dict[str, Any], name: str) -> None:
    """The medians as results/NAME.png; processor time where others used the cores too."""
    if "summary" in record:
        found = record["summary"]
        frozen = found["frozen"]
        shared = sharing_note(frozen["seconds"], frozen["processor_seconds"], record["machine"]["threads"])
        kind = "processor_seconds" if shared else "seconds"
        limit = min(1e3 * bar * found[each][kind] for each, bar in CPU_BARS.items())
        bars = [
            chart.Bar(label, 1e3 * each[kind], label.startswith("ours"), limit if "ours" in label else None)
            for label, each in found.items()
        ]
        unit = "milliseconds of processor time" if shared else "milliseconds"
        title = "Prompted linear (qkv), forward and backward, CPU"
        chart.draw(RESULTS / f"{name}.png", title, f"{unit}; the line is the aim", bars)
        return
    bars = [
        chart.Bar(f"{found['shape']} r{found['rank']} {each}", value, each.startswith("ours"))
        for found in record["shapes"]
        for each, value in found["microseconds"].items()
    ]
    title = f"Prompted linear, forward and backward, {record['device']}"
    chart.draw(RESULTS / f"{name}.png", title, "microseconds", bars)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small shape, once; writes nothing")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="null: a GPU where there is one")
    parser.add_argument("--write-choices", action="store_true", help="GPU: write choices.json")
    parser.add_argument("--measure", choices=CPU_CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(
            json.dumps(measure_on_cpu(arguments.measure, arguments.steps, arguments.threads, arguments.quick))
        )
        return
    if arguments.quick:
        arguments.repeat, arguments.steps = 1, 2
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = "prompted_linear" if device == "cpu" else "prompted_linear_gpu"
    record = compare_on_cpu(arguments) if device == "cpu" else compare_on_gpu(arguments)
    write_results(
        name, record, report_cpu(record) if device == "cpu" else report_gpu(record), arguments.quick
    )
    if not arguments.quick:
        plot(record, name)
    if arguments.write_choices and device == "cuda":
        write_choices(record)


if __name__ == "__main__":
    main()

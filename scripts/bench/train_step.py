"""One training step of BLIP-base with Aurora prompts: aurora_ds against the plain baseline (plain_blip.py).

Random weights, 224 px, batch 8, CPU, fp32, rank 32, dropout 0.1 on both sides (text and prompts), queue 57600. A
step is forward, backward, AdamW over the trainables and the momentum update. Captions have the lengths of COCO
captions: the baseline pads them to 35, ours to the longest of the batch. Each contender runs in a fresh process,
in turn; time is the median over steps and processes, memory the largest resident size of the process, everything
included.

    python scripts/bench/train_step.py [--quick] [--repeat 3] [--steps 3] [--dropout 0.1] [--preset aurora|released]
                                       [--device cuda] [--kernels auto|triton|torch]

Aim: time <= 0.7, memory <= 0.65 of the baseline. With --device cuda: 384 px, batch 32, weights in bf16 on both sides,
the GPU's own memory; aim: time <= 1/1.5, memory <= 0.6.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import chart
from measurement import (
    RESULTS,
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    peak_memory_mb,
    processor_seconds,
    sharing_note,
    write_results,
)

BARS = {"cpu": {"time": 0.7, "memory": 0.65}, "cuda": {"time": 1 / 1.5, "memory": 0.6}}
SIZES = {"cpu": (8, 224), "cuda": (32, 384)}  # batch, image
VOCABULARY, QUEUE, RANK = 30524, 57600, 32


def batches(count: int, image_size: int, rows: int) -> list[dict[str, Any]]:
    """The same batches for every contender: random pixels, captions of natural length."""
    import torch
    from captions import natural_captions

    generator = torch.Generator().manual_seed(7)
    return [
        {
            "image": torch.randn(rows, 3, image_size, image_size, generator=generator),
            "captions": natural_captions(rows, 100 + number, VOCABULARY),
            "index": torch.arange(rows) + number * rows,
        }
        for number in range(count)
    ]


def measure(
    contender: str,
    steps: int,
    threads: int,
    dropout: float,
    preset: str,
    small: bool,
    device: str,
    kernels: str,
) -> dict[str, Any]:
    """Time `steps` steps after one that warms up (on a GPU: three), in this process."""
    import torch

    floor = peak_memory_mb()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows, image = SIZES[device]
    sizes = {"image": 64 if small else image, "depth": 2 if small else 12, "queue": 1024 if small else QUEUE}
    model, step = {"plain": plain_step, "aurora": aurora_step}[contender](dropout, preset, sizes, kernels)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model.to(device, dtype).train()
    warm_up, wait = (3, torch.cuda.synchronize) if device == "cuda" else (1, lambda: None)

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_memory_mb()

    built = peak()
    trainables = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainables, lr=1e-4, weight_decay=0.05)
    seconds, processor, losses = [], [], []
    for number, batch in enumerate(batches(steps + warm_up, sizes["image"], rows)):
        batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        batch["image"] = batch["image"].to(dtype)
        wait()
        start, start_processor = time.perf_counter(), processor_seconds()
        loss = step(batch, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - start)
        processor.append(processor_seconds() - start_processor)
        losses.append(float(loss.detach()))
    return {
        "contender": contender,
        "seconds": seconds[warm_up:],
        "processor_seconds": processor[warm_up:],
        "first_step_seconds": seconds[0],
        "peak_mb": peak(),
        "floor_mb": floor,
        "built_mb": built,
        "trainable": sum(p.numel() for p in trainables),
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": losses,
    }


def plain_step(dropout: float, preset: str, sizes: dict[str, int], kernels: str):
    """The baseline; it has one preset, the released one, and no kernels."""
    from captions import LIMIT, padded
    from plain_blip import PlainRetrieval, PlainSizes

    model = PlainRetrieval(
        PlainSizes(
            image_size=sizes["image"],
            vision_depth=sizes["depth"],
            text_depth=sizes["depth"],
            queue_size=sizes["queue"],
            vocab_size=VOCABULARY,
            rank=RANK,
            dropout=dropout,
        )
    )

    def step(batch: dict[str, Any], number: int):
        ids, mask = (t.to(batch["image"].device) for t in padded(batch["captions"], LIMIT))
        contrastive, matching = model(batch["image"], ids, mask, batch["index"], 0.4)
        return contrastive + matching

    return model, step


def aurora_step(dropout: float, preset: str, sizes: dict[str, int], kernels: str):
    from aurora_ds.assemble import build_task
    from aurora_ds.config import RunConfig

    config = RunConfig(kernels=kernels)
    config.backbone.vision.image_size, config.backbone.vision.depth = sizes["image"], sizes["depth"]
    config.backbone.text.depth = sizes["depth"]
    config.backbone.text.dropout = config.backbone.text.attention_dropout = dropout
    config.prompts.preset, config.prompts.rank, config.prompts.dropout = preset, RANK, dropout
    config.retrieval.queue_size, config.retrieval.temperature = sizes["queue"], 0.07
    task = build_task(config).task

    def step(batch: dict[str, Any], number: int):
        return task(task_batch(batch), step=number, alpha=0.4)["loss"]

    return task, step


def task_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of `batches` as our retrieval task takes it, captions padded to the longest."""
    from captions import padded

    ids, mask = (t.to(batch["image"].device) for t in padded(batch["captions"]))
    return {
        "image": batch["image"],
        "input_ids": ids,
        "attention_mask": mask,
        "media_index": batch["index"],
        "sample_index": batch["index"],
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both contenders in turn, each time in a fresh process."""
    options = [
        "--steps",
        str(arguments.steps),
        "--threads",
        str(arguments.threads),
        "--dropout",
        str(arguments.dropout),
    ]
    options += ["--preset", arguments.preset, "--device", arguments.device, "--kernels", arguments.kernels]
    options += ["--quick"] if arguments.quick else []
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "aurora": []}
    for number in range(arguments.repeat):
        for contender in runs:
            runs[contender].append(
                fresh_process("train_step.py", ["--measure", contender, *options], arguments.threads)
            )
            last = runs[contender][-1]
            print(
                f"{number + 1}/{arguments.repeat} {contender}: {median(last['seconds']):.2f} s a step, "
                f"{last['peak_mb']:.0f} MiB",
                flush=True,
            )
    summary = {
        name: {
            "seconds": median([s for run in each for s in run["seconds"]]),
            "processor_seconds": median([s for run in each for s in run["processor_seconds"]]),
            "fastest_seconds": min(s for run in each for s in run["seconds"]),
            "peak_mb": median([run["peak_mb"] for run in each]),
            "floor_mb": median([run["floor_mb"] for run in each]),
            "built_mb": median([run["built_mb"] for run in each]),
            "trainable": each[0]["trainable"],
            "parameters": each[0]["parameters"],
        }
        for name, each in runs.items()
    }
    ours, plain = summary["aurora"], summary["plain"]
    pairs = [
        median(a["seconds"]) / median(p["seconds"])
        for a, p in zip(runs["aurora"], runs["plain"], strict=True)
    ]
    batch, image = SIZES[arguments.device]
    return {
        "what": f"One training step, BLIP-base with Aurora, {place(arguments.device)}",
        "setting": {
            "device": arguments.device,
            "dtype": "fp32" if arguments.device == "cpu" else "bf16",
            "kernels": arguments.kernels,
            "batch": batch,
            "image": image,
            "rank": RANK,
            "queue": QUEUE,
            "dropout": arguments.dropout,
            "preset": arguments.preset,
            "steps": arguments.steps,
            "repeat": arguments.repeat,
        },
        "machine": machine_facts(arguments.threads),
        "summary": summary,
        "time_ratio": ours["seconds"] / plain["seconds"],
        "processor_time_ratio": ours["processor_seconds"] / plain["processor_seconds"],
        "time_ratio_fastest": ours["fastest_seconds"] / plain["fastest_seconds"],
        "time_ratio_by_turn": pairs,
        "memory_ratio": ours["peak_mb"] / plain["peak_mb"],
        "bars": BARS[arguments.device],
        "runs": runs,
    }


def place(device: str) -> str:
    """The device in words: CPU, or the GPU's name."""
    if device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    setting, rows = record["setting"], []
    for name, label in (("plain", "plain baseline"), ("aurora", f"aurora_ds ({setting['preset']})")):
        s = record["summary"][name]
        rows.append(
            [
                label,
                f"{s['seconds']:.2f}",
                f"{s['fastest_seconds']:.2f}",
                f"{s['processor_seconds']:.2f}",
                f"{s['peak_mb']:.0f}",
                f"{s['built_mb']:.0f}",
                f"{s['floor_mb']:.0f}",
                f"{s['trainable']:,}",
                f"{s['parameters']:,}",
            ]
        )
    ratio = (
        f"| **ratio** | **{record['time_ratio']:.3f}** | {record['time_ratio_fastest']:.3f} "
        f"| {record['processor_time_ratio']:.3f} | **{record['memory_ratio']:.3f}** | | | | |"
    )
    turns = ", ".join(f"{r:.3f}" for r in record["time_ratio_by_turn"])
    head = [
        "",
        "s a step (median)",
        "s (fastest)",
        "processor s",
        "peak MiB",
        "after building",
        "after importing torch",
        "trained",
        "parameters",
    ]
    memory = "Memory is the largest resident size of the process, Python and libraries included."
    if setting["device"] == "cuda":
        memory = f"Memory is the most that tensors took on the GPU. Kernels: {setting['kernels']}."
    plain = record["summary"]["plain"]
    note = sharing_note(plain["seconds"], plain["processor_seconds"], record["machine"]["threads"])
    return (
        f"# {record['what']}\n\n"
        f"Batch {setting['batch']}, {setting['image']} px, {setting['dtype']}, rank {setting['rank']}, "
        f"queue {setting['queue']}, dropout {setting['dropout']} on both sides; captions with the lengths of COCO "
        f"captions. {setting['repeat']} fresh processes each, in turn, {setting['steps']} timed steps in each. "
        f"{memory}\n\n"
        f"{markdown_table(head, rows)}\n{ratio}\n\n"
        f"Aim: time <= {record['bars']['time']:.3g}, memory <= {record['bars']['memory']}. "
        f"Time ratio turn by turn: {turns}.\n\n"
        f"{note}{facts_line(record['machine'])}\n"
    )


def plot(record: dict[str, Any], name: str) -> None:
    """Time and memory over those of the baseline, with the aims, as results/NAME.png."""
    bars = [
        chart.Bar("time of a step", record["time_ratio"], True, record["bars"]["time"]),
        chart.Bar("processor time of a step", record["processor_time_ratio"], True),
        chart.Bar("memory", record["memory_ratio"], True, record["bars"]["memory"]),
        chart.Bar("plain baseline", 1.0),
    ]
    unit = "over the plain baseline; the line is the aim"
    chart.draw(RESULTS / f"{name}.png", record["what"], unit, bars)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 layers and 64 px, once; checks that everything runs"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--preset", choices=["aurora", "released"], default="aurora")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kernels", choices=["auto", "triton", "torch"], default="auto")
    parser.add_argument("--measure", choices=["plain", "aurora"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(
            json.dumps(
                measure(
                    arguments.measure,
                    arguments.steps,
                    arguments.threads,
                    arguments.dropout,
                    arguments.preset,
                    arguments.quick,
                    arguments.device,
                    arguments.kernels,
                )
            )
        )
        return
    if arguments.quick:
        arguments.repeat, arguments.steps = 1, 1
    record = compare(arguments)
    name = "train_step" if arguments.device == "cpu" else "train_step_gpu"
    write_results(name, record, report(record), arguments.quick)
    if not arguments.quick:
        plot(record, name)


if __name__ == "__main__":
    main()

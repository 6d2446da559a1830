"""Memory of a training step as `aurora-ds plan` predicts it against what processes take.

Real steps of real tasks by the real engine (DeepSpeed, gloo, 2 ranks), each setting in fresh processes. Measured is
what the operating system counts: the largest resident size of rank 0 during the third step, less its resident size
after a tiny task has run and before the task is built. glibc is told to give freed memory back at once
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), so that the resident size is what lives. What oneDNN keeps of each
product's shape (library_caches.py) is measured in a process of its own and taken off: it is no part of a step, is
next to nothing in fp32, and grows with the number of shapes, not with their size. Predicted is the planner's peak for a
CPU with the same batch. What libraries take while they compute is in the measured figure alone. Bytes sent are counted
at the dispatcher, as a ring sends them: the mean over the ranks and four steps, since hard negatives are drawn. Rows
without a figure for libraries are of before: in fp32, and bytes of one step of rank 0. Not predicted is what lies in
the host's memory and is no tensor, as every allocation that was alive between two steps of small nlvr in bf16 at stage
3 says: the tokenizer's vocabulary (6 MiB), PyTorch's record of the last collectives with their stacks (2 MiB after
three steps; it is a ring), classes that DeepSpeed makes for each module at stage 3 (3 MiB). None of it grows with the
model's width or the batch, so it weighs most where all the rest is small.

Cases that were measured before stay in the results; `--predict-again` measures nothing and compares those with what
the planner says now.

    python scripts/bench/memory.py [--quick] [--sizes small medium] [--stages 0 1 2 3] [--recompute no yes]
                                   [--runs retrieval-aurora-fp32 eve_spread-full-fp32 ...]
    python scripts/bench/memory.py --predict-again
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measurement import HERE, REPOSITORY, facts_line, machine_facts, markdown_table, write_results

RANKS, MEASURED_STEP, LAST_STEP = 2, 2, 5
# vision width, depth, pixels, rows of a rank
SIZES = {
    "tiny": (64, 1, 32, 2),
    "small": (256, 4, 192, 4),
    "medium": (384, 6, 224, 8),
    "base": (768, 12, 224, 4),
}
# tasks of other backbones than BLIP: the recipe's task, the backbone, ranks that share its experts
TASKS = {
    "grounding": ("grounding", "mplug", 1),
    "eve_retrieval": ("retrieval", "eve", 1),
    "eve_spread": ("retrieval", "eve", RANKS),
}


def configuration(size: str, method: str, precision: str, checkpointing: bool, task: str = "nlvr") -> Any:
    """A run of that size; random weights."""
    from aurora_ds.config import RunConfig

    width, depth, pixels, rows = SIZES[size]
    task, name, sharing = TASKS.get(task, (task, "blip", 1))
    config = RunConfig.model_validate(
        {"task": task, "kernels": "torch", "backbone": {"name": name, "head": task}}
    )
    backbone, train = config.backbone, config.train
    backbone.activation_checkpointing, train.expert_parallel = checkpointing, sharing
    backbone.vision.width = backbone.text.width = width
    backbone.vision.depth = backbone.text.depth = depth
    backbone.vision.heads = backbone.text.heads = width // 64
    backbone.text.intermediate, backbone.vision.image_size = 4 * width, pixels
    config.retrieval.queue_size, config.retrieval.temperature = 4096, 0.07
    if name == "mplug":
        mplug = backbone.mplug
        mplug.text_layers = mplug.fusion_layers = mplug.decoder_layers = depth
    if name == "eve":
        backbone.eve.top_layers, backbone.eve.moe.experts = [depth - 1], 4
        config.retrieval.momentum_model, config.retrieval.queue_size, config.retrieval.alpha = "off", 0, 0.0
    train.method, train.precision, train.clip_norm = method, precision, 1.0
    train.global_batch_size = rows * RANKS
    return config


def measure(arguments: argparse.Namespace) -> None:
    """Steps in this rank; rank 0 prints bytes as JSON."""
    import torch

    from aurora_ds.runtime import process_group

    torch.set_num_threads(1)
    process_group.start()
    kind = arguments.method, arguments.precision, arguments.checkpointing, arguments.task
    settings = REPOSITORY / "ds_configs" / f"zero{arguments.stage}.json"
    # what libraries make for themselves once is no part of a step: it is made by a tiny task first
    _, _, before = steps(configuration("tiny", *kind), settings, SIZES["tiny"][3])
    floor = resident("VmRSS")
    peak, sent, products = steps(configuration(arguments.size, *kind), settings, SIZES[arguments.size][3])
    if process_group.rank() == 0:
        print(json.dumps({"taken": peak - floor, "sent": sent, "products": [before, products]}), flush=True)
    process_group.stop()


def steps(config: Any, settings: Path, rows: int) -> tuple[int, float, list[str]]:
    """Some steps of a run: the largest resident size in the third, the bytes that a rank sent in it and each later one,
    and the products that one makes."""
    import torch
    from library_caches import noting_products  # beside this file
    from sent import counting

    from aurora_ds.assemble import build_task
    from aurora_ds.plan.task import annotations, media_shape
    from aurora_ds.runtime import process_group
    from aurora_ds.runtime.engine import build

    rank = process_group.rank()
    assembled = build_task(config)
    assembled.tokenizer.unusable = ""  # weights are random; any ids will do
    engine = build(assembled.task, config.train, settings, 10, 10)
    annotation = annotations(config, assembled.wiring.kind, assembled.wiring.every_annotation)
    texts = assembled.wiring.train_texts(assembled.tokenizer)([annotation] * rows)
    numbers = torch.arange(rows) * RANKS + rank
    batch = {
        "image": torch.randn(rows, *media_shape(config, assembled.wiring.takes)),
        "media_index": numbers,
        "sample_index": numbers,
        **texts,
    }
    engine.train()

    def one(step: int) -> None:
        losses = engine.forward(batch, what="loss", **assembled.wiring.loss_arguments(step, 0, 10))
        engine.backward_and_step(losses["loss"])

    with noting_products() as products:
        one(0)
    total = torch.zeros(1, dtype=torch.float64)
    for step in range(1, LAST_STEP + 1):
        gc.collect()
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # the largest resident size begins anew
        with counting() as sent:
            one(step)
        if step == MEASURED_STEP:
            peak = resident("VmHWM")
        if step >= MEASURED_STEP:
            total += sent.bytes
    engine.close()
    torch.distributed.all_reduce(total)
    return peak, float(total) / RANKS / (LAST_STEP + 1 - MEASURED_STEP), list(products)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux alone")


def predicted(arguments: argparse.Namespace) -> dict[str, Any]:
    """The planner's figures for the same run."""
    from aurora_ds.plan.memory import memory
    from aurora_ds.plan.run import follow
    from aurora_ds.plan.traffic import traffic
    from aurora_ds.plan.variants import VARIANTS

    config = configuration(
        arguments.size, arguments.method, arguments.precision, arguments.checkpointing, arguments.task
    )
    trace = follow(config, SIZES[arguments.size][3], RANKS, arguments.checkpointing, "cpu")
    found = {}
    for stage in arguments.stages:
        variant = next(each for each in VARIANTS if each.name == f"zero{stage}")
        found[stage] = {
            "predicted": memory(trace, variant, RANKS, arguments.precision, "cpu").record(),
            "predicted_sent": traffic(trace, variant, RANKS, arguments.precision).record(),
        }
    return {"parameters": trace.total, "trained": trace.trained, "stages": found}


def in_processes(case: list[str], stage: int) -> dict[str, Any]:
    """`measure` on two ranks in fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(RANKS),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, str(HERE / "memory.py"), "--measure", "--stage", str(stage), *case]
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=said,
                text=True,
            )
            for rank in range(RANKS)
        ]
        out, _ = ranks[0].communicate()
        if any([rank.wait() for rank in ranks]):
            said.seek(0)
            raise RuntimeError(said.read()[-3000:])
    real = json.loads(next(line for line in out.splitlines() if line.startswith('{"taken')))
    libraries = subprocess.run(
        [sys.executable, str(HERE / "library_caches.py")],
        env=environment,
        input=json.dumps(real.pop("products")),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    real["libraries"] = int(libraries.stdout)
    return real | {"measured": real.pop("taken") - real["libraries"]}


CASE = ("size", "task", "method", "precision", "checkpointing")


def row_of(case: dict[str, Any], stage: int, plan: dict[str, Any], real: dict[str, float]) -> dict[str, Any]:
    """A row of the results, and a line said about it."""
    expected = plan["stages"][stage]
    row = {
        **case,
        "stage": stage,
        "parameters": plan["parameters"],
        "trained": plan["trained"],
        **expected,
        **real,
        "ratio": expected["predicted"]["peak"] / real["measured"],
        "sent_ratio": expected["predicted_sent"]["total"] / max(1.0, real["sent"]),
    }
    print(
        f"{case['size']} {case['task']} {case['method']} {case['precision']} "
        f"{'recomputed' if case['checkpointing'] else 'kept'} stage {stage}: "
        f"{expected['predicted']['peak'] / 2**20:.0f} predicted, {real['measured'] / 2**20:.0f} MiB "
        f"measured, {row['ratio']:.3f}, {real.get('libraries', 0) / 2**20:.0f} MiB kept by libraries beside; "
        f"sent {row['sent_ratio']:.3f}",
        flush=True,
    )
    return row


def compare(
    arguments: argparse.Namespace, done: Callable[[list], None] = lambda rows: None
) -> list[dict[str, Any]]:
    """Every case: predicted, measured, ratio; `done` gets the rows so far after each."""
    rows = []
    for size in arguments.sizes:
        for task, method, precision in arguments.runs:
            for checkpointing in arguments.recompute:
                options = ["--size", size, "--task", task, "--method", method, "--precision", precision]
                options += ["--checkpointing"] if checkpointing else []
                case = dict(zip(CASE, (size, task, method, precision, checkpointing), strict=True))
                plan = predicted(argparse.Namespace(**case, stages=arguments.stages))
                for stage in arguments.stages:
                    rows.append(row_of(case, stage, plan, in_processes(options, stage)))
                    done(rows)
    return rows


def predicted_again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what the planner says now."""
    plans: dict[tuple, dict[str, Any]] = {}
    again = []
    for row in rows:
        case = {key: row[key] for key in CASE}
        kind = tuple(case.values())
        if kind not in plans:
            plans[kind] = predicted(argparse.Namespace(**case, stages=[0, 1, 2, 3]))
        real = {key: row[key] for key in ("measured", "libraries", "sent") if key in row}
        again.append(row_of(case, row["stage"], plans[kind], real))
    return again


def with_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows after those of other cases in the results."""
    done = {(*(row[key] for key in CASE), row["stage"]) for row in rows}
    return [
        row for row in measured_before() if (*(row[key] for key in CASE), row["stage"]) not in done
    ] + rows


def measured_before() -> list[dict[str, Any]]:
    """The rows of the results."""
    file = HERE / "results" / "memory.json"
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    head = [
        "size",
        "task",
        "method",
        "precision",
        "recompute",
        "ZeRO",
        "predicted MiB",
        "measured MiB",
        "ratio",
        "libraries' MiB",
    ]
    head += ["predicted MB sent", "measured MB sent", "ratio"]
    rows = [
        [
            *(str(row[key]) for key in ("size", "task", "method", "precision")),
            "yes" if row["checkpointing"] else "no",
            str(row["stage"]),
            f"{row['predicted']['peak'] / 2**20:.0f}",
            f"{row['measured'] / 2**20:.0f}",
            f"{row['ratio']:.3f}",
            f"{row['libraries'] / 2**20:.0f}" if "libraries" in row else "",
            f"{row['predicted_sent']['total'] / 1e6:.2f}",
            f"{row['sent'] / 1e6:.2f}",
            f"{row['sent_ratio']:.3f}",
        ]
        for row in record["rows"]
    ]
    within = [sum(abs(row[key] - 1) <= 0.15 for row in record["rows"]) for key in ("ratio", "sent_ratio")]
    sizes = "; ".join(
        f"{name}: width {w}, {d} layers, {p} px, {b} rows a rank" for name, (w, d, p, b) in SIZES.items()
    )
    return (
        f"# Memory and bytes of a training step: the planner against processes\n\n{RANKS} ranks on a CPU; {sizes}. "
        f"Within 15 %: {within[0]} of {len(rows)} figures of memory, {within[1]} of bytes sent.\n\n"
        f"{markdown_table(head, rows)}\n\n"
        f"{__doc__.split(chr(10) * 2)[1].strip()}\n\n{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one size, one run; nothing is written")
    parser.add_argument("--predict-again", action="store_true", help="measure nothing")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium"])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--recompute", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="TASK-METHOD-PRECISION",
        default=["retrieval-aurora-fp32", "nlvr-aurora-bf16", "nlvr-full-fp32"],
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    for name, default in (("size", "small"), ("task", "nlvr"), ("method", "aurora"), ("precision", "fp32")):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    arguments.runs = [tuple(each.split("-")) for each in arguments.runs]
    arguments.recompute = [each == "yes" for each in arguments.recompute]
    if arguments.quick:
        arguments.sizes, arguments.runs = arguments.sizes[:1], arguments.runs[:1]
    record: dict[str, Any] = {"machine": machine_facts(1)}

    def write(rows: list[dict[str, Any]]) -> None:
        record["rows"] = with_others(rows)
        write_results("memory", record, report(record), arguments.quick)

    if arguments.predict_again:
        write(predicted_again(measured_before()))
    else:
        compare(arguments, write)


if __name__ == "__main__":
    main()

"""Predicted efficiency of training from 1 to 1,024 GPUs: a model over what was measured, with every assumption a number
that can be changed.

Measured here: operations of a step (counted), a checkpoint (overhead.json), the loader's processor time per image
(loader.json), and the host's plan of the exchange of negatives, timed at every number of ranks. Bytes that a rank sends
and holds are the planner's (aurora_ds/plan), which memory.json and step_bytes.json compare with real processes. Not
measured, since no GPU was at hand: how fast a GPU computes and how fast a network carries. Those are in `Assumed`.

    python scripts/bench/scaling.py [--set inter_gigabytes=12.5] [--set batch=16] …   the tables and the figure
    python scripts/bench/scaling.py --count                                           count the operations anew
    python scripts/bench/scaling.py --plan                                            ask the planner anew

With `--set` nothing is written unless `--write` is given. What is written goes into docs/scaling.md, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields, replace
from typing import Any

from measurement import RESULTS, machine_facts, median
from scaling_model import GPUS, Assumed, Measured, predict
from scaling_report import DOCUMENT, document, draw, report

OPERATIONS, PLAN = "step_operations", "step_plan"
QUEUE = 57600
PLANNED_GPUS, PLANNED_BATCH = (1, 2, 8, 1024), 32


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run scripts/bench/{name}.py first, or with --count this one.")
    return json.loads(path.read_text(encoding="utf-8"))


def measured(batch: int) -> Measured:
    """From the results of the other benchmarks, and the plan of the exchange timed now."""
    counted, overhead, loader = read(OPERATIONS), read("overhead"), read("loader")
    runs = overhead["runs"]
    saved = median([seconds for run in runs for seconds in run["clocks"]["checkpoint"]["processor"]])
    images = [run["processor_ms_per_image"] for run in loader["runs"]["loader"]]
    planned = read(PLAN)
    gathered, exchanged = shares(planned)
    return Measured(
        operations_per_pair=counted["operations"] / counted["batch"],
        gradient_bytes=4.0 * planned["trained"],
        exchanged_bytes=exchanged / planned["batch"],
        gathered_bytes=gathered / planned["batch"],
        memory_bytes={gpus: each["memory"] for gpus, each in planned["gpus"].items()},
        plan_seconds={str(gpus): exchange_plan_seconds(gpus, batch) for gpus in GPUS},
        checkpoint_seconds=saved,
        image_core_seconds=median(images) / 1e3,
    )


def shares(planned: dict[str, Any]) -> tuple[float, float]:
    """(bytes of a rank that it sends to each other rank, bytes that it shares out among all) of the task's exchange:
    the planner says what both make together, (N-1) g + (N-1)/N x on N ranks. Checked on a third number of ranks."""
    first, second, third = (int(gpus) for gpus in planned["gpus"] if int(gpus) > 1)

    def sent(gpus: int) -> float:
        return planned["gpus"][str(gpus)]["task"] * gpus / (gpus - 1)

    gathered = (sent(third) - sent(first)) / (third - first)
    exchanged = sent(first) - first * gathered
    if abs(sent(second) - second * gathered - exchanged) > 0.01 * sent(second):
        raise SystemExit("The planner's bytes do not grow with the ranks as gathers and exchanges do.")
    return gathered, exchanged


def plan() -> dict[str, Any]:
    """What the planner says of BLIP-base on several numbers of GPUs, each with the same batch, at stage 0 in bf16."""
    from aurora_ds.plan.memory import memory
    from aurora_ds.plan.run import follow
    from aurora_ds.plan.traffic import traffic
    from aurora_ds.plan.variants import VARIANTS
    from aurora_ds.recipe import load_config

    plain, found, trained = VARIANTS[0], {}, 0
    for gpus in PLANNED_GPUS:
        settings = ["train.precision=bf16", f"train.global_batch_size={gpus * PLANNED_BATCH}"]
        trace = follow(load_config("retrieval_coco", settings), PLANNED_BATCH, gpus, False, "cuda")
        sends, trained = traffic(trace, plain, gpus, "bf16"), trace.trained
        held = memory(trace, plain, gpus, "bf16", "cuda")
        found[str(gpus)] = {"gradients": sends.gradients, "task": sends.task, "memory": held.peak}
        print(gpus, found[str(gpus)], file=sys.stderr, flush=True)
    return {
        "what": "Bytes that one GPU sends in a step and holds, by the planner: retrieval_coco, bf16, stage 0",
        "batch": PLANNED_BATCH,
        "trained": trained,
        "gpus": found,
        "machine": machine_facts(1),
    }


def exchange_plan_seconds(gpus: int, batch: int) -> float:
    """Processor seconds in which one of `gpus` ranks works out who sends which rows to whom, for images and texts."""
    import torch

    from aurora_ds.tasks import collectives

    if gpus == 1:
        return 0.0
    torch.set_num_threads(1)
    wanted = torch.randint(gpus * batch, (gpus, batch), generator=torch.Generator().manual_seed(0))
    world, collectives.world = collectives.world, lambda: (gpus // 2, gpus)
    spent = []
    for _ in range(15):
        began = time.process_time()
        collectives.RowExchange(wanted, True, batch, torch.device("cpu"))
        spent.append(time.process_time() - began)
    collectives.world = world
    return 2 * min(spent)  # other work on the machine can only add


def count(image: int, batch: int) -> dict[str, Any]:
    """Operations of one forward and backward pass of BLIP-base with Aurora prompts, counted by torch."""
    import torch
    import train_step
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    task, step = train_step.aurora_step(0.1, "aurora", {"image": image, "depth": 12, "queue": QUEUE}, "auto")
    task.train()
    given = train_step.batches(1, image, batch)[0]
    with FlopCounterMode(display=False) as counter:
        step(given, 0).backward()
    return {
        "what": "Operations (a multiplication and an addition are two) of one training step, counted by torch",
        "image": image,
        "batch": batch,
        "operations": counter.get_total_flops(),
        "trainable": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "machine": machine_facts(torch.get_num_threads()),
    }


def changed(assumed: Assumed, settings: list[str]) -> Assumed:
    """With NAME=VALUE put in. Ends with a message on a name that there is not."""
    types = {field.name: type(getattr(assumed, field.name)) for field in fields(Assumed)}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types or not value:
            raise SystemExit(f"--set takes NAME=VALUE with one of {', '.join(types)}, not {setting!r}.")
        assumed = replace(assumed, **{name: types[name](value)})
    return assumed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--write", action="store_true", help="write the results though something was --set")
    parser.add_argument("--count", action="store_true", help="count the operations of a step, and stop")
    parser.add_argument("--plan", action="store_true", help="ask the planner for bytes and memory, and stop")
    parser.add_argument("--image", type=int, default=384)
    chosen = parser.parse_args(argv)
    if chosen.count or chosen.plan:
        name, record = (OPERATIONS, count(chosen.image, 2)) if chosen.count else (PLAN, plan())
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(record, indent=1))
        return 0
    assumed = changed(Assumed(), chosen.settings)
    facts = measured(assumed.batch)
    steps = [predict(gpus, facts, assumed) for gpus in GPUS]
    text = report(steps, facts, assumed)
    print(text)
    if not chosen.settings or chosen.write:
        record = {"assumed": asdict(assumed), "measured": asdict(facts)}
        record["steps"] = [asdict(step) | {"total": step.total} for step in steps]
        (RESULTS / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "scaling.md").write_text(text, encoding="utf-8")
        draw(RESULTS / "scaling.png", steps)
        DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

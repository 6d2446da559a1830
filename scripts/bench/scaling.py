"""Predicted efficiency of training from 1 to 1,024 GPUs: a model over what was measured, with every assumption a number
that can be changed.

Measured here: operations of a step (counted), a checkpoint (overhead.json), bytes of the exchanged tensors (their
sizes), the loader's processor time per image (loader.json), and the host's plan of the exchange of negatives, timed at
every number of ranks. Not measured, since no GPU was at hand: how fast a GPU computes and how fast a network carries.
Those are in `Assumed`.

    python scripts/bench/scaling.py [--set inter_gigabytes=12.5] [--set batch=16] …   the tables and the figure
    python scripts/bench/scaling.py --count                                           count the operations anew

With `--set` nothing is written unless `--write` is given.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from measurement import RESULTS, facts_line, machine_facts, markdown_table, median

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
OPERATIONS = "step_operations"
WIDTH, EMBEDDING, QUEUE = 768, 256, 57600


@dataclass(frozen=True)
class Assumed:
    """What was not measured. A GPU of the A100's class, eight in a host, each host on a network of 8 x 200 Gbit/s."""

    batch: int = 32  # pairs per GPU; the global batch grows with the GPUs
    tera_operations: float = 312.0  # of the GPU, dense, bf16
    utilization: float = 0.40  # share of it that a step reaches
    host_milliseconds: float = 5.0  # of a step in which the GPU waits for Python: update, checks, starts
    gpus_per_host: int = 8
    intra_gigabytes: float = 200.0  # per second and GPU, between GPUs of one host
    inter_gigabytes: float = 20.0  # per second and GPU, between hosts
    intra_microseconds: float = 5.0  # of one hop
    inter_microseconds: float = 15.0
    peer_microseconds: float = 1.0  # an all-to-all's cost on the host for each other rank
    sync_microseconds: float = 30.0  # the host waits for the device and starts it again, per agreement
    deviation: float = 0.02  # of a rank's time for one step, as a share of it
    cores_per_gpu: float = 12.0  # for loading
    image_scale: float = 1.6  # a training image's processor time, with augmentation, to that in loader.json
    save_every: int = 1000  # steps
    disk_factor: float = 3.0  # a cluster's file system to this machine's disk
    evaluation_share: float = 0.05  # of one GPU's time, one evaluation to the training between two
    evaluation_items: int = 25000  # what evaluation deals out to the ranks: texts of COCO's test split


@dataclass(frozen=True)
class Measured:
    """What was. Bytes are per GPU and step."""

    operations_per_pair: float
    gradient_bytes: float
    token_bytes: float  # of one image's tokens, at the model's precision
    feature_bytes: float  # of one pair's contrastive features
    plan_seconds: dict[str, float]  # by number of ranks, both exchanges
    checkpoint_seconds: float
    image_core_seconds: float


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
    tokens = (counted["image"] // 16) ** 2 + 1
    return Measured(
        operations_per_pair=counted["operations"] / counted["batch"],
        gradient_bytes=4.0 * counted["trainable"],
        token_bytes=2.0 * tokens * WIDTH,
        feature_bytes=4.0 * 4 * EMBEDDING,
        plan_seconds={str(gpus): exchange_plan_seconds(gpus, batch) for gpus in GPUS},
        checkpoint_seconds=saved,
        image_core_seconds=median(images) / 1e3,
    )


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
    for _ in range(5):
        began = time.process_time()
        collectives.RowExchange(wanted, True, batch, torch.device("cpu"))
        spent.append(time.process_time() - began)
    collectives.world = world
    return 2 * statistics.median(spent)


@dataclass(frozen=True)
class Step:
    """Predicted seconds of one step on so many GPUs, by where they go."""

    gpus: int
    compute: float
    host: float
    gradients: float
    features: float
    negatives: float
    agreements: float
    straggler: float
    loader: float
    checkpoint: float
    evaluation: float

    @property
    def total(self) -> float:
        parts = asdict(self)
        return sum(value for name, value in parts.items() if name != "gpus")


def predict(gpus: int, measured: Measured, assumed: Assumed) -> Step:
    """The model. Nothing overlaps: communication follows computation, which is a little pessimistic."""
    inside = gpus <= assumed.gpus_per_host
    bandwidth = 1e9 * (assumed.intra_gigabytes if inside else assumed.inter_gigabytes)
    hop = 1e-6 * (assumed.intra_microseconds if inside else assumed.inter_microseconds)
    levels, others = math.ceil(math.log2(gpus)) if gpus > 1 else 0, gpus - 1
    batch = assumed.batch

    def all_reduce(size: float) -> float:
        """The better of a ring and a tree, as NCCL chooses."""
        ring = 2 * others / gpus * size / bandwidth + 2 * others * hop
        tree = 2 * size / bandwidth * (gpus > 1) + 2 * levels * hop
        return min(ring, tree)

    def all_gather(own: float) -> float:
        return others * own / bandwidth + min(others, 2 * levels) * hop

    def all_to_all(size: float) -> float:
        return (
            others / gpus * size / bandwidth
            + (hop if others else 0.0)
            + others * 1e-6 * assumed.peer_microseconds
        )

    compute = measured.operations_per_pair * batch / (1e12 * assumed.tera_operations * assumed.utilization)
    # tokens there and their gradient back; frames' features and texts there
    negatives = 2 * all_to_all(batch * measured.token_bytes) + 2 * all_to_all(batch * measured.feature_bytes)
    negatives += all_gather(8.0 * (2 * batch + 1)) + measured.plan_seconds[str(gpus)]
    # batch read, loss finite, whether to go on
    agreements = 3 * (all_reduce(4.0) + 1e-6 * assumed.sync_microseconds) if gpus > 1 else 0.0
    # the slowest of so many ranks, each drawn from a normal distribution
    slowest = statistics.NormalDist().inv_cdf(0.5264 ** (1 / gpus)) if gpus > 1 else 0.0
    straggler = compute * assumed.deviation * slowest
    gradients = all_reduce(measured.gradient_bytes)
    features = all_gather(batch * measured.feature_bytes) + all_gather(8.0 * batch)
    host = 1e-3 * assumed.host_milliseconds
    spent = compute + host + gradients + features + negatives + agreements + straggler
    loading = batch * measured.image_core_seconds * assumed.image_scale / assumed.cores_per_gpu
    uneven = math.ceil(assumed.evaluation_items / gpus) / (assumed.evaluation_items / gpus)
    return Step(
        gpus,
        compute,
        host,
        gradients,
        features,
        negatives,
        agreements,
        straggler,
        max(0.0, loading - spent),
        measured.checkpoint_seconds * assumed.disk_factor / assumed.save_every,
        assumed.evaluation_share * compute * uneven,
    )


def table(steps: list[Step], assumed: Assumed) -> str:
    """Milliseconds by part, and efficiency: the step of one GPU over that of N, each with the same work per GPU."""
    names = [field.name for field in fields(Step) if field.name != "gpus"]
    rows = [
        [str(step.gpus)]
        + [f"{1e3 * getattr(step, name):.2f}" for name in names]
        + [
            f"{1e3 * step.total:.1f}",
            f"{step.gpus * assumed.batch / step.total:,.0f}",
            f"{steps[0].total / step.total:.3f}",
        ]
        for step in steps
    ]
    return markdown_table(["GPUs", *names, "step (ms)", "pairs/s", "efficiency"], rows)


def fixed_batch(measured: Measured, assumed: Assumed, pairs: int = 4096) -> str:
    """The same global batch on ever more GPUs: how much sooner a run of so many steps ends."""
    rows, first = [], None
    for gpus in GPUS:
        if pairs // gpus > 256:
            continue
        step = predict(gpus, measured, replace(assumed, batch=pairs // gpus)).total
        first = first or (gpus, step)
        rows.append(
            [str(gpus), str(pairs // gpus), f"{1e3 * step:.1f}", f"{first[1] * first[0] / (step * gpus):.3f}"]
        )
    head = ["GPUs", "pairs per GPU", "step (ms)", f"efficiency against {first[0]}"]
    return markdown_table(head, rows)


def sensitivity(measured: Measured, assumed: Assumed) -> str:
    """Efficiency at 1,024 GPUs when one assumption is twice as bad."""
    worse = {
        "inter_gigabytes": 0.5,
        "inter_microseconds": 2.0,
        "peer_microseconds": 2.0,
        "deviation": 2.0,
        "host_milliseconds": 2.0,
        "utilization": 2.0,
        "batch": 0.5,
        "cores_per_gpu": 0.5,
        "image_scale": 2.0,
        "disk_factor": 2.0,
    }

    def efficiency(settings: Assumed) -> float:
        one, most = (predict(gpus, measured, settings).total for gpus in (1, GPUS[-1]))
        return one / most

    rows = [["as assumed", "", f"{efficiency(assumed):.3f}"]]
    for name, factor in worse.items():
        value = getattr(assumed, name)
        changed = type(value)(value * factor)
        rows.append([name, f"{value} -> {changed}", f"{efficiency(replace(assumed, **{name: changed})):.3f}"])
    return markdown_table(["one changed", "", f"efficiency at {GPUS[-1]:,}"], rows)


def draw(path: Path, steps: list[Step]) -> None:
    """Where a step's time goes on each number of GPUs, as shares of the whole, and the efficiency."""
    from PIL import Image, ImageDraw, ImageFont

    colours = {
        "compute": "#2a6fbb",
        "host": "#7fb2e5",
        "gradients": "#c0392b",
        "features": "#e08e5b",
        "negatives": "#e8c268",
        "agreements": "#8e6bb0",
        "straggler": "#5f6b76",
        "loader": "#3d9970",
        "checkpoint": "#b8d8ba",
        "evaluation": "#b0b7bf",
    }
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    width, height, left, top, tall = 980, 470, 60, 90, 300
    image = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((14, 10), "Predicted step from 1 to 1,024 GPUs, the same work per GPU", "#222222", large)
    canvas.text((14, 36), "height: time of a step, one GPU = 1; number: efficiency", "#777777", small)
    most = max(step.total for step in steps) / steps[0].total
    for share in (0.25, 0.5, 0.75, 1.0):
        y = top + tall - tall * share / most
        canvas.line((left, y, width - 150, y), "#e4e4e4")
        canvas.text((18, y - 9), f"{share:.2f}", "#777777", small)
    pitch = (width - 150 - left) / len(steps)
    for number, step in enumerate(steps):
        x, y = left + pitch * number + 8, top + tall
        for name, colour in colours.items():
            part = tall * getattr(step, name) / steps[0].total / most
            canvas.rectangle((x, y - part, x + pitch - 16, y), colour)
            y -= part
        canvas.text((x + 4, y - 20), f"{steps[0].total / step.total:.2f}", "#222222", small)
        canvas.text((x + 4, top + tall + 6), f"{step.gpus:,}", "#222222", small)
    canvas.text((left, top + tall + 30), "GPUs", "#777777", small)
    for number, (name, colour) in enumerate(reversed(colours.items())):
        y = top + 22 * number
        canvas.rectangle((width - 135, y, width - 121, y + 14), colour)
        canvas.text((width - 113, y - 2), name, "#222222", small)
    image.save(path, optimize=True)


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


def report(steps: list[Step], measured: Measured, assumed: Assumed) -> str:
    assumptions = ", ".join(f"{name} {value:g}" for name, value in asdict(assumed).items())
    return (
        "# Predicted training efficiency, BLIP-base with Aurora prompts, 384 px, bf16\n\n"
        "A model, not a measurement: no GPU was at hand. What it takes from measurements and what it assumes is in "
        "docs/scaling.md. Milliseconds a step; the same work per GPU on every number of them.\n\n"
        + table(steps, assumed)
        + "\n\nThe same global batch of 4,096 pairs:\n\n"
        + fixed_batch(measured, assumed)
        + "\n\nOne assumption twice as bad (for utilization: the GPU twice as fast):\n\n"
        + sensitivity(measured, assumed)
        + f"\n\nMeasured: {measured.operations_per_pair / 1e9:.0f} giga-operations a pair, "
        f"{measured.gradient_bytes / 1e6:.2f} MB of gradients, {measured.token_bytes / 1e3:.0f} kB of tokens an image, "
        f"{1e3 * measured.checkpoint_seconds:.0f} ms a "
        f"checkpoint, {1e3 * measured.image_core_seconds:.2f} ms of one core an image, the plan of the exchange on "
        f"1,024 ranks {1e3 * measured.plan_seconds['1024']:.2f} ms.\n\nAssumed: {assumptions}.\n\n"
        + facts_line(machine_facts(1))
        + "\n"
    )


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
    parser.add_argument("--image", type=int, default=384)
    chosen = parser.parse_args(argv)
    if chosen.count:
        record = count(chosen.image, 2)
        (RESULTS / f"{OPERATIONS}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
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
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What scaling.py writes: results/scaling.md, its figure, and the tables of docs/scaling.md."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from measurement import REPOSITORY, facts_line, machine_facts, markdown_table
from scaling_model import GPUS, Assumed, Measured, Step, efficiency, predict

SHOWN = (1, 8, 16, 64, 256, 1024)
DOCUMENT = REPOSITORY / "docs" / "scaling.md"
BEGIN, END = "<!-- scripts/bench/scaling.py: {} -->", "<!-- end of {} -->"
_COLUMNS = ("gradients", "features", "negatives", "agreements", "straggler")


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

    most = GPUS[-1]
    rows = [["as assumed", "", f"{efficiency(most, measured, assumed):.3f}"]]
    for name, factor in worse.items():
        value = getattr(assumed, name)
        changed = type(value)(value * factor)
        settings = replace(assumed, **{name: changed})
        rows.append([name, f"{value} -> {changed}", f"{efficiency(most, measured, settings):.3f}"])
    return markdown_table(["one changed", "", f"efficiency at {most:,}"], rows)


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
        f"{measured.gradient_bytes / 1e6:.2f} MB of gradients, {measured.exchanged_bytes / 1e3:.0f} kB of negatives "
        f"and {measured.gathered_bytes / 1e3:.1f} kB of features a pair, {1e3 * measured.checkpoint_seconds:.0f} ms a "
        f"checkpoint, {1e3 * measured.image_core_seconds:.2f} ms of one core an image, the plan of the exchange on "
        f"1,024 ranks {1e3 * measured.plan_seconds['1024']:.2f} ms.\n\nAssumed: {assumptions}.\n\n"
        + facts_line(machine_facts(1))
        + "\n"
    )


def parts(record: dict[str, Any]) -> dict[str, str]:
    """What docs/scaling.md has of a result, by the name of the place where it stands."""
    measured, assumed = Measured(**record["measured"]), Assumed(**record["assumed"])
    steps = {step["gpus"]: step for step in record["steps"]}
    rows = []
    for gpus in SHOWN:
        step = steps[gpus]
        cells = [step["compute"] + step["host"], *(step[name] for name in _COLUMNS)]
        cells.append(step["evaluation"] + step["checkpoint"])
        pairs = gpus * assumed.batch / step["total"]
        ends = [f"{1e3 * step['total']:.1f}", f"{pairs:,.0f}", f"{steps[1]['total'] / step['total']:.2f}"]
        rows.append([f"{gpus:,}", *(f"{1e3 * cell:.1f}" for cell in cells), *ends])
    head = [
        "GPUs",
        "compute and host",
        *_COLUMNS,
        "evaluation, checkpoints",
        "step (ms)",
        "pairs/s",
        "efficiency",
    ]
    facts = [
        (
            "operations of a pair, forward and backward, momentum tower included",
            f"{measured.operations_per_pair / 1e9:.0f} billion",
            "counted by torch in a real step (`scaling.py --count`)",
        ),
        (
            "gradients",
            f"{measured.gradient_bytes / 1e6:.2f} MB in fp32; they do not grow with the backbone",
            "the planner; exactly what two ranks send for them is in `step_bytes.md`",
        ),
        (
            "hard negatives of a pair, and their gradients back",
            f"{measured.exchanged_bytes / 1e6:.2f} MB",
            "the planner",
        ),
        ("a pair's contrastive features", f"{measured.gathered_bytes / 1e3:.1f} kB", "the planner"),
        (
            "memory of a GPU at ZeRO 0, no recomputation",
            ", ".join(
                f"{value / 1e9:.1f} GB on {int(gpus):,}" for gpus, value in measured.memory_bytes.items()
            ),
            "the planner, which `memory.md` compares with processes",
        ),
        (
            "planning who sends which rows to whom",
            f"{1e3 * measured.plan_seconds['1024']:.1f} ms on 1,024 ranks",
            "timed with the real function",
        ),
        (
            "a checkpoint, queues included",
            f"{1e3 * measured.checkpoint_seconds:.0f} ms of processor time on rank 0",
            "`overhead.json`",
        ),
        ("loading an image", f"{1e3 * measured.image_core_seconds:.2f} ms of one core", "`loader.json`"),
    ]
    return {
        "steps": markdown_table(head, rows),
        "facts": markdown_table(["measured or counted", "value", "from"], [list(fact) for fact in facts]),
    }


def document(text: str, record: dict[str, Any]) -> str:
    """The text of docs/scaling.md with a result's tables in their places."""
    for name, table in parts(record).items():
        before, _, rest = text.partition(BEGIN.format(name))
        text = (
            f"{before}{BEGIN.format(name)}\n{table}\n{END.format(name)}{rest.partition(END.format(name))[2]}"
        )
    return text

"""mPLUG's fusion encoder, forward and backward, with Aurora prompts at every site against the frozen one.

Base size: 6 layers of width 768, the fourth connected, 577 image tokens (384 px) and 25 text tokens, batch 4, CPU,
fp32, random weights, dropout 0.1 on both sides (layers and prompts), rank 32, query transformation included. Both give
the gradients of image tokens and text states, as parts below them would need in training; with prompts also those of
all that is trained, and the adapter's values are computed anew in each step.

    python scripts/bench/fusion_encoder.py [--quick] [--repeat 3] [--steps 3] [--threads 1]

Aim: <= 1.25 of the frozen one's time. Time is processor time, which a busy machine lengthens less than the clock's;
contenders take turns in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from measurement import (
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

BAR = 1.25
CONTENDERS = ("frozen", "prompts")
BATCH, WORDS, RANK = 4, 25, 32


def setting(quick: bool) -> dict[str, Any]:
    """Of `backbone`; by default the base model."""
    if not quick:
        return {"vision": {"image_size": 384}}
    return {
        "vision": {"image_size": 64, "width": 64, "heads": 2},
        "text": {"width": 64, "heads": 2, "intermediate": 256},
    }


def measure(contender: str, steps: int, threads: int, quick: bool) -> dict[str, Any]:
    """`steps` steps after one that warms up, in this process."""
    import torch
    from torch import nn

    from aurora_ds.backbones.mplug_text import FusionEncoder
    from aurora_ds.config import BackboneConfig, PromptConfig
    from aurora_ds.prompts import attach

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = BackboneConfig.model_validate({"name": "mplug", "head": "vqa", **setting(quick)})
    model, prompts = nn.Module(), None
    model.fusion_encoder = encoder = FusionEncoder(config)
    model.requires_grad_(False).train()
    if contender == "prompts":
        sites, layers = encoder.sites("fusion_encoder"), encoder.query_layers("fusion_encoder")
        prompts = attach(model, sites, PromptConfig(rank=RANK, dropout=0.1), layers)
        prompts.train()
    tokens = (config.vision.image_size // config.vision.patch_size) ** 2 + 1
    image = torch.randn(BATCH, tokens, config.text.width, requires_grad=True)
    text = torch.randn(BATCH, WORDS, config.text.width, requires_grad=True)
    mask = torch.ones(BATCH, WORDS, dtype=torch.int64)
    trained = [] if prompts is None else list(prompts.bank.parameters())

    def step() -> None:
        if prompts is not None:
            prompts.refresh()
        vision, states = encoder(text, mask, encoder.keys(image))
        (vision.square().mean() + states.square().mean()).backward()
        for tensor in (image, text, *trained):
            tensor.grad = None

    step()
    seconds, processor = [], []
    for _ in range(steps):
        start, used = time.perf_counter(), processor_seconds()
        step()
        seconds.append(time.perf_counter() - start)
        processor.append(processor_seconds() - used)
    return {
        "contender": contender,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mb": peak_memory_mb(),
        "trained": sum(parameter.numel() for parameter in trained),
    }


def report(runs: list[dict[str, Any]], facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    def of(contender: str, key: str) -> float:
        own = [run[key] for run in runs if run["contender"] == contender]
        return median([value for each in own for value in (each if isinstance(each, list) else [each])])

    ratios = {key: of("prompts", key) / of("frozen", key) for key in ("seconds", "processor_seconds")}
    rows = [
        [
            contender,
            f"{of(contender, 'seconds'):.2f}",
            f"{of(contender, 'processor_seconds'):.2f}",
            f"{of(contender, 'peak_mb'):.0f}",
            f"{of(contender, 'trained'):,.0f}",
        ]
        for contender in CONTENDERS
    ]
    note = sharing_note(of("frozen", "seconds"), of("frozen", "processor_seconds"), facts["threads"])
    met = ratios["processor_seconds"] <= BAR
    text = (
        "# mPLUG's fusion encoder, forward and backward\n\n"
        f"{(__doc__ or '').split(chr(10) * 2)[1]}\n\n"
        f"{markdown_table(['', 'seconds', 'processor s', 'peak MB', 'trained numbers'], rows)}\n\n"
        f"With prompts over frozen: {ratios['processor_seconds']:.3f} by processor time, {ratios['seconds']:.3f} by "
        f"the clock; aim {BAR}: {'met' if met else 'MISSED'}. {len(runs) // 2} processes each, in turn, "
        f"{len(runs[0]['seconds'])} timed steps in each; medians.\n\n{note}{facts_line(facts)}"
    )
    return text, ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps, options.threads, options.quick)))
        return
    runs = []
    for _ in range(options.repeat):
        for contender in CONTENDERS:
            arguments = ["--measure", contender, "--steps", str(options.steps)]
            arguments += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
            runs.append(fresh_process("fusion_encoder.py", arguments, options.threads))
            print(f"{contender}: {median(runs[-1]['processor_seconds']):.2f} processor s a step", flush=True)
    facts = machine_facts(options.threads)
    text, ratios = report(runs, facts)
    record = {"facts": facts, "summary": ratios, "runs": runs}
    write_results("fusion_encoder", record, text, options.quick)


if __name__ == "__main__":
    main()

"""The expert layer, forward and backward: sorted rows against the plain dispatch with one-hot tensors, same weights.

S = 4096 tokens (8 samples of 512), width 768, hidden 3072, two experts per token, fp32. Plain: as EVE's published
layer computes it, written from its formulas: one-hot (tokens, experts, capacity) tensors from cumulative sums, two
einsums with them, and one feed-forward per expert on its padded capacity. Ours: aurora_ds.backbones.experts, routed
as published (same experts, same dropped tokens), and as it is by default, where nothing is dropped.
What grows with the number of experts is the weights: at 128, 0.6 billion of them, an expert has 64 rows, so its
products are of few rows, and gradients as large as the weights are added up. By the profiler, the products are 9 tenths
of the time at 32 and at 128 experts alike, and published routing computes 6 % fewer rows at 128, those that it drops.

Time is processor time, which a busy machine lengthens less than the clock's.

Memory is the largest resident size during the step above that before it, without the gradients of the weights, which
are the same for all and are there before: activations, routing, and what they cost in the backward pass.

    python scripts/bench/experts.py [--quick] [--repeat 3] [--threads 1]

Aim: time <= 0.5 and memory <= 0.5 of plain at 32 experts; time grows with tokens, not with experts.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import threading
import time
from pathlib import Path
from typing import Any

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    processor_seconds,
    sharing_note,
    write_results,
)

TIME_BAR, MEMORY_BAR = 0.5, 0.5
CONTENDERS = ("plain", "routed as published", "aurora_ds")
SAMPLES = 8


def setting(quick: bool) -> dict[str, int]:
    return (
        {"tokens": 256, "width": 64, "hidden": 256}
        if quick
        else {"tokens": 4096, "width": 768, "hidden": 3072}
    )


def plain_layer(tokens, gate, feed_forwards):
    """Published formulas with dense one-hot tensors: tokens (S, D) -> (S, D), load-balance loss."""
    import torch
    from torch.nn import functional as F

    count, experts = len(tokens), len(feed_forwards)
    capacity = max(math.ceil(2 * count / experts), 4)
    logits = F.linear(tokens, gate)
    probabilities = logits.softmax(dim=1)
    first = F.one_hot(probabilities.argmax(dim=1), experts)
    noisy = (logits - torch.empty_like(logits).exponential_().log()).masked_fill(first.bool(), -torch.inf)
    second = F.one_hot(noisy.argmax(dim=1), experts)
    place_first = first.cumsum(0) - 1
    place_second = second.cumsum(0) - 1 + first.sum(0, keepdim=True)
    balance = (probabilities.mean(0) * first.float().mean(0)).mean() * experts * experts
    first, second = first * (place_first < capacity), second * (place_second < capacity)
    slot_first, slot_second = (place_first * first).sum(1), (place_second * second).sum(1)
    weight_first, weight_second = (probabilities * first).sum(1), (probabilities * second).sum(1)
    total = (weight_first + weight_second).clamp(min=torch.finfo(logits.dtype).eps)
    combine = torch.einsum(
        "se,sc->sec", (weight_first / total)[:, None] * first, F.one_hot(slot_first, capacity).float()
    ) + torch.einsum(
        "se,sc->sec", (weight_second / total)[:, None] * second, F.one_hot(slot_second, capacity).float()
    )
    dispatched = torch.einsum("sec,sm->ecm", combine.bool().to(tokens.dtype), tokens)
    outputs = []
    for feed_forward, rows in zip(feed_forwards, dispatched, strict=True):
        hidden = feed_forward.fc1(rows)
        outputs.append(feed_forward.fc2(hidden * torch.sigmoid(1.702 * hidden)))
    return torch.einsum("sec,ecm->sm", combine, torch.stack(outputs)), balance


class PeakMemory:
    """Largest resident size of this process while active, in MiB, from a thread that looks every few milliseconds."""

    def __enter__(self) -> PeakMemory:
        self._page = resource.getpagesize() / 2**20
        self.before = self.largest = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _now(self) -> float:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * self._page

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.largest = max(self.largest, self._now())


def measure(contender: str, experts: int, tokens: int, threads: int, quick: bool) -> dict[str, Any]:
    """One step, after one on few tokens that makes the gradients' memory."""
    import torch

    from aurora_ds.backbones.experts import ExpertFeedForward
    from aurora_ds.config.eve import ExpertConfig

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    size = setting(quick)
    config = ExpertConfig(experts=experts, modality_embedding=False)
    layer = ExpertFeedForward(size["width"], size["hidden"], config, contender != "aurora_ds").train()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    moe = layer.moe

    def step(count: int) -> None:
        x = torch.randn(SAMPLES, count // SAMPLES, size["width"], requires_grad=True)
        if contender == "plain":
            out, balance = plain_layer(x.flatten(0, 1), moe.gate.wg.weight, moe.experts.experts)
        else:
            out, routing = layer(x, 0)
            balance = routing.balance
        (out.square().mean() + 0.001 * balance).backward()

    step(16 * SAMPLES)
    with PeakMemory() as memory:
        start, processor = time.perf_counter(), processor_seconds()
        step(tokens)
        seconds, processor = time.perf_counter() - start, processor_seconds() - processor
    return {
        "contender": contender,
        "experts": experts,
        "tokens": tokens,
        "seconds": seconds,
        "processor_seconds": processor,
        "memory_mb": memory.largest - memory.before,
    }


def cases(tokens: int) -> list[tuple[str, int, int]]:
    """(contender, experts, tokens), every one of which is measured in turn."""
    listed = [(contender, experts, tokens) for experts in (8, 32, 128) for contender in CONTENDERS]
    return listed + [("aurora_ds", 32, tokens // 2), ("aurora_ds", 32, tokens // 4)]


def report(runs: list[dict[str, Any]], facts: dict[str, Any], tokens: int) -> tuple[str, dict[str, Any]]:
    def of(key: str, case: tuple[str, int, int]) -> float:
        return median([r[key] for r in runs if (r["contender"], r["experts"], r["tokens"]) == case])

    rows, summary = [], {}
    for case in cases(tokens):
        contender, experts, count = case
        seconds, processor, memory = (of(key, case) for key in ("seconds", "processor_seconds", "memory_mb"))
        base = ("plain", experts, count)
        ratios = ["", ""]
        if count == tokens:
            time_ratio = processor / of("processor_seconds", base)
            memory_ratio = memory / of("memory_mb", base)
            ratios = [f"{time_ratio:.2f}", f"{memory_ratio:.2f}"]
            summary[f"{contender}, {experts} experts"] = {"time": time_ratio, "memory": memory_ratio}
        rows.append(
            [
                str(experts),
                str(count),
                contender,
                f"{seconds:.2f}",
                f"{processor:.2f}",
                ratios[0],
                f"{memory:.0f}",
            ]
            + ratios[1:]
        )
    measured = [(run["contender"], run["experts"], run["tokens"]) for run in runs]
    least = min(measured.count(case) for case in cases(tokens))
    ours = summary["aurora_ds, 32 experts"]
    met = ours["time"] <= TIME_BAR and ours["memory"] <= MEMORY_BAR
    head = [
        "experts",
        "tokens",
        "layer",
        "seconds",
        "processor s",
        "of plain",
        "MiB beyond weights",
        "of plain",
    ]
    seconds = sum(r["seconds"] for r in runs)
    note = sharing_note(seconds, sum(r["processor_seconds"] for r in runs), facts["threads"])
    text = (
        "# The expert layer, forward and backward\n\n"
        f"{(__doc__ or '').split(chr(10) * 2)[1]}\n\n{markdown_table(head, rows)}\n\n{note}"
        f"At 32 experts: time {ours['time']:.2f} (aim {TIME_BAR}), memory {ours['memory']:.2f} (aim {MEMORY_BAR}): "
        f"{'met' if met else 'MISSED'}. Medians of {least} processes each or more.\n\n{facts_line(facts)}\n"
    )
    return text, summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        contender, experts, tokens = json.loads(options.one)
        print(json.dumps(measure(contender, experts, tokens, options.threads, options.quick)))
        return
    tokens = setting(options.quick)["tokens"]
    runs = []
    for _ in range(options.repeat):
        for case in cases(tokens):
            arguments = ["--one", json.dumps(case), "--threads", str(options.threads)]
            arguments += ["--quick"] if options.quick else []
            runs.append(fresh_process("experts.py", arguments, options.threads))
            print(runs[-1], flush=True)
    facts = machine_facts(options.threads)
    text, summary = report(runs, facts, tokens)
    write_results("experts", {"facts": facts, "summary": summary, "runs": runs}, text, options.quick)


if __name__ == "__main__":
    main()

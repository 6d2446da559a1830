"""Bytes that one rank sends in an optimizer step, rings assumed (an all-reduce of S bytes sends 2·S·(W-1)/W).

- gradients of the trained parameters alone: in fp32 by an all-reduce up to stage 2 (DeepSpeed reduces ranks' parts of a
  bucket together there), a reduce-scatter at stage 3.
- from stage 1 on the updated weights of the trained are gathered again, in the model's precision.
- stage 3 gathers all large weights, frozen ones too, in every forward and again for every backward; small
  ones once a step.
- experts that ranks share: their gradients and weights travel between ranks that hold the same ones, and the tokens to
  the ranks of their experts and back, forward and backward; as many to each rank, since nobody knows the gates.
- what the task exchanges itself: features for the contrastive loss, image tokens of hard negatives, their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from aurora_ds.plan.fetching import fetched
from aurora_ds.plan.memory import BYTES
from aurora_ds.plan.trace import Trace
from aurora_ds.plan.variants import Variant


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in one optimizer step. tokens: to experts. between_hosts: the part of `weights` and
    `tokens` that leaves the host, or may."""

    gradients: float
    weights: float
    task: float
    tokens: float
    between_hosts: float

    @property
    def total(self) -> float:
        return self.gradients + self.weights + self.task + self.tokens

    def record(self) -> dict[str, float]:
        return {
            "gradients": round(self.gradients),
            "weights": round(self.weights),
            "task": round(self.task),
            "tokens": round(self.tokens),
            "between_hosts": round(self.between_hosts),
            "total": round(self.total),
        }


def traffic(
    trace: Trace, variant: Variant, ranks: int, precision: str, accumulation: int = 1, node: int = 8
) -> Traffic:
    """What a rank of `ranks`, `node` of them on a host, sends in a step."""
    if ranks == 1:
        return Traffic(0.0, 0.0, 0.0, 0.0, 0.0)
    size, part = BYTES[precision], (ranks - 1) / ranks
    travelling = trace.trained - trace.share(ranks)  # a ring sends an element to all but one of its holders
    reduced = 4 * travelling
    gradients = reduced * (2 if variant.stage < 3 else 1)
    # from stage 2 on each micro-batch is reduced by itself
    gradients *= accumulation if variant.stage >= 2 else 1
    if variant.quantized:
        gradients /= 8
    weights = size * travelling if variant.stage in (1, 2) else 0.0
    if variant.stage == 3:
        weights = fetched(trace, size).elements * size * part * accumulation / (2 if variant.quantized else 1)
    several = ranks > node
    outside = 0.0 if variant.hpz or not several else weights
    tokens = trace.experts.sent * accumulation
    if several and node % trace.experts.ranks:
        outside += tokens
    return Traffic(gradients, weights, trace.sent * accumulation, tokens, outside)

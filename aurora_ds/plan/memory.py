"""Bytes that one rank holds under a DeepSpeed setting, from the trace of a step: what stays, and the fullest moment.

T trained elements of N, p bytes each in the model's precision, W ranks (Rajbhandari et al., ZeRO, 2020, §3 and §5;
DeepSpeed 0.19 for what it keeps beside that):

- weights p·N; at stage 3 p·N/W, and small ones whole. Frozen weights have no copy in another precision anywhere.
- optimizer: 8·T of moments, and 4·T of fp32 masters where the parameters are not themselves that; /W from stage 1 on,
  where also fp32 has masters.
- experts that ranks share (`train.expert_parallel` N): 1/N of them in N and T; W/N ranks hold the same ones and divide
  their optimizer. All of them are there again while the run evaluates.
- gradients p·T while they are reduced, with a flat copy of them and, in 16 bits, an fp32 one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aurora_ds.plan.fetching import fetched, small_elements
from aurora_ds.plan.trace import Trace
from aurora_ds.plan.variants import Variant
from aurora_ds.runtime.engine import bucket_elements

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# CUDA's context, cuBLAS' and cuDNN's workspace, NCCL's buffers, and what the allocator cannot use: not measured here.
GPU_OVERHEAD = 1.0e9
_CPU, _FAST = "cpu", ("cpu", "nvme")


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. weights, optimizer, beside stay over the steps; activations, gathered, gradients and workspace
    are the most that is added, not all at once. peak: the fullest moment. host: in the CPU's memory (offload),
    disk: on NVMe."""

    weights: float
    optimizer: float
    beside: float
    activations: float
    gathered: float
    gradients: float
    workspace: float
    peak: float
    host: float
    disk: float

    def record(self) -> dict[str, float]:
        return {name: round(value) for name, value in asdict(self).items()}


def memory(
    trace: Trace,
    variant: Variant,
    ranks: int,
    precision: str,
    device: str,
    accumulation: int = 1,
    node: int = 8,
) -> Memory:
    """What a rank of `ranks` needs under `variant`. `node`: ranks per host. `device`: cpu or cuda."""
    size, low = BYTES[precision], precision != "fp32"
    trained, stage = trace.trained, variant.stage
    own = trace.share(ranks) if stage >= 1 else trained
    bucket = bucket_elements(trained)

    optimizer = (12 if low or stage else 8) * own
    weights, gathered, kept = size * trace.total, size * trace.experts.absent, 0.0
    if stage == 3:
        weights = size * (trace.total / ranks + small_elements(trace))
        if variant.hpz:
            weights += size * trace.total / min(node, ranks)
        step = fetched(trace, size, device)
        gathered = size * step.most
        kept = size * own + 4 * bucket  # its gradients' shares and its bucket stay
    if not stage:
        reducing = size * trained + size * trained + (4 * trained if low else 0)
    else:
        flat = min(trained, bucket)
        reducing = size * trained + size * flat + max(4 * flat if low else 0, size * own)
    accumulated = 0.0 if accumulation == 1 else size * (own if stage >= 2 else trained)

    largest = max((count for count, is_trained in trace.parameters if is_trained), default=0)
    if device == _CPU and not stage:
        updating = 8 * largest  # one parameter after the other
    else:
        updating = (8 if stage else 4) * own
    gradients = size * trained + (4 * trained if low else 0) if not stage else 4 * own
    host = disk = 0.0
    if variant.optimizer in _FAST:
        moved = optimizer + 4 * own
        host, disk = (moved, 0.0) if variant.optimizer == _CPU else (0.0, moved)
        optimizer, updating = 0.0, 0.0
    if variant.weights in _FAST:
        moved = size * trace.total / ranks
        weights -= moved
        host, disk = (host + moved, disk) if variant.weights == _CPU else (host, disk + moved)

    stays = weights + optimizer + trace.beside + kept + accumulated
    computing = trace.activations if stage < 3 else step.peak
    evaluating = size * trace.experts.absent
    moments = (computing, reducing, gradients + updating, evaluating)
    workspace = GPU_OVERHEAD if device == "cuda" else 0.0
    return Memory(
        weights,
        optimizer,
        trace.beside,
        trace.activations,
        gathered,
        max(reducing, gradients) + kept + accumulated,
        workspace,
        stays + max(moments) + workspace,
        host,
        disk,
    )

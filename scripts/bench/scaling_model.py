"""The model behind scaling.py: seconds of one training step on so many GPUs, from what was measured and assumed."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


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
    """What was, or what the planner says. Bytes are per GPU and step."""

    operations_per_pair: float
    gradient_bytes: float
    exchanged_bytes: (
        float  # for one pair, of what goes to single ranks: hard negatives, and their gradients back
    )
    gathered_bytes: float  # for one pair, of what goes to all ranks: contrastive features
    memory_bytes: dict[str, float]  # by number of GPUs, of one GPU at stage 0
    plan_seconds: dict[str, float]  # by number of ranks, both exchanges
    checkpoint_seconds: float
    image_core_seconds: float


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
    # tokens there and their gradient back, texts and masks there, in four calls; who wants which, in one
    negatives = 4 * all_to_all(batch * measured.exchanged_bytes / 4)
    negatives += all_gather(0.0) + measured.plan_seconds[str(gpus)]
    # batch read, loss finite, whether to go on: three flags in one call
    agreements = all_reduce(12.0) + 1e-6 * assumed.sync_microseconds if gpus > 1 else 0.0
    # the slowest of so many ranks, each drawn from a normal distribution
    slowest = statistics.NormalDist().inv_cdf(0.5264 ** (1 / gpus)) if gpus > 1 else 0.0
    straggler = compute * assumed.deviation * slowest
    gradients = all_reduce(measured.gradient_bytes)
    features = all_gather(batch * measured.gathered_bytes) + all_gather(0.0)  # and whose they are
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


def efficiency(gpus: int, measured: Measured, assumed: Assumed) -> float:
    """The step of one GPU over that of so many."""
    return predict(1, measured, assumed).total / predict(gpus, measured, assumed).total

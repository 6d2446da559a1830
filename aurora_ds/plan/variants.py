"""The settings that are compared: one for each file of ds_configs that differs in where things lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A DeepSpeed setting. `hpz`: ranks of a host share a second copy of the weights (ZeRO++). `quantized`: weights
    travel in 8 bits, gradients in 4. `optimizer`, `weights`: where these lie: gpu, cpu or nvme."""

    name: str
    stage: int
    optimizer: str = "gpu"
    weights: str = "gpu"
    hpz: bool = False
    quantized: bool = False

    @property
    def file(self) -> str:
        return f"ds_configs/{self.name}.json"


# In the order in which they are preferred: what is simpler and sends less comes first.
VARIANTS = (
    Variant("zero0", 0),
    Variant("zero1", 1),
    Variant("zero2", 2),
    Variant("zero2_offload", 2, optimizer="cpu"),
    Variant("zero3", 3),
    Variant("zero3_hpz", 3, hpz=True),
    Variant("zero3_zeropp", 3, hpz=True, quantized=True),
    Variant("zero3_offload", 3, optimizer="cpu", weights="cpu"),
    Variant("zero3_nvme", 3, optimizer="nvme", weights="nvme"),
)
# zero3*.json set them: with DeepSpeed's own 1e9 and 5e7 a model below a billion parameters is never let go.
PREFETCH = 5_000_000
PERSIST = 100_000
MAX_LIVE = 50_000_000
TUNED_STAGE_3: dict[str, Any] = {
    "stage3_prefetch_bucket_size": PREFETCH,
    "stage3_param_persistence_threshold": PERSIST,
    "stage3_max_live_parameters": MAX_LIVE,
    "stage3_max_reuse_distance": 0,
}

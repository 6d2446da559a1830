"""What DeepSpeed 0.19's offload to NVMe would do without a word, kept from happening."""

from __future__ import annotations

from typing import Any

from torch import nn

from aurora_ds.errors import AuroraError

_ALIGNED = 128  # elements of four bytes: a disk is read past the system's cache in blocks of 512 bytes
_ON_DISK = 2**18  # elements of a gradient's share from which on it goes to the disk


def check_weights(precision: str, zero: dict[str, Any], knows_fp16: bool) -> None:
    """Raises AuroraError for fp32 weights on NVMe where the device does not know fp16: DeepSpeed writes those in bf16
    there, whatever the model's precision is. `zero`: the section `zero_optimization`."""
    if _on_disk(zero, "param") and precision == "fp32" and not knows_fp16:
        raise AuroraError(
            "offload_param.device nvme would round the weights to bf16 on this device, and train.precision is fp32. "
            'Use train.precision=bf16, a GPU, or "device": "cpu" for offload_param; offload_optimizer may stay on nvme.'
        )


def in_order(parameters: list[nn.Parameter], zero: dict[str, Any], ranks: int) -> list[nn.Parameter]:
    """The parameters of a group, those first whose share on a rank ends at a block's border. Gradients lie one after
    the other, and one that comes back from a disk to any other place is not what went there.

    Raises AuroraError where order does not help: for a second large parameter whose share is no number of blocks."""
    if not _on_disk(zero, "optimizer"):
        return parameters
    shares = {id(each): -(-each.numel() // ranks) for each in parameters}
    ordered = sorted(parameters, key=lambda each: (shares[id(each)] % _ALIGNED != 0, -each.numel()))
    place = 0
    for parameter in ordered:
        share = shares[id(parameter)]
        if share >= _ON_DISK and place % _ALIGNED:
            raise AuroraError(
                f"offload_optimizer.device nvme cannot hold the gradient of a parameter of shape "
                f"{tuple(parameter.shape)} on {ranks} ranks: its share, and that of another large one, is no multiple "
                f'of {_ALIGNED} numbers, and DeepSpeed would read it back wrong. Use "device": "cpu" '
                "(ds_configs/zero3_offload.json), or another number of ranks."
            )
        place += share
    return ordered


def _on_disk(zero: dict[str, Any], what: str) -> bool:
    return (zero.get(f"offload_{what}") or {}).get("device") == "nvme"

"""W <- W + s·ΔW in place, for inference: ΔW = Σ_i A_i U per input block i, added in fp32 and rounded once.

Shapes as in prompted_linear.py. Cost: 2·d_out·d_in·R FLOPs, W read and written once; ΔW is not stored by the Triton
kernel. Subtracting the update again would not give back W's bits; who wants those keeps a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_ds.kernels import choice


def update(down: Tensor, mix: Tensor, inputs: int) -> Tensor:
    """ΔW (d_out, inputs·w_in) from U (R, w_in) and A (d_out, inputs·R), in fp32 or wider."""
    wide = torch.promote_types(down.dtype, torch.float32)
    blocks = mix.to(wide).unflatten(1, (inputs, down.shape[0]))  # (d_out, inputs, R)
    return torch.einsum("oir,rd->oid", blocks, down.to(wide)).flatten(1)


@torch.library.custom_op("aurora_ds::merge", mutates_args=("weight",))
def _fused(weight: Tensor, down: Tensor, mix: Tensor, inputs: int, scale: float) -> None:
    if not choice.triton_runs_on(weight.device.type):
        weight.copy_(weight + scale * update(down, mix, inputs))
        return
    from aurora_ds.kernels.gpu import merging

    merging.merge(weight, down, mix, inputs, scale)


@_fused.register_fake
def _(weight, down, mix, inputs, scale):
    return None


@torch.no_grad()
def merge(weight: Tensor, down: Tensor, mix: Tensor, inputs: int = 1, scale: float = 1.0) -> None:
    """Add scale·ΔW to W (d_out, inputs·w_in) in place; U (R, w_in) and A (d_out, inputs·R) may have another dtype."""
    if choice.path_for(weight, weight, down, inputs) == "triton":
        _fused(weight, down, mix, inputs, scale)
    else:
        weight.copy_(weight + scale * update(down, mix, inputs))

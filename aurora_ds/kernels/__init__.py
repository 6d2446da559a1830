"""The fused operations of the method: PyTorch twins, and Triton kernels in `gpu/`. Imports torch and triton only."""

from aurora_ds.kernels.low_rank import low_rank
from aurora_ds.kernels.merge import merge, update
from aurora_ds.kernels.norm_low_rank import norm_low_rank
from aurora_ds.kernels.philox import draw_seed, dropout_mask
from aurora_ds.kernels.prompted_linear import dense_mix, prompted_linear
from aurora_ds.kernels.prompted_linear_from import prompted_linear_from
from aurora_ds.kernels.reconstruct import Plan, reconstruct

__all__ = [
    "Plan",
    "dense_mix",
    "draw_seed",
    "dropout_mask",
    "low_rank",
    "merge",
    "norm_low_rank",
    "prompted_linear",
    "prompted_linear_from",
    "reconstruct",
    "update",
]

"""The fused operations of the method: PyTorch twins, and Triton kernels in `gpu/`. Imports torch and triton only."""

from aurora_ds.kernels.philox import draw_seed, dropout_mask
from aurora_ds.kernels.prompted_linear import prompted_linear

__all__ = ["draw_seed", "dropout_mask", "prompted_linear"]

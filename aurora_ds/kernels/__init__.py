"""The fused operations of the method and their PyTorch twins. Imports torch (and later triton) only."""

from aurora_ds.kernels.prompted_linear import prompted_linear

__all__ = ["prompted_linear"]

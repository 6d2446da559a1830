"""Tile products, with fp32 sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from aurora_ds.kernels.gpu.launch import target


def precision() -> str:
    """How fp32 tiles are multiplied: as torch is set to multiply fp32 matrices. `widened`: as fp32, whatever they are,
    because Triton's interpreter keeps bfloat16 as bare bits and would multiply those."""
    if target() == "interpreter":
        return "widened"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """a (m, k) times b (k, n), added to total (m, n) fp32."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)

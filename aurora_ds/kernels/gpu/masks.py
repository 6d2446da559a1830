"""The dropout mask of philox.py, made inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from aurora_ds.kernels import philox

ROUNDS = tl.constexpr(philox.ROUNDS)
UNUSED_BITS = tl.constexpr(32 - philox.BITS)


@triton.jit
def kept(seed, rows, first, groups, threshold, WIDTH: tl.constexpr):
    """Whether the elements (rows, first … first+WIDTH-1) are kept; `groups` = ⌈R/4⌉, `first` a multiple of 4."""
    quads = first // 4 + tl.arange(0, WIDTH // 4)
    counters = rows.to(tl.int64)[:, None] * groups + quads[None, :]
    a, b, c, d = tl.randint4x(seed, counters, ROUNDS)
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return (words.to(tl.uint32, bitcast=True) >> UNUSED_BITS).to(tl.int32) >= threshold

"""W <- W + s·ΔW in one pass over W. Formula: ../merge.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aurora_ds.kernels.gpu.dots import multiply_add, precision
from aurora_ds.kernels.gpu.launch import launch
from aurora_ds.kernels.gpu.tiles import options, rank_tile

TILE = 64


@triton.jit
def merge_kernel(
    weight,
    down,
    mix,
    scale,
    w_row,
    w_column,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,  # of one input block
    INPUTS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
):
    """weight[n, i·WIDTH + k] += s·Σ_r mix[n, i·RANK + r] down[r, k]."""
    per_block: tl.constexpr = (WIDTH + TILE - 1) // TILE
    block = tl.program_id(1) // per_block
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) % per_block * TILE + tl.arange(0, TILE)
    inside_rows, inside_columns = rows < HEIGHT, columns < WIDTH
    total = tl.zeros((TILE, TILE), tl.float32)
    for first in tl.static_range(0, RANK, RANKS):
        ranks = first + tl.arange(0, RANKS)
        inside = ranks < RANK
        a_tile = tl.load(
            mix + rows[:, None] * (INPUTS * RANK) + (block * RANK + ranks)[None, :],
            mask=inside_rows[:, None] & inside[None, :],
            other=0.0,
        )
        u_tile = tl.load(
            down + ranks[:, None] * WIDTH + columns[None, :],
            mask=inside[:, None] & inside_columns[None, :],
            other=0.0,
        )
        total = multiply_add(a_tile, u_tile, total, PRECISION)
    at = weight + rows[:, None] * w_row + (block * WIDTH + columns)[None, :] * w_column
    inside_tile = inside_rows[:, None] & inside_columns[None, :]
    merged = tl.load(at, mask=inside_tile, other=0.0).to(tl.float32) + scale * total
    tl.store(at, merged.to(weight.dtype.element_ty), mask=inside_tile)


def merge(weight: Tensor, down: Tensor, mix: Tensor, inputs: int, scale: float) -> None:
    """Add scale·ΔW to `weight`, whatever its strides."""
    rank, width = down.shape
    grid = (triton.cdiv(weight.shape[0], TILE), triton.cdiv(width, TILE) * inputs)
    launch(
        merge_kernel,
        grid,
        weight,
        down.contiguous(),
        mix.contiguous(),
        scale,
        *weight.stride(),
        HEIGHT=weight.shape[0],
        WIDTH=width,
        INPUTS=inputs,
        RANK=rank,
        PRECISION=precision(),
        TILE=TILE,
        RANKS=rank_tile(rank, mix.dtype),
        **options(8, 2),
    )

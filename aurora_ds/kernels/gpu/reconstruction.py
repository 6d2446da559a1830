"""A_c = V G_cᵀ for all mode columns of a model in one launch, and both gradients. Formulas: ../reconstruct.py.

| kernel | computes | FLOPs a column |
|---|---|---|
| blocks | A_c = V G_cᵀ, one program per column, row tile and rank tile | 2·w·R² |
| slice_gradient | dG_c = dA_cᵀ V, one program per column and pair of rank tiles | 2·w·R² |
| up_gradient | dV = Σ_c dA_c G_c, in parts of a fixed number of columns | 2·w·R² |
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aurora_ds.kernels.gpu.dots import multiply_add, precision
from aurora_ds.kernels.gpu.launch import launch
from aurora_ds.kernels.gpu.tiles import options, rank_tile
from aurora_ds.kernels.reconstruct import Plan

ROWS = 64  # of V in a tile
PART = 16  # columns that one program of up_gradient adds up


@triton.jit
def blocks_kernel(
    up,
    slices,
    table,
    out,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """out[offset + n·step + j] = Σ_s up[start + n, s] slices[c, j, s]; table (c): start, width, offset, step."""
    column = tl.program_id(0)
    start, width = tl.load(table + column * 4), tl.load(table + column * 4 + 1)
    offset, step = tl.load(table + column * 4 + 2), tl.load(table + column * 4 + 3)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mine = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    inside_rows, inside_mine = rows < width, mine < RANK
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for first in tl.static_range(0, RANK, RANKS):
        ranks = first + tl.arange(0, RANKS)
        inside = ranks < RANK
        v_tile = tl.load(
            up + (start + rows)[:, None] * RANK + ranks[None, :],
            mask=inside_rows[:, None] & inside[None, :],
            other=0.0,
        )
        g_tile = tl.load(
            slices + column * RANK * RANK + mine[None, :] * RANK + ranks[:, None],
            mask=inside[:, None] & inside_mine[None, :],
            other=0.0,
        )
        total = multiply_add(v_tile, g_tile, total, PRECISION)
    tl.store(
        out + offset + rows[:, None] * step + mine[None, :],
        total.to(out.dtype.element_ty),
        mask=inside_rows[:, None] & inside_mine[None, :],
    )


@triton.jit
def slice_gradient_kernel(
    gradient,
    up,
    table,
    out,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """out[c, j, s] = Σ_n gradient[offset + n·step + j] up[start + n, s], in the order of n."""
    column = tl.program_id(0)
    start, width = tl.load(table + column * 4), tl.load(table + column * 4 + 1)
    offset, step = tl.load(table + column * 4 + 2), tl.load(table + column * 4 + 3)
    mine = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    theirs = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    inside_mine, inside_theirs = mine < RANK, theirs < RANK
    total = tl.zeros((RANKS, RANKS), tl.float32)
    for first in range(0, width, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = rows < width
        d_tile = tl.load(
            gradient + offset + rows[None, :] * step + mine[:, None],
            mask=inside[None, :] & inside_mine[:, None],
            other=0.0,
        ).to(tl.float32)
        v_tile = tl.load(
            up + (start + rows)[:, None] * RANK + theirs[None, :],
            mask=inside[:, None] & inside_theirs[None, :],
            other=0.0,
        )
        total = multiply_add(d_tile, v_tile, total, PRECISION)
    tl.store(
        out + column * RANK * RANK + mine[:, None] * RANK + theirs[None, :],
        total,
        mask=inside_mine[:, None] & inside_theirs[None, :],
    )


@triton.jit
def up_gradient_kernel(
    gradient,
    slices,
    table,
    order,
    tiles,
    out,
    height,
    RANK: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """out[part, start + n, s] = Σ_c Σ_j gradient[offset_c + n·step_c + j] slices[c, j, s] over the part's columns.

    tiles (row tiles, 3): first row within V, and where its columns begin and end in `order`, which lists the columns
    by V."""
    tile = tl.program_id(0)
    first_row = tl.load(tiles + tile * 3)
    begin, end = tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    any_column = tl.load(order + begin)
    start, width = tl.load(table + any_column * 4), tl.load(table + any_column * 4 + 1)
    rows = first_row + tl.arange(0, ROWS)
    mine = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    inside_rows, inside_mine = rows < width, mine < RANK
    part = tl.program_id(2)
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for place in range(begin + part * PART, tl.minimum(begin + part * PART + PART, end)):
        column = tl.load(order + place)
        offset, step = tl.load(table + column * 4 + 2), tl.load(table + column * 4 + 3)
        for first in tl.static_range(0, RANK, RANKS):
            ranks = first + tl.arange(0, RANKS)
            inside = ranks < RANK
            d_tile = tl.load(
                gradient + offset + rows[:, None] * step + ranks[None, :],
                mask=inside_rows[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            g_tile = tl.load(
                slices + column * RANK * RANK + ranks[:, None] * RANK + mine[None, :],
                mask=inside[:, None] & inside_mine[None, :],
                other=0.0,
            )
            total = multiply_add(d_tile, g_tile, total, PRECISION)
    tl.store(
        out + part * height * RANK + (start + rows)[:, None] * RANK + mine[None, :],
        total,
        mask=inside_rows[:, None] & inside_mine[None, :],
    )


@functools.lru_cache(maxsize=8)
def _tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """The columns, their order by V, the row tiles of all V, and the most columns that a V has; int64 on the device."""
    starts = [sum(plan.distinct[:i]) for i in range(len(plan.distinct))]
    columns = [(starts[number], width, offset, step) for number, width, offset, step in plan.rows]
    order = sorted(range(len(columns)), key=lambda c: (plan.rows[c][0], c))
    tiles, begin, most = [], 0, 0
    for number, width in enumerate(plan.distinct):
        end = begin + sum(row[0] == number for row in plan.rows)
        tiles += [(first, begin, end) for first in range(0, width, ROWS)]
        begin, most = end, max(most, end - begin)
    as_table = functools.partial(torch.tensor, dtype=torch.int64, device=device)
    return as_table(columns), as_table(order), as_table(tiles), most


def _meta(rank: int) -> dict[str, Any]:
    return {
        "RANK": rank,
        "PRECISION": precision(),
        "ROWS": ROWS,
        "RANKS": rank_tile(rank, torch.float32),
        **options(8, 2),
    }


def forward(up: Tensor, slices: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """All A in one buffer of `dtype`."""
    columns, *_ = _tables(plan, up.device)
    out = up.new_empty(sum(height * across for height, across in plan.shapes), dtype=dtype)
    across = triton.cdiv(plan.rank, rank_tile(plan.rank, torch.float32))
    grid = (len(columns), triton.cdiv(plan.distinct[-1], ROWS), across)
    launch(blocks_kernel, grid, up.contiguous(), slices.contiguous(), columns, out, **_meta(plan.rank))
    return out


def backward(gradient: Tensor, up: Tensor, slices: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Gradients of V, one above the other, and of G."""
    columns, order, tiles, most = _tables(plan, up.device)
    up, slices = up.contiguous(), slices.contiguous()
    across, meta = triton.cdiv(plan.rank, rank_tile(plan.rank, torch.float32)), _meta(plan.rank)
    d_slices = torch.empty_like(slices)
    launch(slice_gradient_kernel, (len(columns), across, across), gradient, up, columns, d_slices, **meta)
    # a V with fewer columns than another leaves its last parts untouched
    d_up = up.new_zeros(triton.cdiv(most, PART), *up.shape)
    launch(
        up_gradient_kernel,
        (len(tiles), across, len(d_up)),
        gradient,
        slices,
        columns,
        order,
        tiles,
        d_up,
        up.shape[0],
        PART=PART,
        **meta,
    )
    return d_up.sum(0), d_slices

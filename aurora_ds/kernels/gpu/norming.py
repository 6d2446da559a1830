"""LayerNorm with the skinny product in its epilogue, and its backward pass. Formulas and costs: ../norm_low_rank.py.

A program has a tile of whole rows and goes over their columns twice: once for what a row needs as a whole (mean and
variance; backward the two means), once to write. The second time its tiles come from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aurora_ds.kernels.gpu import tiles
from aurora_ds.kernels.gpu.dots import multiply_add, precision
from aurora_ds.kernels.gpu.launch import launch
from aurora_ds.kernels.gpu.products import down_gradient


@triton.jit(do_not_specialize=["M"])
def norm_kernel(
    x,
    gamma,
    beta,
    down,
    h,
    z,
    mean_of,
    deviation_of,
    M,
    x_row,
    x_column,
    eps,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    RANKS: tl.constexpr,
):
    """h[m] = γ∘(x[m] - mean)/σ + β; z[m, r] = Σ_k h[m, k] down[r, k], of h as it is rounded."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    inside_rows, inside_ranks = rows < M, ranks < RANK
    rows_wide = rows.to(tl.int64)
    inner = tl.arange(0, INNER)
    x_at = x + rows_wide[:, None] * x_row

    # means and sums of squares of the tiles, joined as Chan, Golub and LeVeque do: nothing large cancels
    mean, squares = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, WIDTH, INNER):
        inside = first + inner < WIDTH
        count = tl.minimum(WIDTH - first, INNER).to(tl.float32)
        tile = tl.load(
            x_at + (first + inner)[None, :] * x_column, mask=inside_rows[:, None] & inside[None, :], other=0.0
        ).to(tl.float32)
        own = tl.sum(tile, 1) / count
        apart = tl.where(inside[None, :], tile - own[:, None], 0.0)
        step, whole = own - mean, first + count
        mean += step * (count / whole)
        squares += tl.sum(apart * apart, 1) + step * step * (first * count / whole)
    deviation = 1.0 / tl.sqrt(squares / WIDTH + eps)

    total = tl.zeros((ROWS, RANKS), tl.float32)
    for first in range(0, WIDTH, INNER):
        columns = first + inner
        inside = columns < WIDTH
        inside_tile = inside_rows[:, None] & inside[None, :]
        tile = tl.load(x_at + columns[None, :] * x_column, mask=inside_tile, other=0.0).to(tl.float32)
        by = tl.load(gamma + columns, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(beta + columns, mask=inside, other=0.0).to(tl.float32)
        normed = (tile - mean[:, None]) * deviation[:, None] * by[None, :] + shift[None, :]
        rounded = normed.to(h.dtype.element_ty)
        if tl.program_id(1) == 0:  # the others make h again, and write only their z
            tl.store(h + rows_wide[:, None] * WIDTH + columns[None, :], rounded, mask=inside_tile)
        u_tile = tl.load(
            down + columns[:, None] + ranks[None, :] * WIDTH,
            mask=inside[:, None] & inside_ranks[None, :],
            other=0.0,
        )
        total = multiply_add(rounded, u_tile, total, PRECISION)
    tl.store(
        z + rows_wide[:, None] * RANK + ranks[None, :],
        total.to(z.dtype.element_ty),
        mask=inside_rows[:, None] & inside_ranks[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(mean_of + rows, mean, mask=inside_rows)
        tl.store(deviation_of + rows, deviation, mask=inside_rows)


@triton.jit
def _gradient_tile(
    dh,
    dz,
    down,
    gamma,
    rows,
    columns,
    M,
    dh_row,
    dh_column,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    RANKS: tl.constexpr,
):
    """γ∘(dh + dz U) of a tile, fp32."""
    inside_rows, inside = rows < M, columns < WIDTH
    total = tl.load(
        dh + rows[:, None] * dh_row + columns[None, :] * dh_column,
        mask=inside_rows[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    for first in tl.static_range(0, RANK, RANKS):
        ranks = first + tl.arange(0, RANKS)
        inside_ranks = ranks < RANK
        z_tile = tl.load(
            dz + rows[:, None] * RANK + ranks[None, :],
            mask=inside_rows[:, None] & inside_ranks[None, :],
            other=0.0,
        )
        u_tile = tl.load(
            down + ranks[:, None] * WIDTH + columns[None, :],
            mask=inside_ranks[:, None] & inside[None, :],
            other=0.0,
        )
        total = multiply_add(z_tile, u_tile, total, PRECISION)
    return total * tl.load(gamma + columns, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["M"])
def norm_gradient_kernel(
    dh,
    dz,
    x,
    mean_of,
    deviation_of,
    gamma,
    down,
    dx,
    M,
    dh_row,
    dh_column,
    x_row,
    x_column,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    RANKS: tl.constexpr,
):
    """dx[m] = (g - mean(g) - x̂·mean(g∘x̂))/σ, where g = γ∘(dh[m] + Σ_r dz[m, r] down[r])."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_rows = rows < M
    rows_wide = rows.to(tl.int64)
    inner = tl.arange(0, INNER)
    mean = tl.load(mean_of + rows, mask=inside_rows, other=0.0)
    deviation = tl.load(deviation_of + rows, mask=inside_rows, other=0.0)
    plain, along = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, WIDTH, INNER):
        columns = first + inner
        inside_tile = inside_rows[:, None] & (columns < WIDTH)[None, :]
        g = _gradient_tile(
            dh,
            dz,
            down,
            gamma,
            rows_wide,
            columns,
            M,
            dh_row,
            dh_column,
            WIDTH,
            RANK,
            PRECISION,
            ROWS,
            INNER,
            RANKS,
        )
        tile = tl.load(
            x + rows_wide[:, None] * x_row + columns[None, :] * x_column, mask=inside_tile, other=0.0
        )
        normed = (tile.to(tl.float32) - mean[:, None]) * deviation[:, None]  # outside, g is 0
        plain += tl.sum(g, 1)
        along += tl.sum(g * normed, 1)
    plain /= WIDTH
    along /= WIDTH
    for first in range(0, WIDTH, INNER):
        columns = first + inner
        inside_tile = inside_rows[:, None] & (columns < WIDTH)[None, :]
        g = _gradient_tile(
            dh,
            dz,
            down,
            gamma,
            rows_wide,
            columns,
            M,
            dh_row,
            dh_column,
            WIDTH,
            RANK,
            PRECISION,
            ROWS,
            INNER,
            RANKS,
        )
        tile = tl.load(
            x + rows_wide[:, None] * x_row + columns[None, :] * x_column, mask=inside_tile, other=0.0
        )
        normed = (tile.to(tl.float32) - mean[:, None]) * deviation[:, None]
        value = (g - plain[:, None] - normed * along[:, None]) * deviation[:, None]
        tl.store(
            dx + rows_wide[:, None] * WIDTH + columns[None, :],
            value.to(dx.dtype.element_ty),
            mask=inside_tile,
        )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h (M, d), z (M, R), mean and 1/σ (M,) fp32: one launch."""
    (rows, width), rank = x.shape, down.shape[0]
    h, z = x.new_empty(rows, width), x.new_empty(rows, rank)
    mean, deviation = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if rows:
        size, ranks = tiles.norm_tiles(x.dtype), tiles.rank_tile(rank, x.dtype)
        launch(
            norm_kernel,
            (triton.cdiv(rows, size.rows), triton.cdiv(rank, ranks)),
            x,
            weight,
            bias,
            down.contiguous(),
            h,
            z,
            mean,
            deviation,
            rows,
            *x.stride(),
            eps,
            WIDTH=width,
            RANK=rank,
            PRECISION=precision(),
            ROWS=size.rows,
            INNER=size.inner,
            RANKS=ranks,
            **size.launch,
        )
    return h, z, mean, deviation


def backward(
    dh: Tensor,
    dz: Tensor,
    x: Tensor,
    h: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    down: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and U, as `needs` says; None otherwise."""
    dz, down = dz.contiguous(), down.contiguous()
    dx, (rank, width) = None, down.shape
    if needs[0]:
        dx = x.new_empty(x.shape[0], width)
        size = tiles.norm_tiles(x.dtype)
        if len(dx):
            launch(
                norm_gradient_kernel,
                (triton.cdiv(len(dx), size.rows),),
                dh,
                dz,
                x,
                mean,
                deviation,
                weight,
                down,
                dx,
                len(dx),
                *dh.stride(),
                *x.stride(),
                WIDTH=width,
                RANK=rank,
                PRECISION=precision(),
                ROWS=size.rows,
                INNER=size.inner,
                RANKS=tiles.rank_tile(rank, x.dtype),
                **size.launch,
            )
    return dx, down_gradient(h, dz, down) if needs[1] else None

"""The kernels of which the fused projection and its backward pass are made; all sums in fp32.

| kernel | computes | FLOPs (M rows, K summed, N columns, R rank) |
|---|---|---|
| projection | X B + s·Z T: y (B = Wᵀ, T = Aᵀ) and dx (B = W, T = U), written once | 2·M·N·(K + R) |
| skinny | mask ∘ s·X Q with few columns: z (Q = Uᵀ) and dz (Q = A), X read once | 2·M·K·R |
| mask | mask ∘ z, for a z that several sites share | none |
| reduction | Pᵀ Q over many rows, in parts of a fixed number of rows: dUᵀ (x, dz) and dA (dy, z) | 2·M·N·R |
| finish | the sum of a reduction's parts, in their order, in the gradient's own dtype | parts·N·R |

Blocks: `PIECES` are the input blocks of a site, `BLOCKS` its output blocks; one of the two is 1. Steps are in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aurora_ds.kernels.gpu.dots import multiply_add
from aurora_ds.kernels.gpu.masks import kept


@triton.jit(do_not_specialize=["M"])
def projection_kernel(
    x,
    w,
    bias,
    z,
    t,
    diagonal,
    y,
    M,
    x_row,
    x_column,
    scale,
    K: tl.constexpr,  # summed columns of x
    WIDTH: tl.constexpr,  # of one output block
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,  # parts of z and T that are added up in one output block
    RANK: tl.constexpr,
    W_INNER: tl.constexpr,  # steps in w: along the sum, along the output
    W_COLUMN: tl.constexpr,
    T_RANK: tl.constexpr,  # steps in t: along the rank, the output, to the next block, to the next piece
    T_COLUMN: tl.constexpr,
    T_BLOCK: tl.constexpr,
    T_PIECE: tl.constexpr,
    Z_ROW: tl.constexpr,
    Z_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    RANKS: tl.constexpr,
):
    """y[m, b·WIDTH + n] = bias + s·Σ_i Z_i T_i + Σ_k x[m, k] w[k, …]; a diagonal scales the columns of Z."""
    per_block: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    across: tl.constexpr = per_block * BLOCKS
    down = tl.cdiv(M, ROWS)
    # neighbours in time share rows of x and columns of w, so that both are found in the second-level cache
    band = tl.program_id(0) // (8 * across)
    height = tl.minimum(down - band * 8, 8)
    within = tl.program_id(0) % (8 * across)
    tile_row, tile_column = band * 8 + within % height, within // height
    block, column_tile = tile_column // per_block, tile_column % per_block

    rows = tile_row * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)  # within the block
    inside_rows, inside_columns = rows < M, columns < WIDTH
    outputs = block * WIDTH + columns
    rows_wide = rows.to(tl.int64)

    # The low-rank part comes first: then its scale multiplies the fp32 sums, and no second accumulator is needed.
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for piece in range(PIECES):
        for first in range(0, RANK, RANKS):
            ranks = first + tl.arange(0, RANKS)
            inside_ranks = ranks < RANK
            z_tile = tl.load(
                z + rows_wide[:, None] * Z_ROW + (block * Z_BLOCK + piece * RANK + ranks)[None, :],
                mask=inside_rows[:, None] & inside_ranks[None, :],
                other=0.0,
            )
            t_tile = tl.load(
                t + block * T_BLOCK + piece * T_PIECE + ranks[:, None] * T_RANK + columns[None, :] * T_COLUMN,
                mask=inside_ranks[:, None] & inside_columns[None, :],
                other=0.0,
            )
            if diagonal is not None:
                scaling = tl.load(diagonal + (block + piece) * RANK + ranks, mask=inside_ranks, other=0.0)
                z_tile = (z_tile.to(tl.float32) * scaling[None, :]).to(z_tile.dtype)
            total = multiply_add(z_tile, t_tile, total, PRECISION)
    total *= scale

    inner = tl.arange(0, INNER)
    x_tile_at = x + rows_wide[:, None] * x_row + inner[None, :] * x_column
    w_tile_at = w + inner[:, None] * W_INNER + outputs[None, :] * W_COLUMN
    for first in range(0, K, INNER):
        if K % INNER == 0:
            x_tile = tl.load(x_tile_at, mask=inside_rows[:, None], other=0.0)
            w_tile = tl.load(w_tile_at, mask=inside_columns[None, :], other=0.0)
        else:
            inside = inner < K - first
            x_tile = tl.load(x_tile_at, mask=inside_rows[:, None] & inside[None, :], other=0.0)
            w_tile = tl.load(w_tile_at, mask=inside[:, None] & inside_columns[None, :], other=0.0)
        total = multiply_add(x_tile, w_tile, total, PRECISION)
        x_tile_at += INNER * x_column
        w_tile_at += INNER * W_INNER

    if bias is not None:
        total += tl.load(bias + outputs, mask=inside_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + rows_wide[:, None] * (BLOCKS * WIDTH) + outputs[None, :],
        total.to(y.dtype.element_ty),
        mask=inside_rows[:, None] & inside_columns[None, :],
    )


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def skinny_kernel(
    x,
    q,
    diagonal,
    out,
    M,
    x_row,
    x_column,
    scale,
    seed: tl.int64,
    threshold,
    K: tl.constexpr,  # summed columns of one block of x
    BLOCKS: tl.constexpr,  # blocks of x that are added up, each with its row of the diagonal
    PIECES: tl.constexpr,  # of the output
    RANK: tl.constexpr,
    X_PIECE: tl.constexpr,  # steps to the next piece, and in q along the sum and the rank
    Q_PIECE: tl.constexpr,
    Q_INNER: tl.constexpr,
    Q_RANK: tl.constexpr,
    SHARED: tl.constexpr,  # all pieces are one product, each with its row of the diagonal
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    RANKS: tl.constexpr,
):
    """out[m, i·RANK + r] = mask · s · Σ_b g_b Σ_k x[m, i·X_PIECE + b·K + k] q[k, r]."""
    tiles: tl.constexpr = (RANK + RANKS - 1) // RANKS
    piece, rank_tile = tl.program_id(1) // tiles, tl.program_id(1) % tiles
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_rank = rank_tile * RANKS
    ranks = first_rank + tl.arange(0, RANKS)
    inside_rows, inside_ranks = rows < M, ranks < RANK
    rows_wide = rows.to(tl.int64)
    inner = tl.arange(0, INNER)

    total = tl.zeros((ROWS, RANKS), tl.float32)
    for block in range(BLOCKS):
        if diagonal is not None and not SHARED:
            scaling = tl.load(diagonal + block * RANK + ranks, mask=inside_ranks, other=0.0)
        x_tile_at = x + rows_wide[:, None] * x_row + (piece * X_PIECE + block * K + inner)[None, :] * x_column
        q_tile_at = q + piece * Q_PIECE + inner[:, None] * Q_INNER + ranks[None, :] * Q_RANK
        for first in range(0, K, INNER):
            if K % INNER == 0:
                x_tile = tl.load(x_tile_at, mask=inside_rows[:, None], other=0.0)
                q_tile = tl.load(q_tile_at, mask=inside_ranks[None, :], other=0.0)
            else:
                inside = inner < K - first
                x_tile = tl.load(x_tile_at, mask=inside_rows[:, None] & inside[None, :], other=0.0)
                q_tile = tl.load(q_tile_at, mask=inside[:, None] & inside_ranks[None, :], other=0.0)
            if diagonal is not None and not SHARED:
                q_tile = (q_tile.to(tl.float32) * scaling[None, :]).to(q_tile.dtype)
            total = multiply_add(x_tile, q_tile, total, PRECISION)
            x_tile_at += INNER * x_column
            q_tile_at += INNER * Q_INNER
    total *= scale

    groups: tl.constexpr = (RANK + 3) // 4
    for step in range(PIECES if SHARED else 1):
        value = total
        at = piece + step
        if SHARED:
            value = total * tl.load(diagonal + at * RANK + ranks, mask=inside_ranks, other=0.0)[None, :]
        if MASKED:
            keep = kept(seed, rows_wide * PIECES + at, first_rank, groups, threshold, RANKS)
            value = tl.where(keep, value / (1.0 - threshold / 16777216.0), 0.0)
        tl.store(
            out + rows_wide[:, None] * (PIECES * RANK) + (at * RANK + ranks)[None, :],
            value.to(out.dtype.element_ty),
            mask=inside_rows[:, None] & inside_ranks[None, :],
        )


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def mask_kernel(
    z,
    out,
    M,
    seed: tl.int64,
    threshold,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """out[m, r] = mask · z[m, r]; a row is one input block's."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * RANKS
    ranks = first + tl.arange(0, RANKS)
    inside = (rows < M)[:, None] & (ranks < RANK)[None, :]
    rows_wide = rows.to(tl.int64)
    groups: tl.constexpr = (RANK + 3) // 4
    at = rows_wide[:, None] * RANK + ranks[None, :]
    value = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    keep = kept(seed, rows_wide, first, groups, threshold, RANKS)
    value = tl.where(keep, value / (1.0 - threshold / 16777216.0), 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "part_rows"])
def reduction_kernel(
    p,
    q,
    out,
    M,
    part_rows,
    p_row,
    p_column,
    COLUMNS_P: tl.constexpr,
    COLUMNS_Q: tl.constexpr,
    PIECES: tl.constexpr,  # rows that lie side by side in one row of p
    ATOMIC: tl.constexpr,  # all parts are added into the first, which holds zeros
    PRECISION: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_Q: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[part] = Σ_m p[m]ᵀ q[m] over the part's rows, fp32; finish_kernel adds up the parts in their order."""
    across: tl.constexpr = (COLUMNS_Q + TILE_Q - 1) // TILE_Q
    columns_p = tl.program_id(0) // across * TILE_P + tl.arange(0, TILE_P)
    columns_q = tl.program_id(0) % across * TILE_Q + tl.arange(0, TILE_Q)
    inside_p, inside_q = columns_p < COLUMNS_P, columns_q < COLUMNS_Q
    part = tl.program_id(1)
    start = part * part_rows
    end = tl.minimum(start + part_rows, M)
    total = tl.zeros((TILE_P, TILE_Q), tl.float32)
    for first in range(start, end, INNER):
        rows = first + tl.arange(0, INNER)
        inside = rows < end
        rows_wide = rows.to(tl.int64)
        p_tile = tl.load(
            p
            + (rows_wide // PIECES)[:, None] * p_row
            + ((rows % PIECES)[:, None] * COLUMNS_P + columns_p[None, :]) * p_column,
            mask=inside[:, None] & inside_p[None, :],
            other=0.0,
        )
        q_tile = tl.load(
            q + rows_wide[:, None] * COLUMNS_Q + columns_q[None, :],
            mask=inside[:, None] & inside_q[None, :],
            other=0.0,
        )
        total = multiply_add(tl.trans(p_tile), q_tile, total, PRECISION)
    at = columns_p[:, None] * COLUMNS_Q + columns_q[None, :]
    inside_tile = inside_p[:, None] & inside_q[None, :]
    if ATOMIC:
        tl.atomic_add(out + at, total, mask=inside_tile, sem="relaxed")
    else:
        tl.store(out + part.to(tl.int64) * (COLUMNS_P * COLUMNS_Q) + at, total, mask=inside_tile)


@triton.jit(do_not_specialize=["parts"])
def finish_kernel(
    partial,
    out,
    parts,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TILE: tl.constexpr,
):
    """out = s·Σ_part partial[part], in the order of the parts, transposed if asked: what a reduction ends with."""
    across: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    rows = tl.program_id(0) // across * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0) % across * TILE + tl.arange(0, TILE)
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    at = partial + rows[:, None] * COLUMNS + columns[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for _ in range(parts):
        total += tl.load(at, mask=inside, other=0.0)
        at += ROWS * COLUMNS
    total *= scale
    if TRANSPOSED:
        target = out + columns[:, None] * ROWS + rows[None, :]
        tl.store(target, tl.trans(total).to(out.dtype.element_ty), mask=tl.trans(inside))
    else:
        target = out + rows[:, None] * COLUMNS + columns[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=inside)

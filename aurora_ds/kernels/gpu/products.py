"""The products of which the fused projection and its backward pass are made: tiles and steps of each launch."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from aurora_ds.kernels import choice
from aurora_ds.kernels.gpu import tiles
from aurora_ds.kernels.gpu.dots import precision
from aurora_ds.kernels.gpu.launch import launch
from aurora_ds.kernels.gpu.projection_kernels import (
    finish_kernel,
    mask_kernel,
    projection_kernel,
    reduction_kernel,
    skinny_kernel,
)
from aurora_ds.kernels.philox import threshold


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor,
    t: Tensor,
    diagonal: Tensor | None,
    scale: float,
    *,
    width: int,
    blocks: int,
    pieces: int,
    rank: int,
    w_steps: tuple[int, int],
    t_steps: tuple[int, int, int, int],
    z_block: int,
) -> Tensor:
    """X B + s·Z T (M, blocks·width), see projection_kernel."""
    rows, inner = x.shape
    out = x.new_empty(rows, blocks * width)
    if not out.numel():
        return out
    size = tiles.projection_tiles(x.dtype)
    grid = (triton.cdiv(rows, size.rows) * triton.cdiv(width, size.columns) * blocks,)
    launch(
        projection_kernel,
        grid,
        x,
        weight,
        bias,
        z,
        t,
        diagonal,
        out,
        rows,
        *x.stride(),
        scale,
        K=inner,
        WIDTH=width,
        BLOCKS=blocks,
        PIECES=pieces,
        RANK=rank,
        W_INNER=w_steps[0],
        W_COLUMN=w_steps[1],
        T_RANK=t_steps[0],
        T_COLUMN=t_steps[1],
        T_BLOCK=t_steps[2],
        T_PIECE=t_steps[3],
        Z_ROW=z.shape[1],
        Z_BLOCK=z_block,
        PRECISION=precision(),
        ROWS=size.rows,
        COLUMNS=size.columns,
        INNER=size.inner,
        RANKS=tiles.rank_tile(rank, x.dtype),
        **size.launch,
    )
    return out


def skinny(
    x: Tensor,
    q: Tensor,
    diagonal: Tensor | None,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    *,
    inner: int,
    blocks: int,
    pieces: int,
    rank: int,
    x_piece: int,
    q_piece: int,
    q_steps: tuple[int, int],
    shared: bool,
) -> Tensor:
    """mask ∘ s·X Q (M, pieces·rank), see skinny_kernel."""
    rows = x.shape[0]
    out = x.new_empty(rows, pieces * rank)
    if not out.numel():
        return out
    size, width = tiles.skinny_tiles(x.dtype), tiles.rank_tile(rank, x.dtype)
    grid = (triton.cdiv(rows, size.rows), triton.cdiv(rank, width) * (1 if shared else pieces))
    launch(
        skinny_kernel,
        grid,
        x,
        q,
        diagonal,
        out,
        rows,
        *x.stride(),
        scale,
        int(seed) if dropout else 0,
        threshold(dropout),
        K=inner,
        BLOCKS=blocks,
        PIECES=pieces,
        RANK=rank,
        X_PIECE=x_piece,
        Q_PIECE=q_piece,
        Q_INNER=q_steps[0],
        Q_RANK=q_steps[1],
        SHARED=shared,
        MASKED=dropout > 0,
        PRECISION=precision(),
        ROWS=size.rows,
        INNER=size.inner,
        RANKS=width,
        **size.launch,
    )
    return out


def reduce(
    p: Tensor,
    q: Tensor,
    columns: int,
    pieces: int,
    scale: float,
    dtype: torch.dtype,
    transposed: bool = False,
) -> Tensor:
    """s·Σ_m p[m]ᵀ q[m] -> (columns, columns of q), or its transpose; row m of p is a `pieces`-th of a stored row."""
    rows, narrow = q.shape
    size, width = tiles.reduction_tiles(p.dtype), tiles.rank_tile(narrow, p.dtype)
    part_rows, atomic = tiles.part_rows(rows, size.inner), choice.sums() == "atomic"
    parts = triton.cdiv(rows, part_rows)
    make = functools.partial(torch.zeros, 1) if atomic else functools.partial(torch.empty, parts)
    partial = make(columns, narrow, dtype=torch.float32, device=p.device)
    if parts and partial.numel():
        launch(
            reduction_kernel,
            (triton.cdiv(columns, size.rows) * triton.cdiv(narrow, width), parts),
            p,
            q,
            partial,
            rows,
            part_rows,
            *p.stride(),
            COLUMNS_P=columns,
            COLUMNS_Q=narrow,
            PIECES=pieces,
            ATOMIC=atomic,
            PRECISION=precision(),
            TILE_P=size.rows,
            TILE_Q=width,
            INNER=size.inner,
            **size.launch,
        )
    out = torch.empty((narrow, columns) if transposed else (columns, narrow), dtype=dtype, device=p.device)
    launch(
        finish_kernel,
        (triton.cdiv(columns, 32) * triton.cdiv(narrow, 32),),
        partial,
        out,
        len(partial),
        scale,
        ROWS=columns,
        COLUMNS=narrow,
        TRANSPOSED=transposed,
        TILE=32,
        **tiles.options(4, 2),
    )
    return out


def masked(z: Tensor, inputs: int, dropout: float, seed: Tensor | None) -> Tensor:
    """z (M, inputs·R) times the mask of `seed`; as it is without dropout."""
    if not dropout or not z.numel():
        return z.contiguous()
    rank, out = z.shape[1] // inputs, z.new_empty(z.shape)
    rows, width = z.shape[0] * inputs, tiles.rank_tile(rank, z.dtype)
    size = tiles.skinny_tiles(z.dtype)
    launch(
        mask_kernel,
        (triton.cdiv(rows, size.rows), triton.cdiv(rank, width)),
        z.contiguous(),
        out,
        rows,
        int(seed),
        threshold(dropout),
        RANK=rank,
        ROWS=size.rows,
        RANKS=width,
        **tiles.options(4, 2),
    )
    return out


def low_rank(x: Tensor, down: Tensor, inputs: int, dropout: float, seed: Tensor | None) -> Tensor:
    """z (M, inputs·R) = mask ∘ x Uᵀ."""
    rank, width_in = down.shape
    return skinny(
        x,
        down.contiguous(),
        None,
        1.0,
        dropout,
        seed,
        inner=width_in,
        blocks=1,
        pieces=inputs,
        rank=rank,
        x_piece=width_in,
        q_piece=0,
        q_steps=(1, width_in),
        shared=False,
    )


def down_gradient(x: Tensor, dz: Tensor, down: Tensor) -> Tensor:
    """dU (R, w_in) from x (M, inputs·w_in) and dz (M·inputs, R)."""
    width_in = down.shape[1]
    return reduce(x, dz, width_in, x.shape[1] // width_in, 1.0, down.dtype, transposed=True)

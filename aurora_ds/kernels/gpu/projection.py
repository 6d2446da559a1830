"""The fused projection on tensors: which kernel computes what, with which steps. Formulas: ../prompted_linear.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from aurora_ds.kernels.gpu import tiles
from aurora_ds.kernels.gpu.dots import precision
from aurora_ds.kernels.gpu.launch import launch
from aurora_ds.kernels.gpu.projection_kernels import (
    finish_kernel,
    projection_kernel,
    reduction_kernel,
    skinny_kernel,
)
from aurora_ds.kernels.philox import threshold


def _project(
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


def _skinny(
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


def _reduce(
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
    part_rows = tiles.part_rows(rows, size.inner)
    partial = torch.empty(triton.cdiv(rows, part_rows), columns, narrow, dtype=torch.float32, device=p.device)
    if partial.numel():
        launch(
            reduction_kernel,
            (triton.cdiv(columns, size.rows) * triton.cdiv(narrow, width), len(partial)),
            p,
            q,
            partial,
            rows,
            part_rows,
            *p.stride(),
            COLUMNS_P=columns,
            COLUMNS_Q=narrow,
            PIECES=pieces,
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


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (M, d_out) and z (M, inputs·R): two launches."""
    weight, down, mix = weight.contiguous(), down.contiguous(), mix.contiguous()
    (rank, width_in), (d_out, d_in) = down.shape, weight.shape
    outputs = _outputs(diagonal, inputs)
    z = _skinny(
        x,
        down,
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
    steps = (1, rank, 0, 0) if diagonal is not None else (1, inputs * rank, 0, rank)
    y = _project(
        x,
        weight,
        bias,
        z,
        mix,
        diagonal,
        scale,
        width=d_out // outputs,
        blocks=outputs,
        pieces=inputs,
        rank=rank,
        w_steps=(1, d_in),
        t_steps=steps,
        z_block=0,
    )
    return y, z


def _outputs(diagonal: Tensor | None, inputs: int) -> int:
    """Output blocks that need tiles of their own: those with a diagonal. A itself has one row per output anyway."""
    return 1 if diagonal is None or inputs > 1 else diagonal.shape[0]


def backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    down: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, U, A or V, and g; None for those that `needs` (x, U, A or V and g) leaves out."""
    from aurora_ds.kernels.prompted_linear import split_gradient

    weight, down, mix = weight.contiguous(), down.contiguous(), mix.contiguous()
    (rank, width_in), (d_out, d_in) = down.shape, weight.shape
    inputs = d_in // width_in
    dx = ddown = dmix = ddiagonal = None
    if needs[2]:
        dtype = mix.dtype if diagonal is None else torch.float32
        dmix, ddiagonal = split_gradient(_reduce(dy, z, d_out, 1, scale, dtype), mix, diagonal, inputs)
    if needs[0] or needs[1]:
        blocks = _outputs(diagonal, inputs)
        dense = diagonal is None
        dz = _skinny(
            dy,
            mix,
            diagonal,
            scale,
            dropout,
            seed,
            inner=d_out // blocks,
            blocks=blocks,
            pieces=inputs,
            rank=rank,
            x_piece=0,
            q_piece=rank if dense else 0,
            q_steps=(inputs * rank if dense else rank, 1),
            shared=not dense and inputs > 1,
        )
        if needs[1]:
            ddown = _reduce(x, dz.view(-1, rank), width_in, inputs, 1.0, down.dtype, transposed=True)
        if needs[0]:
            dx = _project(
                dy,
                weight,
                None,
                dz,
                down,
                None,
                1.0,
                width=width_in,
                blocks=inputs,
                pieces=1,
                rank=rank,
                w_steps=(d_in, 1),
                t_steps=(width_in, 1, 0, 0),
                z_block=rank,
            )
    return dx, ddown, dmix, ddiagonal

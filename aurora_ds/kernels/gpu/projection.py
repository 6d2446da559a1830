"""The fused projection on tensors: which product computes what, from which blocks. Formulas: ../prompted_linear.py."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_ds.kernels.gpu.products import down_gradient, low_rank, masked, project, reduce, skinny


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
    z = low_rank(x, down, inputs, dropout, seed)
    return _output(x, z, weight, bias, mix, diagonal, inputs, scale), z


def forward_from(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """y (M, d_out) from z without a mask: one launch, two with dropout."""
    return _output(x, masked(z, inputs, dropout, seed), weight, bias, mix, diagonal, inputs, scale)


def _output(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
) -> Tensor:
    """x Wᵀ + b + s·z Aᵀ."""
    weight, mix = weight.contiguous(), mix.contiguous()
    (d_out, d_in), rank = weight.shape, z.shape[1] // inputs
    outputs = _outputs(diagonal, inputs)
    return project(
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
        t_steps=(1, rank, 0, 0) if diagonal is not None else (1, inputs * rank, 0, rank),
        z_block=0,
    )


def _outputs(diagonal: Tensor | None, inputs: int) -> int:
    """Output blocks that need tiles of their own: those with a diagonal. A itself has one row per output anyway."""
    return 1 if diagonal is None or inputs > 1 else diagonal.shape[0]


def _mix_gradients(
    dy: Tensor, z: Tensor, mix: Tensor, diagonal: Tensor | None, inputs: int, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Of A, or of V and g, from the z that was multiplied with it."""
    from aurora_ds.kernels.prompted_linear import split_gradient

    dtype = mix.dtype if diagonal is None else torch.float32
    return split_gradient(reduce(dy, z, dy.shape[1], 1, scale, dtype), mix, diagonal, inputs)


def _low_rank_gradient(
    dy: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """dz (M, inputs·R) = mask ∘ s·dy A."""
    blocks, dense = _outputs(diagonal, inputs), diagonal is None
    rank = mix.shape[1] // inputs if dense else mix.shape[1]
    return skinny(
        dy,
        mix,
        diagonal,
        scale,
        dropout,
        seed,
        inner=dy.shape[1] // blocks,
        blocks=blocks,
        pieces=inputs,
        rank=rank,
        x_piece=0,
        q_piece=rank if dense else 0,
        q_steps=(inputs * rank if dense else rank, 1),
        shared=not dense and inputs > 1,
    )


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
    weight, down, mix = weight.contiguous(), down.contiguous(), mix.contiguous()
    (rank, width_in), d_in = down.shape, weight.shape[1]
    inputs = d_in // width_in
    dx = ddown = dmix = ddiagonal = None
    if needs[2]:
        dmix, ddiagonal = _mix_gradients(dy, z, mix, diagonal, inputs, scale)
    if needs[0] or needs[1]:
        dz = _low_rank_gradient(dy, mix, diagonal, inputs, scale, dropout, seed)
        if needs[1]:
            ddown = down_gradient(x, dz.view(-1, rank), down)
        if needs[0]:
            dx = project(
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


def backward_from(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x through W alone, by the vendor's library, as nothing rides in it; of z, A or V, and g."""
    mix, dx, dz, found = mix.contiguous(), None, None, (None, None)
    if needs[0]:
        dx = dy @ weight
    if needs[1]:
        dz = _low_rank_gradient(dy, mix, diagonal, inputs, scale, dropout, seed)
    if needs[2]:
        found = _mix_gradients(dy, masked(z, inputs, dropout, seed), mix, diagonal, inputs, scale)
    return dx, dz, *found

"""The setting `kernels` of a run: taken over by the ops, and what they need compiled before the first step."""

from __future__ import annotations

from typing import Literal

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.kernels import choice, prompted_linear, reconstruct
from aurora_ds.prompts.attach import Prompts


def choose_kernels(setting: Literal["auto", "triton", "torch"]) -> None:
    """From here on, in this process. Raises AuroraError for `triton` where it cannot run."""
    reason = choice.obstacle() if setting == "triton" else None
    if reason is not None:
        raise AuroraError(
            f"kernels=triton cannot run here: {reason}. Set kernels=auto, which takes PyTorch where Triton cannot run."
        )
    choice.use(setting)


def warm_up(prompts: Prompts, device: torch.device, dtype: torch.dtype) -> int:
    """Compile what the sites of `prompts` will run, forward and backward, by running each shape once on a few rows,
    and the reconstruction. Returns how many shapes take the Triton path; where Triton cannot run, none does."""
    if not choice.triton_runs_on(device.type):
        return 0
    config, shapes = prompts.config, {}
    for site in prompts.sites:
        d_out, d_in = site.outputs * site.width_out, site.inputs * site.width_in
        if choice.path_of_projection(device, dtype, d_out, d_in, config.rank, site.inputs) == "triton":
            shapes[(d_out, d_in, site.outputs, site.inputs)] = site
    for site in shapes.values():
        _run_once(prompts, site, device, dtype)
    if prompts.sites and not prompts.bank.goes_without_mix(device, dtype):
        _reconstruct_once(prompts, device, dtype)
    return len(shapes)


def _reconstruct_once(prompts: Prompts, device: torch.device, dtype: torch.dtype) -> None:
    plan, rank = prompts.bank.plan, prompts.config.rank
    slices = torch.zeros(sum(plan.columns), rank, rank, device=device, requires_grad=True)
    up = [torch.zeros(width, rank, device=device, requires_grad=True) for width in plan.distinct]
    mixes = reconstruct(up, slices, plan, dtype)
    torch.autograd.grad(mixes, [*up, slices], [torch.zeros_like(mix) for mix in mixes])


def _run_once(prompts: Prompts, site, device: torch.device, dtype: torch.dtype) -> None:
    """One projection of the site's shape, with dropout and without, and its gradients."""
    config = prompts.config

    def zeros(*shape: int, dtype: torch.dtype = dtype, graph: bool = False) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, requires_grad=graph)

    d_out, d_in = site.outputs * site.width_out, site.inputs * site.width_in
    weight, bias, down = zeros(d_out, d_in), zeros(d_out), zeros(config.rank, site.width_in, graph=True)
    diagonal = None
    if prompts.bank.goes_without_mix(device, dtype):
        mix = zeros(site.width_out, config.rank, graph=True)
        diagonal = zeros(site.columns, config.rank, dtype=torch.float32, graph=True)
    else:
        mix = zeros(d_out, site.inputs * config.rank, graph=True)
    x, leaves = zeros(32, d_in, graph=True), [down, mix] if diagonal is None else [down, mix, diagonal]
    for dropout in {0.0, config.dropout if config.dropout_position == "shared" else 0.0}:
        y = prompted_linear(
            x,
            weight,
            bias,
            down,
            mix,
            diagonal,
            inputs=site.inputs,
            scale=config.scale,
            dropout=dropout,
            seed=torch.tensor(1 << 40),  # drawn seeds belong to the steps
        )
        torch.autograd.grad(y, [x, *leaves], torch.zeros_like(y))

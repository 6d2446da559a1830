"""The setting `kernels` of a run: taken over by the ops, and what they need compiled before the first step."""

from __future__ import annotations

from typing import Literal

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.kernels import choice, draw_seed, prompted_linear
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
    """Compile what the sites of `prompts` will run, forward and backward, by running each shape once on a few rows.

    Returns how many shapes took the Triton path; on the CPU none is run."""
    if device.type == "cpu":
        return 0
    config, shapes = prompts.config, {}
    for site in prompts.sites:
        shape = (site.width_out, site.outputs, site.width_in, site.inputs)
        path = choice.path_of_projection(
            device,
            dtype,
            site.outputs * site.width_out,
            site.inputs * site.width_in,
            config.rank,
            site.inputs,
        )
        if path == "triton":
            shapes[shape] = site
    for site in shapes.values():
        _run_once(prompts, site, device, dtype)
    if shapes:
        torch.cuda.synchronize(device)
    return len(shapes)


def _run_once(prompts: Prompts, site, device: torch.device, dtype: torch.dtype) -> None:
    """One projection of the site's shape, with and without dropout, with and without gradients of x."""
    config = prompts.config

    def zeros(*shape: int, dtype: torch.dtype = dtype, graph: bool = False) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, requires_grad=graph)

    d_out, d_in = site.outputs * site.width_out, site.inputs * site.width_in
    weight, bias, down = zeros(d_out, d_in), zeros(d_out), zeros(config.rank, site.width_in, graph=True)
    diagonal = None
    if prompts.values is not None and prompts.values.diagonal[prompts.sites.index(site)] is not None:
        mix = zeros(site.width_out, config.rank, graph=True)
        diagonal = zeros(site.columns, config.rank, dtype=torch.float32, graph=True)
    else:
        mix = zeros(d_out, site.inputs * config.rank, graph=True)
    for dropout in {0.0, config.dropout if config.dropout_position == "shared" else 0.0}:
        y = prompted_linear(
            zeros(32, d_in, graph=True),
            weight,
            bias,
            down,
            mix,
            diagonal,
            inputs=site.inputs,
            scale=config.scale,
            dropout=dropout,
            seed=draw_seed(),
        )
        y.sum().backward()

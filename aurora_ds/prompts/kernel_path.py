"""The setting `kernels` of a run: taken over by the ops, and what they need compiled before the first step."""

from __future__ import annotations

from typing import Literal

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.kernels import (
    choice,
    low_rank,
    norm_low_rank,
    prompted_linear,
    prompted_linear_from,
    reconstruct,
)
from aurora_ds.prompts.attach import Prompts


def choose_kernels(
    setting: Literal["auto", "triton", "torch"], sums: Literal["ordered", "atomic"] = "ordered"
) -> None:
    """From here on, in this process: the path, and how the kernels add up gradients of factors. Raises AuroraError for
    `triton` where it cannot run."""
    reason = choice.obstacle() if setting == "triton" else None
    if reason is not None:
        raise AuroraError(
            f"kernels=triton cannot run here: {reason}. Set kernels=auto, which takes PyTorch where Triton cannot run."
        )
    choice.use(setting)
    choice.use_sums(sums)


def warm_up(prompts: Prompts, device: torch.device, dtype: torch.dtype) -> int:
    """Compile what the sites of `prompts` will run, forward and backward, by running each shape once on a few rows,
    and the reconstruction. Returns how many shapes take the Triton path; where Triton cannot run, none does."""
    if not choice.triton_runs_on(device.type):
        return 0
    rank, shapes, found = prompts.config.rank, {}, 0
    for index, site in enumerate(prompts.sites):
        shapes.setdefault((site.width_out, site.width_in, site.outputs, site.inputs), []).append(index)
    for indices in shapes.values():
        site = prompts.sites[indices[0]]
        d_out, d_in = site.outputs * site.width_out, site.inputs * site.width_in
        example = _Example(prompts, indices[0], device, dtype)
        paths = [
            choice.path_of_projection(device, dtype, d_out, d_in, rank, site.inputs, from_z=each)
            for each in (False, True)
        ]
        starts = [choice.path_of_start(device, dtype, d_in, rank, site.inputs)]
        if set(indices) & set(prompts.normed):
            starts.append(choice.path_of_start(device, dtype, d_in, rank, 1, norm=True))
        if paths[0] == "triton":
            example.project()
        if "triton" in (paths[1], *starts):
            example.project_from_z(norm="triton" in starts[1:])
        found += "triton" in (*paths, *starts)
    if prompts.sites and not prompts.bank.goes_without_mix(device, dtype):
        _reconstruct_once(prompts, device, dtype)
    return found


def _reconstruct_once(prompts: Prompts, device: torch.device, dtype: torch.dtype) -> None:
    plan, rank = prompts.bank.plan, prompts.config.rank
    slices = torch.zeros(sum(plan.columns), rank, rank, device=device, requires_grad=True)
    up = [torch.zeros(width, rank, device=device, requires_grad=True) for width in plan.distinct]
    mixes = reconstruct(up, slices, plan, dtype)
    torch.autograd.grad(mixes, [*up, slices], [torch.zeros_like(mix) for mix in mixes])


class _Example:
    """A few rows through a site of some shape, with dropout and without, and their gradients."""

    def __init__(self, prompts: Prompts, index: int, device: torch.device, dtype: torch.dtype) -> None:
        config, site = prompts.config, prompts.sites[index]

        def zeros(*shape: int, dtype: torch.dtype = dtype, graph: bool = False) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, requires_grad=graph)

        d_out, d_in = site.outputs * site.width_out, site.inputs * site.width_in
        self.frozen = zeros(d_out, d_in), zeros(d_out)
        self.norm = zeros(d_in), zeros(d_in)
        self.x, self.down = zeros(32, d_in, graph=True), zeros(config.rank, site.width_in, graph=True)
        if prompts.bank.goes_without_mix(device, dtype):
            diagonal = zeros(site.columns, config.rank, dtype=torch.float32, graph=True)
            self.factors = [zeros(site.width_out, config.rank, graph=True), diagonal]
        else:
            self.factors = [zeros(d_out, site.inputs * config.rank, graph=True)]
        self.settings = {
            "inputs": site.inputs,
            "scale": config.scale,
            "seed": torch.tensor(1 << 40),  # drawn seeds belong to the steps
        }
        self.dropouts = {0.0, config.dropout if config.dropout_position == "shared" else 0.0}

    def project(self) -> None:
        for dropout in self.dropouts:
            y = prompted_linear(
                self.x, *self.frozen, self.down, *self.factors, dropout=dropout, **self.settings
            )
            self._gradients(y)

    def project_from_z(self, norm: bool) -> None:
        for dropout in self.dropouts:
            if norm:
                h, z = norm_low_rank(self.x, *self.norm, self.down, 1e-6)
                self._gradients(
                    prompted_linear_from(h, z, *self.frozen, *self.factors, dropout=dropout, **self.settings)
                )
            z = low_rank(self.x, self.down, self.settings["inputs"])
            self._gradients(
                prompted_linear_from(self.x, z, *self.frozen, *self.factors, dropout=dropout, **self.settings)
            )

    def _gradients(self, y: torch.Tensor) -> None:
        torch.autograd.grad(y, [self.x, self.down, *self.factors], torch.zeros_like(y))

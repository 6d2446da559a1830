"""The modules that stand in for a backbone's linears: frozen weight, plus what the active adapter adds.

`PromptedLinear` adds the low-rank update of its site; `PromptedHead` replaces a small head by the adapter's
own copy. Both keep the parameter names of the `nn.Linear` they replace, and are that linear while no
adapter is active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.kernels import (
    choice,
    draw_seed,
    low_rank,
    norm_low_rank,
    prompted_linear,
    prompted_linear_from,
)

if TYPE_CHECKING:
    from aurora_ds.prompts.attach import Prompts


class PromptedLinear(nn.Module):
    """y = x Wᵀ + b + s · update(x); W and b are the replaced linear's own parameters.

    Sites that read the same x may share x Uᵀ: one of them makes it (`start`), and all are called with it. Dropout is
    each site's own all the same, so that sharing changes no number.

    Dropout (training only): `shared` drops x Uᵀ with one mask for all output blocks; `released` does what
    the published code does: in vision after the core and before V, in text directly after U with one mask
    per projection.
    """

    def __init__(self, linear: nn.Linear, prompts: Prompts, index: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._prompts = (prompts,)  # in a tuple: the site belongs to the backbone, the prompts do not
        self.index = index

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, site={self.index}"

    @property
    def reads(self) -> tuple[int, int]:
        """Equal for sites whose x Uᵀ is the same when x is."""
        prompts = self._prompts[0]
        return id(prompts), prompts.sites[self.index].width_in

    def start(self, x: Tensor) -> Tensor | None:
        """x Uᵀ (…, inputs·R) under the active adapter, for `forward` of every site that reads x; None without one."""
        prompts = self._prompts[0]
        if prompts.values is None or prompts.merged is not None:
            return None
        site = prompts.sites[self.index]
        return low_rank(x, prompts.values.down[site.width_in], site.inputs)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x (…, in_features), and perhaps its `start` -> (…, out_features)."""
        prompts = self._prompts[0]
        values = prompts.values
        if values is None or prompts.merged is not None:
            return F.linear(x, self.weight, self.bias)
        site, config = prompts.sites[self.index], prompts.config
        down, mix, diagonal = values.down[site.width_in], values.mix[self.index], values.diagonal[self.index]
        dropout, seed = 0.0, None
        if self.training and config.dropout:
            if config.dropout_position == "released":
                z = low_rank(x, down, site.inputs) if z is None else z
                update = self._released_dropout(z, values, site, config.dropout)
                return F.linear(x, self.weight, self.bias) + config.scale * update
            dropout, seed = config.dropout, draw_seed()
        settings = {"inputs": site.inputs, "scale": config.scale, "dropout": dropout, "seed": seed}
        if z is not None:
            return prompted_linear_from(x, z, self.weight, self.bias, mix, diagonal, **settings)
        return prompted_linear(x, self.weight, self.bias, down, mix, diagonal, **settings)

    def _released_dropout(self, z: Tensor, values, site, dropout: float) -> Tensor:
        """The update from x Uᵀ (…, inputs·R), with dropout where the published code has it; one term per block."""
        up, inner = values.up[site.width_out], values.inner[self.index]
        z = z.unflatten(-1, (site.inputs, -1))  # (…, inputs, R)
        if site.modality != "vision":
            z = F.dropout(z.expand(*z.shape[:-2], site.columns, z.shape[-1]).contiguous(), dropout)
        mixed = torch.einsum("...jr,jrs->...js", z.expand(*z.shape[:-2], site.columns, z.shape[-1]), inner)
        if site.inputs > 1:
            mixed = mixed.sum(-2, keepdim=True)
        if site.modality == "vision":
            mixed = F.dropout(mixed, dropout)
        return F.linear(mixed, up).flatten(-2)


class PromptedNorm(nn.Module):
    """The LayerNorm before a site. Where choices.json says that one kernel pays, it makes the site's x Uᵀ as well."""

    def __init__(self, norm: nn.LayerNorm, prompts: Prompts, index: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self._prompts = (prompts,)
        self.index = index

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """x (…, d) -> h (…, d), or h and the site's `start` (…, R), both to be handed to the site."""
        prompts = self._prompts[0]
        if prompts.values is not None and prompts.merged is None:
            down = prompts.values.down[self.weight.shape[0]]
            path = choice.path_of_start(x.device, x.dtype, *down.shape[::-1], 1, norm=True)
            if path == "triton" and x.dtype == self.weight.dtype == down.dtype:
                return norm_low_rank(x, self.weight, self.bias, down, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PromptedHead(nn.Module):
    """A head whose trained copy lives in the adapter; without an active adapter it is the backbone's own."""

    def __init__(self, linear: nn.Linear, prompts: Prompts, name: str) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._prompts = (prompts,)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) -> (…, out)."""
        prompts = self._prompts[0]
        if prompts.values is None or prompts.merged is not None:
            return F.linear(x, self.weight, self.bias)
        weight, bias = prompts.values.heads[self.name]
        return F.linear(x, weight, bias)

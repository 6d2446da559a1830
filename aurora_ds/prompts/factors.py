"""The shared factors of all sites, and what a site needs of them, computed once per step.

Tucker (the published code's form): site column p (R,) has the core slice G_ab = Σ_c C_abc p_c, and the
update of a weight block is ΔW = V Gᵀ U. CP: G = diag(λ ∘ p). A site with n output blocks gets A = [V G_1ᵀ;
…; V G_nᵀ] (n·d, R); one with n input blocks gets A = [V G_1ᵀ … V G_nᵀ] (d, n·R). Aurora (arXiv 2305.08381)
§3.2.

All trained tensors are direct parameters of one module, and `forward` returns fresh tensors made from them:
under ZeRO-3 the module's hook gathers every parameter once, and nothing downstream touches a partitioned one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from aurora_ds.config import PromptConfig
from aurora_ds.kernels import Plan, reconstruct
from aurora_ds.kernels.choice import path_of_projection


@dataclass(frozen=True)
class PromptSite:
    """One adapted linear: block widths, number of blocks, and where its mode columns start."""

    name: str
    width_in: int  # of one input block
    width_out: int  # of one output block
    inputs: int
    outputs: int
    modality: str
    layer: int
    role: str
    column: int

    @property
    def columns(self) -> int:
        return max(self.inputs, self.outputs)

    @property
    def group(self) -> str:
        return "mlp" if self.role == "mlp" else f"{self.modality}_attention"


@dataclass
class PromptValues:
    """What the model reads during one forward: tensors in compute dtype, with graph for the online values."""

    down: dict[int, Tensor]  # input width -> U (R, width)
    up: dict[int, Tensor]  # output width -> V (width, R)
    mix: list[Tensor]  # per site A (outputs·width_out, inputs·R), or V where a diagonal stands beside it
    diagonal: list[Tensor | None]  # per site: CP sites on the Triton path (columns, R) fp32, others None
    inner: list[Tensor]  # per site core blocks (columns, R, R) as G, rows belong to U, columns to V
    gates: list[
        Tensor
    ]  # per query-transformed layer (4, H): scale_self, shift_self, scale_cross, shift_cross
    heads: dict[str, tuple[Tensor, Tensor | None]]  # head -> weight, bias


class FactorBank(nn.Module):
    """One adapter: all its trained tensors.

    Parameters (fp32 unless the engine casts them): `down_<w>` U (R, w) and `up_<w>` V (w, R) per distinct
    block width, `core` C (R, R, R) or `weights` λ (R,), `modes` (columns, R), `gates` (layers, 4, H),
    `<head>_weight`, `<head>_bias`. Initialisation as published: U uniform ±1/√d, V zero, C uniform ±√3/R,
    mode columns Xavier by their group, gates N(0, 0.0002).
    """

    def __init__(
        self,
        config: PromptConfig,
        sites: list[PromptSite],
        gate_layers: list[tuple[str, int]],
        heads: dict[str, nn.Linear],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config, self.sites = config, sites
        self.gate_layers = [name for name, _ in gate_layers]
        self.head_names = list(heads)
        rank = config.rank

        def uniform(shape: tuple[int, ...], bound: float) -> nn.Parameter:
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)

        if sites:
            for width in sorted({site.width_in for site in sites}):
                self.register_parameter(f"down_{width}", uniform((rank, width), width**-0.5))
            for width in sorted({site.width_out for site in sites}):
                self.register_parameter(f"up_{width}", nn.Parameter(torch.zeros(width, rank)))
            if config.form == "tucker":
                self.core = uniform((rank, rank, rank), math.sqrt(3) / rank)
            else:
                self.weights = nn.Parameter(torch.ones(rank))
            # fan sizes of the published factor matrices: [R, 4] in vision attention, [R, 8] in its MLP, [R,
            # 1] elsewhere
            fans = {"vision_attention": 4, "mlp": 8}
            bounds = torch.cat(
                [torch.full((s.columns, 1), math.sqrt(6 / (rank + fans.get(s.group, 1)))) for s in sites]
            )
            self.modes = nn.Parameter((torch.rand(len(bounds), rank, generator=generator) * 2 - 1) * bounds)
        if gate_layers:
            width = gate_layers[0][1]
            self.gates = nn.Parameter(torch.randn(len(gate_layers), 4, width, generator=generator) * 0.0002)
        for name, head in heads.items():
            self.register_parameter(f"{name}_weight", nn.Parameter(head.weight.detach().float().clone()))
            if head.bias is not None:
                self.register_parameter(f"{name}_bias", nn.Parameter(head.bias.detach().float().clone()))
        self.shadow: dict[
            str, Tensor
        ] = {}  # momentum copies, fp32, kept out of the module so that no cast touches them

    # ---- momentum slot ---------------------------------------------------------------------------

    def shadow_names(self) -> list[str]:
        """Parameters that have a momentum copy. `momentum_factors=shared`: U, V and the core are read
        online, as released."""
        shared = ("down_", "up_", "core", "weights") if self.config.momentum_factors == "shared" else ()
        return [
            n for n, _ in self.named_parameters() if not n.startswith(shared) and not n.startswith("itm_head")
        ]

    def _update_shadow(self, momentum: float) -> None:
        online = dict(self.named_parameters())
        for name in self.shadow_names():
            current = _wide(online[name].detach())
            if name not in self.shadow:
                self.shadow[name] = current.clone()
            copy = self.shadow[name] = self.shadow[name].to(current)
            copy.mul_(momentum).add_(current, alpha=1 - momentum)

    # ---- values ----------------------------------------------------------------------------------

    def forward(self, momentum: float | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fresh copies of all trained tensors with graph, by name; and, when `momentum` is given, those of
        the momentum slot after its exponential moving average of this step (p_m <- m p_m + (1-m) p),
        without graph (else empty).

        Plain tensors in dicts: only those carry the hooks with which ZeRO-3 gathers the parameters again
        for backward."""
        online = {name: parameter.clone() for name, parameter in self.named_parameters()}
        if momentum is None:
            return online, {}
        with torch.no_grad():
            self._update_shadow(momentum)
            return online, {name: tensor.detach() for name, tensor in online.items()} | self.shadow

    def values(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> PromptValues:
        """What the sites read, from tensors that `forward` gave; computed in fp32, handed on in `dtype`."""
        tensors = {name: _wide(tensor) for name, tensor in tensors.items()}
        down = {int(n.split("_")[1]): t for n, t in tensors.items() if n.startswith("down_")}
        up = {int(n.split("_")[1]): t for n, t in tensors.items() if n.startswith("up_")}
        inner: list[Tensor] = []
        mix: list[Tensor] = []
        diagonal: list[Tensor | None] = [None] * len(self.sites)
        if self.sites and self.goes_without_mix(tensors["modes"].device, dtype):
            diagonal = list((tensors["modes"] * tensors["weights"]).split(self.plan.columns))
            mix = [up[width].to(dtype) for width in self.plan.widths]
        elif self.sites:
            slices = self._core_slices(tensors)
            mix = reconstruct([up[width] for width in self.plan.distinct], slices, self.plan, dtype)
            inner = list(slices.split(self.plan.columns))
        heads = {
            name: tuple(
                tensors[part].to(dtype) if part in tensors else None
                for part in (f"{name}_weight", f"{name}_bias")
            )
            for name in self.head_names
        }
        return PromptValues(
            down={width: t.to(dtype) for width, t in down.items()},
            up={width: t.to(dtype) for width, t in up.items()},
            mix=mix,
            diagonal=diagonal,
            inner=[t.to(dtype) for t in inner],
            gates=list(tensors["gates"].to(dtype).unbind(0)) if "gates" in tensors else [],
            heads=heads,
        )

    @cached_property
    def plan(self) -> Plan:
        """The sites as `reconstruct` wants them."""
        sites = self.sites
        return Plan(
            tuple(site.width_out for site in sites),
            tuple(site.outputs for site in sites),
            tuple(site.inputs for site in sites),
            self.config.rank,
        )

    def goes_without_mix(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether A is never formed there: in CP form, when all sites take the Triton path and dropout sits where it
        fuses."""
        config = self.config
        if config.form != "cp" or (config.dropout and config.dropout_position == "released"):
            return False
        return all(
            path_of_projection(
                device,
                dtype,
                site.outputs * site.width_out,
                site.inputs * site.width_in,
                config.rank,
                site.inputs,
            )
            == "triton"
            for site in self.sites
        )

    def _core_slices(self, tensors: dict[str, Tensor]) -> Tensor:
        """G (columns, R, R), sites in order: one product for all columns of the model."""
        rank, modes = self.config.rank, tensors["modes"]
        if self.config.form == "tucker":
            slices = (modes @ tensors["core"].reshape(rank * rank, rank).t()).view(-1, rank, rank)
        else:
            slices = torch.diag_embed(modes * tensors["weights"])
        mixed = [site.columns > 1 and site.role == "mlp" for site in self.sites]
        if self.config.mlp_layout == "block" or not any(mixed):
            return slices
        # split, not slicing: the backward of a split is one concatenation
        per_site = list(slices.split(self.plan.columns))
        for i, site in enumerate(self.sites):
            if mixed[i]:
                per_site[i] = self._interleave(per_site[i], transpose=site.inputs > 1)
        return torch.cat(per_site)

    @staticmethod
    def _interleave(block: Tensor, transpose: bool) -> Tensor:
        """The published MLP layout: the flat index over (b, column) is cut into blocks, so that each block
        mixes all columns; the second projection uses the core transposed. block (n, R, R) -> (n, R, R)."""
        columns, rank, _ = block.shape
        mixed = block.permute(1, 2, 0).reshape(rank, columns, rank).transpose(0, 1)
        return mixed.transpose(1, 2) if transpose else mixed


def _wide(tensor: Tensor) -> Tensor:
    """16-bit numbers as fp32; others as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

"""attach(): swap a model's linears for prompted ones, freeze the rest, and report what was done.

A site is plain data (`name`, `module_path`, `inputs`, `outputs`, `modality`, `layer`, `role`), so any model
with `nn.Linear` can be a backbone. `Prompts` is the handle on everything attached: the adapters by name,
which is active, merge and unmerge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.config import PromptConfig
from aurora_ds.errors import AuroraError
from aurora_ds.kernels import dense_mix, merge, update
from aurora_ds.presets import PROMPT_PRESETS, with_prompt_preset
from aurora_ds.prompts.factors import FactorBank, PromptSite, PromptValues
from aurora_ds.prompts.prompted_linear import PromptedHead, PromptedLinear, PromptedNorm
from aurora_ds.prompts.query_transform import QueryTransform


class Prompts(nn.Module):
    """The adapters attached to one model. `values` is what the model's sites read; None means the plain
    backbone."""

    def __init__(
        self, model: nn.Module, config: PromptConfig, sites: list[PromptSite], paths: list[str]
    ) -> None:
        super().__init__()
        self.config, self.sites = config, sites
        self._model, self._paths = (model,), paths
        self.gate_layers: list[tuple[str, int]] = []
        self.normed: list[int] = []  # sites whose LayerNorm may make their x Uᵀ
        self.head_paths: dict[str, str] = {}
        self.banks = nn.ModuleDict()
        self.active: str | None = None
        self.values: PromptValues | None = None
        self.merged: dict[str, Tensor] | None = None

    # ---- adapters by name ------------------------------------------------------------------------

    @property
    def bank(self) -> FactorBank:
        """The active adapter."""
        if self.active is None:
            raise AuroraError(
                "No adapter is active. Call enable(name) first; present are: " + ", ".join(self.banks) + "."
            )
        return self.banks[self.active]

    def add(self, name: str, seed: int = 0) -> FactorBank:
        """A new adapter under `name`, initialised as published from `seed`; its heads start as copies of
        the backbone's."""
        if not name or "." in name or name in self.banks:
            raise AuroraError(
                f"'{name}' cannot name a new adapter: empty, with a dot, or taken. Present: {', '.join(self.banks)}."
            )
        self.refuse_if_merged("add an adapter")
        model = self._model[0]
        heads = {head: model.get_submodule(path) for head, path in self.head_paths.items()}
        self.banks[name] = FactorBank(
            self.config, self.sites, self.gate_layers, heads, torch.Generator().manual_seed(seed)
        )
        device = next(model.parameters()).device
        self.banks[name].to(device)
        return self.banks[name]

    def enable(self, name: str = "default", dtype: torch.dtype | None = None) -> None:
        """Make `name` the adapter that the model computes with. For evaluation: its values are computed
        here, once."""
        if name not in self.banks:
            raise AuroraError(f"No adapter is called '{name}'. Present: {', '.join(self.banks)}.")
        self.refuse_if_merged("enable another adapter")
        self.active = name
        with torch.no_grad():
            self.refresh(dtype=dtype)

    def refresh(self, momentum: float | None = None, dtype: torch.dtype | None = None) -> PromptValues | None:
        """Compute the active adapter's values anew, once per step. With `momentum`, also move its momentum
        slot by one step, and return the slot's values."""
        dtype = dtype or self.compute_dtype()
        online, shadow = self.bank(momentum)
        self.values = self.bank.values(online, dtype)
        if momentum is None:
            return None
        with torch.no_grad():
            return self.bank.values(shadow, dtype)

    def disable(self) -> None:
        """Compute as the plain backbone, until `enable`."""
        self.refuse_if_merged("disable the adapter")
        self.active = self.values = None

    def compute_dtype(self) -> torch.dtype:
        return next(p for p in self._model[0].parameters() if p.is_floating_point()).dtype

    def refuse_if_merged(self, action: str) -> None:
        if self.merged is not None:
            raise AuroraError(
                f"Cannot {action} while adapter '{self.active}' is merged into the weights. Call unmerge() first."
            )

    # ---- merge -----------------------------------------------------------------------------------

    @torch.no_grad()
    def merge(self) -> None:
        """W <- W + s·ΔW at every site, and the trained heads into the model's. The query transformation
        stays: it is no weight update. The former weights are kept on the CPU, so that unmerge() gives back
        the very same bits."""
        if self.values is None:
            raise AuroraError("Nothing to merge: no adapter is active. Call enable(name) first.")
        self.refuse_if_merged("merge again")
        model, backup = self._model[0], {}
        for i, path in enumerate(self._paths):
            linear = model.get_submodule(path)
            backup[f"{path}.weight"] = linear.weight.detach().cpu().clone()
            down, mix = self._factors(i)
            merge(linear.weight, down, mix, self.sites[i].inputs, self.config.scale)
        for head, path in self.head_paths.items():
            linear = model.get_submodule(path)
            for part, value in zip(("weight", "bias"), self.values.heads[head], strict=True):
                parameter = getattr(linear, part)
                if parameter is None:
                    continue
                backup[f"{path}.{part}"] = parameter.detach().cpu().clone()
                parameter.copy_(value)
        self.merged = backup

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the weights of before merge() back, bit for bit."""
        if self.merged is None:
            raise AuroraError("Nothing to unmerge: call merge() first.")
        parameters = dict(self._model[0].named_parameters())
        for name, value in self.merged.items():
            parameters[name].copy_(value)
        self.merged = None

    def update(self, index: int) -> Tensor:
        """ΔW (outputs·width_out, inputs·width_in) of one site under the active values, in fp32 or wider and
        without the scale."""
        down, mix = self._factors(index)
        return update(down, mix, self.sites[index].inputs)

    def _factors(self, index: int) -> tuple[Tensor, Tensor]:
        """U and A of one site under the active values."""
        site, values = self.sites[index], self.values
        return values.down[site.width_in], dense_mix(values.mix[index], values.diagonal[index], site.inputs)

    # ---- report ----------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Counts for people and for results.json: sites per group, trained numbers per tensor, share of the
        backbone."""
        bank = self.banks[self.active] if self.active else next(iter(self.banks.values()))
        own = {id(p) for b in self.banks.values() for p in b.parameters()}
        backbone = sum(_numel(p) for p in self._model[0].parameters() if id(p) not in own)
        tensors = {name: [list(_shape(p)), _numel(p)] for name, p in bank.named_parameters()}
        trained = sum(count for _, count in tensors.values())
        groups: dict[str, int] = {}
        for site in self.sites:
            groups[site.group] = groups.get(site.group, 0) + 1
        return {
            "preset": self.config.preset,
            "form": self.config.form,
            "rank": self.config.rank,
            "sites": groups,
            "columns": sum(s.columns for s in self.sites),
            "query_transform_layers": len(self.gate_layers),
            "tensors": tensors,
            "trainable": trained,
            "backbone": backbone,
            "share_percent": 100 * trained / backbone,
        }


def _numel(parameter: nn.Parameter) -> int:
    return getattr(
        parameter, "ds_numel", parameter.numel()
    )  # ZeRO-3 leaves an empty tensor with its size beside it


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    new.train(model.get_submodule(path).training)  # a model in evaluation stays in evaluation
    setattr(model.get_submodule(parent), leaf, new)


def attach(
    model: nn.Module,
    sites: Sequence[Any],
    config: PromptConfig,
    query_layers: Sequence[tuple[str, nn.Module, int]] = (),
    heads: Mapping[str, str] | None = None,
    adapter: str = "default",
    seed: int = 0,
) -> Prompts:
    """Attach Aurora prompts to `model`, in place.

    Args:
        sites: what can be adapted; `config.sites` (glob patterns over site names) picks from them.
        config: null settings are those of its preset; null `train_heads` are the preset's that `heads` has.
        query_layers: (name, layer, H) of the layers whose `residual` takes the query transformation.
        heads: name -> module path of the heads that can be trained; `config.train_heads` picks from them.
    Returns: the handle, with one adapter of the given name enabled; every parameter of `model` is frozen.
    Raises:
        AuroraError: a pattern that matches no site, an unknown head, a site or head that is no `nn.Linear`,
        or whose owner computes without calling it, a site that does not divide into its blocks, query
        layers of several widths.
    """
    heads = dict(heads or {})
    if config.train_heads is None:
        known = [name for name in PROMPT_PRESETS[config.preset]["train_heads"] if name in heads]
        config = config.model_copy(update={"train_heads": known})
    config = with_prompt_preset(config)
    unknown = [name for name in config.train_heads or [] if name not in heads]
    if unknown:
        raise AuroraError(
            f"prompts.train_heads names {unknown}, which this backbone does not have. It has: {sorted(heads)}."
        )
    chosen = _choose(sites, config.sites)
    specs, column = [], 0
    for site in chosen:
        linear = _linear(model, site.module_path, f"Site '{site.name}'")
        if linear.out_features % site.outputs or linear.in_features % site.inputs:
            raise AuroraError(
                f"Site '{site.name}' ({linear.out_features} x {linear.in_features}) does not divide "
                f"into {site.outputs} output "
                f"and {site.inputs} input blocks."
            )
        specs.append(
            PromptSite(
                site.name,
                linear.in_features // site.inputs,
                linear.out_features // site.outputs,
                site.inputs,
                site.outputs,
                site.modality,
                site.layer,
                site.role,
                column,
            )
        )
        column += specs[-1].columns
    for name in config.train_heads:
        _linear(model, heads[name], f"Head '{name}'")
    widths = {width for _, _, width in query_layers}
    if config.query_transform and len(widths) > 1:
        raise AuroraError(
            "The query transformation keeps its vectors in one tensor and needs layers of one width; these "
            f"have {sorted(widths)}. Set prompts.query_transform=false, or give layers of one width."
        )
    model.requires_grad_(False)
    prompts = Prompts(model, config, specs, [site.module_path for site in chosen])
    prompts.head_paths = {name: heads[name] for name in config.train_heads}
    if config.query_transform:
        prompts.gate_layers = [(name, width) for name, _, width in query_layers]
    prompts.add(adapter, seed)
    for index, site in enumerate(chosen):
        _replace(
            model, site.module_path, PromptedLinear(model.get_submodule(site.module_path), prompts, index)
        )
        norm = getattr(site, "norm", None)
        if norm is not None:
            _replace(model, norm, PromptedNorm(_norm(model, norm, specs[index]), prompts, index))
            prompts.normed.append(index)
    for name, path in prompts.head_paths.items():
        _replace(model, path, PromptedHead(model.get_submodule(path), prompts, name))
    if config.query_transform:
        for index, (_, layer, _) in enumerate(query_layers):
            layer.residual = QueryTransform(prompts, index)
    prompts.enable(adapter)
    return prompts


def _linear(model: nn.Module, path: str, what: str) -> nn.Linear:
    """The `nn.Linear` at `path`, which its owners must call: a prompt on one whose weight they read
    themselves (as PyTorch's fused attention and encoder layers do) would silently have no effect."""
    try:
        linear = model.get_submodule(path)
    except AttributeError as error:
        raise AuroraError(f"{what}: the backbone has no module '{path}'. {error}.") from error
    if not isinstance(linear, nn.Linear):
        raise AuroraError(
            f"{what} is a {type(linear).__name__}, not an nn.Linear; prompts can only adapt linears."
        )
    parts = path.split(".")
    for depth in range(len(parts)):
        owner = model.get_submodule(".".join(parts[:depth]))
        if isinstance(owner, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise AuroraError(
                f"{what} lies in a {type(owner).__name__}, which reads the weights of its linears without "
                "calling them, so that a prompt there would have no effect. Use a backbone whose linears are called."
            )
    return linear


def _norm(model: nn.Module, path: str, site: PromptSite) -> nn.LayerNorm:
    """The LayerNorm before a site, which must make the site's x as one block."""
    norm = model.get_submodule(path)
    fits = isinstance(norm, nn.LayerNorm) and norm.bias is not None and norm.weight.shape == (site.width_in,)
    if not fits or site.inputs > 1:
        raise AuroraError(
            f"Site '{site.name}': '{path}' ({norm}) is no LayerNorm with weight and bias over the {site.width_in} "
            "numbers that the site reads as one block. Leave the site's `norm` empty."
        )
    return norm


def _choose(sites: Sequence[Any], patterns: Sequence[str]) -> list[Any]:
    if not sites:
        return []
    for pattern in patterns:
        if not any(fnmatchcase(site.name, pattern) for site in sites):
            raise AuroraError(
                f"prompts.sites pattern '{pattern}' matches no site of this backbone. Sites are named like "
                f"'{sites[0].name}' and '{sites[-1].name}' ({len(sites)} of them); '*' takes all."
            )
    return [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in patterns)]

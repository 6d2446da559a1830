"""Adapter tensors under the names of the public Aurora code (`CP_U.weight`, `…attn.CP_attention`, …), both
ways.

Its layout per rank R: `CP_attention` [R, 4] holds q, k, v and the output projection of a vision block,
`mlp_CP` [R, 8] the four columns of each MLP projection, `q_CP`, `k_CP`, `v_CP` [R, 1] a text attention;
four gate vectors per text layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aurora_ds.errors import AuroraError
from aurora_ds.prompts.factors import FactorBank, PromptSite

GATES = ("CP_scaleself", "CP_shiftself", "CP_scalecross", "CP_shiftcross")
WIDTHS = {"CP_attention": 4, "mlp_CP": 8, "q_CP": 1, "k_CP": 1, "v_CP": 1}  # columns of each published tensor


def _columns(site: PromptSite) -> list[tuple[str, int]]:
    """(published tensor, column in it) for each mode column of a site."""
    parent, _, leaf = site.name.rpartition(".")
    table = {
        "qkv": [(f"{parent}.CP_attention", i) for i in range(3)],
        "proj": [(f"{parent}.CP_attention", 3)],
        "fc1": [(f"{parent}.mlp_CP", i) for i in range(4)],
        "fc2": [(f"{parent}.mlp_CP", i) for i in range(4, 8)],
        "query": [(f"{parent}.q_CP", 0)],
        "kv": [(f"{parent}.k_CP", 0), (f"{parent}.v_CP", 0)],
    }
    if site.modality != "vision" and leaf == "qkv":
        return [(f"{parent}.{letter}_CP", 0) for letter in "qkv"]
    if leaf not in table:
        raise AuroraError(
            f"Site '{site.name}' has no counterpart in the published layout (known: {', '.join(table)})."
        )
    return table[leaf]


def from_published(bank: FactorBank, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The bank's tensors, read from published names. Raises AuroraError listing every missing name."""
    wanted: dict[str, list[int]] = {}
    missing: list[str] = []

    def read(name: str) -> Tensor:
        if name not in tensors:
            missing.extend([name] if name not in missing else [])
            return torch.zeros(1, 1)
        columns = WIDTHS.get(name.rpartition(".")[2])
        if columns is not None and list(tensors[name].shape) != [bank.config.rank, columns]:
            raise AuroraError(
                f"'{name}' has shape {list(tensors[name].shape)} in the published-layout adapter; this "
                f"configuration needs {[bank.config.rank, columns]}."
            )
        return tensors[name].detach().float()

    result: dict[str, Tensor] = {}
    for name, parameter in bank.named_parameters():
        if name.startswith("down_"):
            result[name] = read("CP_U.weight")
        elif name.startswith("up_"):
            result[name] = read("CP_V.weight")
        elif name == "core":
            result[name] = read("CP_C")
        elif name == "modes":
            columns = [read(tensor) for site in bank.sites for tensor, _ in _columns(site)]
            places = [place for site in bank.sites for _, place in _columns(site)]
            if not missing:
                result[name] = torch.stack(
                    [column[:, place] for column, place in zip(columns, places, strict=True)]
                )
        elif name == "gates":
            rows = [[read(f"{layer}.{gate}") for gate in GATES] for layer in bank.gate_layers]
            if not missing:
                result[name] = torch.stack([torch.stack(row) for row in rows])
        else:
            head, _, part = name.rpartition("_")
            result[name] = read(f"{head}.{part}")
        wanted[name] = list(parameter.shape)
    if missing:
        raise AuroraError(
            f"The published-layout adapter lacks {len(missing)} tensors: "
            f"{', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}."
        )
    for name, value in result.items():
        if list(value.shape) != wanted[name]:
            raise AuroraError(
                f"'{name}' has shape {list(value.shape)} in the published-layout adapter; this "
                f"configuration needs {wanted[name]}."
            )
    return result


def to_published(bank: FactorBank, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under this package's names -> published names. The inverse of `from_published`; it serves
    gradients too.

    Raises AuroraError for what the published layout cannot hold: the cp form, more than one block width, or
    sites that fill a published tensor only in part."""
    if bank.config.form != "tucker" or len([n for n in tensors if n.startswith("down_")]) > 1:
        raise AuroraError("The published layout holds the tucker form at one width only.")
    result: dict[str, Tensor] = {}
    places: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("down_"):
            result["CP_U.weight"] = value
        elif name.startswith("up_"):
            result["CP_V.weight"] = value
        elif name == "core":
            result["CP_C"] = value
        elif name == "modes":
            flat = [column for site in bank.sites for column in _columns(site)]
            for (tensor, place), row in zip(flat, value, strict=True):
                places.setdefault(tensor, {})[place] = row
        elif name == "gates":
            for layer, gates in zip(bank.gate_layers, value, strict=True):
                result |= {f"{layer}.{gate}": row for gate, row in zip(GATES, gates, strict=True)}
        else:
            head, _, part = name.rpartition("_")
            result[f"{head}.{part}"] = value
    for tensor, columns in places.items():
        if len(columns) != WIDTHS[tensor.rpartition(".")[2]]:
            raise AuroraError(
                f"The published layout needs all columns of '{tensor}'; the attached sites have {sorted(columns)} of "
                f"{WIDTHS[tensor.rpartition('.')[2]]}. Attach with prompts.sites=['*'] to write it."
            )
        result[tensor] = torch.stack([columns[i] for i in sorted(columns)], dim=1)
    return result

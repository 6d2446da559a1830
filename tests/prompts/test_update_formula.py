"""The update of each kind of site against the formula as written (Aurora (arXiv 2305.08381) §3.2 and its released
code), one scalar at a time: ΔW = V (C·p)ᵀ U per block, and the published code's own arrangement of MLP columns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.config import PromptConfig
from aurora_ds.prompts import attach


class Plain:
    """A site in the least that `attach` asks for."""

    def __init__(self, name, inputs, outputs, modality, role):
        self.name = self.module_path = name
        self.inputs, self.outputs, self.modality, self.role, self.layer = inputs, outputs, modality, role, 0


SITES = [
    Plain("qkv", 1, 3, "vision", "attention"),
    Plain("proj", 1, 1, "vision", "attention"),
    Plain("fc1", 1, 4, "vision", "mlp"),
    Plain("fc2", 4, 1, "vision", "mlp"),
    Plain("kv", 1, 2, "cross", "attention"),
]
WIDTH, TEXT_WIDTH = 6, 5


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * TEXT_WIDTH)


def attached(rank: int, form: str, layout: str, scale: float = 1.0):
    torch.manual_seed(rank)
    model = Model().double()
    config = PromptConfig(rank=rank, form=form, mlp_layout=layout, scale=scale, dropout=0.0, context="off")
    prompts = attach(model, SITES, config).double()
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in prompts.bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    prompts.enable()
    return model, prompts


def slices(prompts, site: int) -> list[Tensor]:
    """(C·p)_ab = Σ_c C_abc p_c, or diag(λ∘p), for each mode column of a site; a and b in loops."""
    bank, spec = prompts.bank, prompts.sites[site]
    rank, result = prompts.config.rank, []
    for column in range(spec.column, spec.column + max(spec.inputs, spec.outputs)):
        p = bank.modes[column]
        matrix = torch.zeros(rank, rank, dtype=p.dtype)
        for a in range(rank):
            for b in range(rank):
                if prompts.config.form == "tucker":
                    matrix[a, b] = sum(bank.core[a, b, c] * p[c] for c in range(rank))
                elif a == b:
                    matrix[a, a] = bank.weights[a] * p[a]
        result.append(matrix)
    return result


def literal(prompts, site: int, x: Tensor) -> Tensor:
    """Block layout: every block has its own column. x (rows, in)."""
    spec, bank = prompts.sites[site], prompts.bank
    down, up = (
        bank.get_parameter(f"down_{spec.width_in}"),
        bank.get_parameter(f"up_{spec.width_out}"),
    )
    blocks = slices(prompts, site)
    if spec.inputs > 1:
        return sum(
            (part @ down.t() @ g) @ up.t() for part, g in zip(x.chunk(spec.inputs, 1), blocks, strict=True)
        )
    updates = [up @ g.t() @ down for g in blocks]  # ΔW = V (C·p)ᵀ U
    return x @ torch.cat(updates).t()


def literal_interleaved(prompts, site: int, x: Tensor) -> Tensor:
    """The released MLP: one (R, 4R) matrix whose column 4b+j holds (C·p_j)_ab, cut into four (R, R) blocks."""
    spec, bank, rank = prompts.sites[site], prompts.bank, prompts.config.rank
    down, up = bank.get_parameter(f"down_{WIDTH}"), bank.get_parameter(f"up_{WIDTH}")
    wide = torch.zeros(rank, 4 * rank, dtype=x.dtype)
    for j, g in enumerate(slices(prompts, site)):
        for a in range(rank):
            for b in range(rank):
                wide[a, 4 * b + j] = g[a, b]
    if spec.outputs == 4:
        mixed = x @ down.t() @ wide  # (rows, 4R)
        return torch.cat([mixed[:, i * rank : (i + 1) * rank] @ up.t() for i in range(4)], dim=1)
    mapped = torch.cat([part @ down.t() for part in x.chunk(4, dim=1)], dim=1)  # (rows, 4R)
    return mapped @ wide.t() @ up.t()


def compare(model, prompts, index, expected_update):
    site = SITES[index]
    module = getattr(model, site.name)
    x = torch.randn(7, module.in_features, dtype=torch.float64)
    with torch.no_grad():
        expected = F.linear(x, module.weight, module.bias) + prompts.config.scale * expected_update(x)
        torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-11)
        merged = x @ (prompts.config.scale * prompts.update(index)).t()
        torch.testing.assert_close(merged, prompts.config.scale * expected_update(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("form", ["tucker", "cp"])
@pytest.mark.parametrize("index", range(5), ids=[s.name for s in SITES])
def test_block_layout(rank, form, index):
    model, prompts = attached(rank, form, "block", scale=0.5)
    compare(model, prompts, index, lambda x: literal(prompts, index, x))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("index", range(5), ids=[s.name for s in SITES])
def test_interleaved_layout_is_the_published_mlp(rank, index):
    model, prompts = attached(rank, "tucker", "interleaved")
    formula = literal_interleaved if SITES[index].role == "mlp" else literal
    compare(model, prompts, index, lambda x: formula(prompts, index, x))


def test_cp_is_tucker_with_a_diagonal_core():
    rank = 4
    cp_model, cp = attached(rank, "cp", "block")
    tucker_model, tucker = attached(rank, "tucker", "block")
    tucker_model.load_state_dict(cp_model.state_dict())
    with torch.no_grad():
        for name, parameter in tucker.bank.named_parameters():
            if name != "core":
                parameter.copy_(cp.bank.get_parameter(name))
        tucker.bank.core.zero_()
        for i in range(rank):
            tucker.bank.core[i, i, i] = cp.bank.weights[i]
        tucker.enable()
        for site in SITES:
            linear = getattr(cp_model, site.name)
            x = torch.randn(3, linear.in_features, dtype=torch.float64)
            torch.testing.assert_close(linear(x), getattr(tucker_model, site.name)(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_gradients_of_every_factor(form):
    """Finite differences through the whole way from factors to outputs, in double precision."""
    model, prompts = attached(2, form, "block")
    names = [name for name, _ in prompts.bank.named_parameters()]
    inputs = {
        site.name: torch.randn(2, getattr(model, site.name).in_features, dtype=torch.float64)
        for site in SITES
    }

    def outputs(*tensors):
        prompts.values = prompts.bank.values(dict(zip(names, tensors, strict=True)), torch.float64)
        return tuple(getattr(model, name)(x) for name, x in inputs.items())

    tensors = [p.detach().clone().requires_grad_() for p in prompts.bank.parameters()]
    assert torch.autograd.gradcheck(outputs, tensors, fast_mode=True)


def test_values_are_computed_in_fp32_and_handed_on_in_16_bits():
    model, prompts = attached(4, "tucker", "block")
    model.bfloat16(), prompts.bfloat16()
    prompts.enable()
    site = prompts.sites[0]
    assert {t.dtype for t in [*prompts.values.mix, *prompts.values.down.values()]} == {torch.bfloat16}
    bank = prompts.bank
    core, modes, up = bank.core.float(), bank.modes.float(), bank.get_parameter(f"up_{WIDTH}").float()
    wanted = torch.cat([up @ torch.einsum("abc,c->ab", core, modes[c]).t() for c in range(site.columns)])
    assert torch.equal(prompts.values.mix[0], wanted.bfloat16()) or torch.allclose(
        prompts.values.mix[0].float(), wanted, rtol=2**-7, atol=1e-6
    )
    x = torch.randn(3, WIDTH, dtype=torch.bfloat16)
    assert model.qkv(x).dtype == torch.bfloat16

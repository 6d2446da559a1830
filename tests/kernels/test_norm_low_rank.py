"""LayerNorm with x Uᵀ in its epilogue: the twin and the formula of its backward pass, and where the model takes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aurora_ds.backbones.site import Site
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import PromptConfig, VisionConfig
from aurora_ds.errors import AuroraError
from aurora_ds.kernels import choice, norm_low_rank
from aurora_ds.prompts import attach


def case(rows=5, width=7, rank=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return 3 + tensor(rows, width), tensor(width), tensor(width), tensor(rank, width)


def test_values_are_those_of_the_two_steps():
    x, weight, bias, down = case()
    h, z = norm_low_rank(x.view(1, 5, 7), weight, bias, down, 1e-3)
    want = F.layer_norm(x, (7,), weight, bias, 1e-3)
    torch.testing.assert_close((h, z), (want[None], (want @ down.t())[None]))


def test_gradients_of_input_and_u():
    x, weight, bias, down = case()
    x.requires_grad_(), down.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, down: norm_low_rank(x, weight, bias, down, 1e-3), (x, down))


def test_compiles_into_one_graph():
    x, weight, bias, down = case(dtype=torch.float32)
    x.requires_grad_(), down.requires_grad_()

    def output():
        h, z = norm_low_rank(x, weight, bias, down, 1e-3)
        return h.square().sum() + z.square().sum()

    traced = torch.compile(output, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(traced(), (x, down)), torch.autograd.grad(output(), (x, down))
    )


@pytest.fixture
def tower():
    torch.manual_seed(0)
    config = VisionConfig(image_size=32, patch_size=16, width=16, depth=2, heads=2)
    model = VisionTransformer(config, activation_checkpointing=True).train()
    sites = model.sites("")
    sites = [
        Site(s.name[1:], s.module_path[1:], s.outputs, s.inputs, s.modality, s.layer, s.role, s.norm[1:])
        if s.norm
        else Site(s.name[1:], s.module_path[1:], s.outputs, s.inputs, s.modality, s.layer, s.role)
        for s in sites
    ]
    names = set(model.state_dict())
    prompts = attach(
        model, sites, PromptConfig(rank=3, dropout=0.3, dropout_position="shared", context="off")
    )
    assert set(model.state_dict()) == names, "the norms that stand in keep the parameters' names"
    with torch.no_grad():
        for parameter in prompts.bank.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model, prompts


@pytest.mark.parametrize("position", ["shared", "released"])
def test_the_vision_tower_computes_the_same_by_either_way(tower, monkeypatch, position):
    """The op by its twin, everywhere where the setting would take the kernel; activations are recomputed."""
    model, prompts = tower
    prompts.config = prompts.config.model_copy(update={"dropout_position": position})
    x, found, asked = torch.randn(2, 3, 32, 32), [], []
    for fused in (False, True):

        def path(*arguments, norm=False, fused=fused):
            asked.append(norm)
            return "triton" if fused and norm else "torch"

        monkeypatch.setattr(choice, "path_of_start", path)
        prompts.refresh()
        torch.manual_seed(1)
        y = model(x).square().sum()
        found.append([y.detach(), *torch.autograd.grad(y, list(prompts.bank.parameters()))])
    assert asked.count(True) == 2 * 2 * 2 * 2  # norms, blocks, once more in the backward pass, both ways
    for got, want in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_block_of_the_tower_compiles_into_one_graph(tower):
    model, prompts = tower
    traced = torch.compile(model.blocks[0], fullgraph=True, backend="aot_eager")
    x, found = torch.randn(2, 5, 16), []
    for block in (model.blocks[0], traced):
        prompts.refresh()
        torch.manual_seed(1)
        found.append(torch.autograd.grad(block(x).square().sum(), list(prompts.bank.parameters())))
    for got, want in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_none_is_refused():
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 6), "norm": torch.nn.Identity()})
    with pytest.raises(AuroraError, match="'linear'.*'norm'.*no LayerNorm.*empty"):
        attach(
            model, [Site("linear", "linear", norm="norm")], PromptConfig(rank=2, dropout=0.0, context="off")
        )

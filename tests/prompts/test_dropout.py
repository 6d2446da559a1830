"""Where dropout sits inside the update: one shared mask, or where the released code has it. The masks drawn are
recorded, and the formula is written out with them."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import awaken
from torch import nn
from torch.nn import functional as F

from aurora_ds.backbones.site import Site
from aurora_ds.config import PromptConfig
from aurora_ds.kernels import draw_seed, dropout_mask
from aurora_ds.prompts import attach

WIDTH, RANK, ROWS, RATE = 6, 4, 5, 0.4
SITES = {
    "vision_qkv": Site("linear", "linear", 3, 1, "vision", 0, "attention"),
    "vision_fc1": Site("linear", "linear", 4, 1, "vision", 0, "mlp"),
    "vision_fc2": Site("linear", "linear", 1, 4, "vision", 0, "mlp"),
    "text_qkv": Site("linear", "linear", 3, 1, "text", 0, "attention"),
    "cross_kv": Site("linear", "linear", 2, 1, "cross", 0, "attention"),
}


def prompted(site: str, position: str, layout: str = "block"):
    torch.manual_seed(0)
    spec = SITES[site]
    model = nn.ModuleDict({"linear": nn.Linear(WIDTH * spec.inputs, WIDTH * spec.outputs)})
    config = PromptConfig(
        rank=RANK, dropout=RATE, dropout_position=position, mlp_layout=layout, scale=0.7, context="off"
    )
    prompts = attach(model, [spec], config)
    awaken(prompts.bank)
    prompts.enable()
    return model.train()["linear"], prompts, torch.randn(ROWS, WIDTH * spec.inputs)


@pytest.fixture
def masks(monkeypatch) -> list[torch.Tensor]:
    """Every dropout mask that is drawn, divided by the keep probability."""
    drawn: list[torch.Tensor] = []

    def dropout(x, p, training=True):
        assert training and p == RATE
        drawn.append((torch.rand(x.shape) >= p).to(x.dtype) / (1 - p))
        return x * drawn[-1]

    monkeypatch.setattr(F, "dropout", dropout)
    return drawn


@pytest.fixture
def seeds(monkeypatch) -> list[torch.Tensor]:
    """Every seed that a fused projection drew."""
    drawn: list[torch.Tensor] = []

    def draw():
        drawn.append(draw_seed())
        return drawn[-1]

    monkeypatch.setattr("aurora_ds.prompts.prompted_linear.draw_seed", draw)
    return drawn


def frozen(linear, x):
    return F.linear(x, linear.weight, linear.bias)


@pytest.mark.parametrize("site", SITES)
def test_shared_is_one_mask_after_u(site, seeds):
    linear, prompts, x = prompted(site, "shared")
    spec = SITES[site]
    with torch.no_grad():
        got = linear(x)
        (seed,) = seeds
        mask = dropout_mask(seed, ROWS * spec.inputs, RANK, RATE, x).view(ROWS, -1)
        z = torch.cat([part @ prompts.values.down[WIDTH].t() for part in x.chunk(spec.inputs, 1)], dim=1)
        expected = frozen(linear, x) + 0.7 * (z * mask) @ prompts.values.mix[0].t()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", ["block", "interleaved"])
@pytest.mark.parametrize("site", ["vision_qkv", "vision_fc1"])
def test_released_in_vision_is_after_the_core(site, layout, masks):
    linear, prompts, x = prompted(site, "released", layout)
    values, blocks = prompts.values, SITES[site].outputs
    with torch.no_grad():
        got = linear(x)
        (mask,) = masks
        assert mask.shape == (ROWS, blocks, RANK)
        z = x @ values.down[WIDTH].t()
        parts = [(z @ values.inner[0][i] * mask[:, i]) @ values.up[WIDTH].t() for i in range(blocks)]
    torch.testing.assert_close(got, frozen(linear, x) + 0.7 * torch.cat(parts, dim=1))


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_released_in_the_second_projection_is_after_the_sum(layout, masks):
    linear, prompts, x = prompted("vision_fc2", "released", layout)
    values = prompts.values
    with torch.no_grad():
        got = linear(x)
        mask = masks[0].view(ROWS, RANK)
        mixed = sum(
            part @ values.down[WIDTH].t() @ values.inner[0][i] for i, part in enumerate(x.chunk(4, 1))
        )
    torch.testing.assert_close(got, frozen(linear, x) + 0.7 * (mixed * mask) @ values.up[WIDTH].t())


@pytest.mark.parametrize("site", ["text_qkv", "cross_kv"])
def test_released_in_text_is_after_u_with_a_mask_per_projection(site, masks):
    linear, prompts, x = prompted(site, "released")
    values, blocks = prompts.values, SITES[site].outputs
    with torch.no_grad():
        got = linear(x)
        (mask,) = masks
        assert mask.shape == (ROWS, blocks, RANK)
        z = x @ values.down[WIDTH].t()
        parts = [(z * mask[:, i]) @ values.inner[0][i] @ values.up[WIDTH].t() for i in range(blocks)]
    torch.testing.assert_close(got, frozen(linear, x) + 0.7 * torch.cat(parts, dim=1))


@pytest.mark.parametrize("position", ["shared", "released"])
@pytest.mark.parametrize("site", SITES)
def test_evaluation_has_none_and_both_forms_agree_there(site, position):
    linear, prompts, x = prompted(site, position)
    linear.eval()
    with torch.no_grad():
        expected = frozen(linear, x) + 0.7 * x @ prompts.update(0).t()
        torch.testing.assert_close(linear(x), expected)
        assert torch.equal(linear(x), linear(x))


@pytest.mark.parametrize("position", ["shared", "released"])
def test_dropout_keeps_the_mean(position):
    linear, prompts, x = prompted("vision_qkv", position)
    with torch.no_grad():
        torch.manual_seed(0)
        mean = torch.stack([linear(x) for _ in range(3000)]).mean(0)
        assert (mean - linear.eval()(x)).abs().max() < 0.05


@pytest.mark.parametrize("position", ["shared", "released"])
def test_gradients_see_the_same_mask(position):
    """Through the fused operation and through the written-out one: finite differences with the mask held."""
    linear, prompts, x = prompted("vision_qkv", position)
    linear.double(), prompts.double()
    names = [name for name, _ in prompts.bank.named_parameters()]

    def outputs(x, *tensors):
        prompts.values = prompts.bank.values(dict(zip(names, tensors, strict=True)), torch.float64)
        torch.manual_seed(3)
        return linear(x)

    tensors = [p.detach().clone().requires_grad_() for p in prompts.bank.parameters()]
    assert torch.autograd.gradcheck(outputs, (x.double().requires_grad_(), *tensors), fast_mode=True)

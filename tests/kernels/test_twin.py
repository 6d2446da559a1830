"""The PyTorch twin of the fused projection against the formula, written out, its gradients against finite differences,
and its graph under torch.compile."""

import pytest
import torch

from aurora_ds.backbones.site import Site
from aurora_ds.config import PromptConfig
from aurora_ds.kernels import draw_seed, dropout_mask, prompted_linear
from aurora_ds.prompts import attach

LAYOUTS = [(1, 1), (1, 3), (1, 2), (4, 1), (1, 4)]


def case(inputs, outputs, cp=False, rank=3, width=5, rows=4, seed=0, dtype=torch.float64):
    """x, W, b, U, A or V, and the diagonals or None."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return (
        tensor(rows, inputs * width),
        tensor(outputs * 6, inputs * width),
        tensor(outputs * 6),
        tensor(rank, width),
        tensor(6, rank) if cp else tensor(outputs * 6, inputs * rank),
        tensor(max(inputs, outputs), rank) if cp else None,
    )


@pytest.mark.parametrize(("inputs", "outputs"), LAYOUTS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_are_the_formula(inputs, outputs, dropout):
    x, weight, bias, down, mix, _ = case(inputs, outputs)
    seed = torch.tensor(11)
    z = torch.cat([block @ down.t() for block in x.chunk(inputs, dim=1)], dim=1)
    if dropout:
        z = z * dropout_mask(seed, len(x) * inputs, 3, dropout, x).view(len(x), -1)
    expected = x @ weight.t() + bias + 0.5 * z @ mix.t()
    got = prompted_linear(x, weight, bias, down, mix, inputs=inputs, scale=0.5, dropout=dropout, seed=seed)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), LAYOUTS)
def test_diagonals_scale_the_columns_of_v_block_by_block(inputs, outputs):
    x, weight, bias, down, up, diagonal = case(inputs, outputs, cp=True)
    blocks = [up * row for row in diagonal]
    mix = torch.cat(blocks, dim=1 if inputs > 1 else 0)
    got = prompted_linear(x, weight, bias, down, up, diagonal, inputs=inputs)
    torch.testing.assert_close(got, prompted_linear(x, weight, bias, down, mix, inputs=inputs))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cp", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "scale"), [(1, 3, 1.0), (4, 1, 1.0), (1, 2, 0.25)])
def test_gradients_of_input_and_factors(inputs, outputs, scale, cp, dropout):
    x, weight, bias, down, mix, diagonal = case(inputs, outputs, cp)
    leaves = [t.requires_grad_() for t in (x, down, mix, diagonal) if t is not None]
    seed = draw_seed()

    def output(x, down, mix, diagonal=None):
        return prompted_linear(
            x, weight, bias, down, mix, diagonal, inputs=inputs, scale=scale, dropout=dropout, seed=seed
        )

    assert torch.autograd.gradcheck(output, leaves)


def test_leading_dimensions_and_a_frozen_input():
    x, weight, bias, down, mix, _ = case(1, 2, rows=6)
    down.requires_grad_()
    flat = prompted_linear(x, weight, bias, down, mix)
    shaped = prompted_linear(x.view(2, 3, -1), weight, bias, down, mix)
    assert torch.equal(flat.view(2, 3, -1), shaped)
    shaped.sum().backward()
    assert x.grad is None and down.grad.abs().sum() > 0


def test_only_the_input_and_its_low_rank_image_are_kept():
    x, weight, bias, down, mix, _ = case(4, 1, rows=7)
    down.requires_grad_(), mix.requires_grad_(), x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        prompted_linear(x, weight, bias, down, mix, inputs=4, dropout=0.5, seed=draw_seed())
    known = {t.data_ptr() for t in (x, weight, down, mix)}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in known] == [
        (7, 4 * 3),
        (),
    ]  # x Uᵀ and the seed


@pytest.mark.parametrize("cp", [False, True])
def test_compiles_into_one_graph(cp):
    x, weight, bias, down, mix, diagonal = case(1, 3, cp, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, down, mix, diagonal) if t is not None]

    def output(seed):
        return prompted_linear(
            x, weight, bias, down, mix, diagonal, inputs=1, dropout=0.5, seed=seed
        ).square()

    seed = torch.tensor(5)
    compiled = torch.compile(output, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(output(seed).sum(), leaves)
    for got, want in zip(torch.autograd.grad(compiled(seed).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_a_prompted_model_with_dropout_compiles_into_one_graph():
    linear = torch.nn.Linear(6, 18)
    model = torch.nn.ModuleDict({"qkv": linear}).train()
    config = PromptConfig(rank=4, dropout=0.3, dropout_position="shared", context="off")
    prompts = attach(model, [Site("qkv", "qkv", 3, 1, "vision", 0, "attention")], config)
    prompts.refresh()
    traced = torch.compile(model["qkv"], fullgraph=True, backend="aot_eager")
    traced(torch.randn(5, 6)).sum().backward()
    assert prompts.bank.up_6.grad.abs().sum() > 0

"""Going on from a shared z = x Uᵀ: the PyTorch twin against the projection that makes its own; finite differences."""

import pytest
import torch
from test_twin import LAYOUTS, case

from aurora_ds.kernels import draw_seed, low_rank, prompted_linear, prompted_linear_from


def from_z(x, weight, bias, down, *factors, inputs, **settings):
    return prompted_linear_from(
        x, low_rank(x, down, inputs), weight, bias, *factors, inputs=inputs, **settings
    )


@pytest.mark.parametrize("cp", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("inputs", "outputs"), LAYOUTS)
def test_numbers_and_gradients_are_those_without_sharing(inputs, outputs, dropout, cp):
    x, weight, bias, *factors = case(inputs, outputs, cp)
    leaves = [t.requires_grad_() for t in (x, *factors) if t is not None]
    settings = {"inputs": inputs, "scale": 0.5, "dropout": dropout, "seed": draw_seed()}
    found = []
    for form in (prompted_linear, from_z):
        y = form(x, weight, bias, *factors, **settings)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inputs", [1, 4])
def test_gradients_of_input_z_and_factors(inputs):
    x, weight, bias, down, mix, diagonal = case(inputs, 1 if inputs > 1 else 3, cp=True)
    z, seed = low_rank(x, down, inputs).detach().requires_grad_(), draw_seed()
    leaves = [t.requires_grad_() for t in (x, mix, diagonal)]

    def output(x, z, mix, diagonal):
        return prompted_linear_from(
            x, z, weight, bias, mix, diagonal, inputs=inputs, scale=0.25, dropout=0.3, seed=seed
        )

    assert torch.autograd.gradcheck(output, (leaves[0], z, *leaves[1:]))
    assert torch.autograd.gradcheck(lambda x, down: low_rank(x, down, inputs), (x, down.requires_grad_()))


def test_sites_keep_the_input_and_one_z_whatever_their_number():
    x, weight, bias, down, mix, _ = case(1, 2, rows=7)
    mixes = [mix.clone().requires_grad_() for _ in range(3)]
    x.requires_grad_(), down.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        z = low_rank(x, down)
        for each in mixes:
            prompted_linear_from(x, z, weight, bias, each, dropout=0.5, seed=draw_seed())
    known = {t.data_ptr() for t in (x, weight, down, *mixes)}
    others = {t.data_ptr(): tuple(t.shape) for t in kept if t.data_ptr() not in known and t.dim()}
    assert list(others.values()) == [(7, 3)]


def test_an_empty_input_has_gradients_of_zero():
    x, weight, bias, down, mix, _ = case(1, 2, rows=0)
    down.requires_grad_(), mix.requires_grad_()
    from_z(x, weight, bias, down, mix, inputs=1).sum().backward()
    assert down.grad.shape == down.shape and not down.grad.any() and not mix.grad.any()


def test_compiles_into_one_graph():
    x, weight, bias, down, mix, _ = case(1, 3, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, down, mix)]

    def output(seed):
        return from_z(x, weight, bias, down, mix, inputs=1, dropout=0.5, seed=seed).square()

    seed = torch.tensor(5)
    compiled = torch.compile(output, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(output(seed).sum(), leaves)
    for got, want in zip(torch.autograd.grad(compiled(seed).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(got, want)

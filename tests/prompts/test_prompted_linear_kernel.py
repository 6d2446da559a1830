"""The PyTorch twin of the fused projection against the formula, written out, and its gradients against
finite differences."""

import pytest
import torch

from aurora_ds.kernels import prompted_linear


def case(inputs, outputs, rank=3, width=5, rows=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return (
        tensor(rows, inputs * width),
        tensor(outputs * 6, inputs * width),
        tensor(outputs * 6),
        tensor(rank, width),
        tensor(outputs * 6, inputs * rank),
        (torch.rand(rows, inputs * rank, generator=generator) > 0.3).to(dtype) / 0.7,
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 3), (1, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_values_are_the_formula(inputs, outputs, masked):
    x, weight, bias, down, mix, mask = case(inputs, outputs)
    z = torch.cat([block @ down.t() for block in x.chunk(inputs, dim=1)], dim=1)
    if masked:
        z = z * mask
    expected = x @ weight.t() + bias + 0.5 * z @ mix.t()
    got = prompted_linear(x, weight, bias, down, mix, mask if masked else None, inputs, 0.5)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "scale"), [(1, 3, 1.0), (4, 1, 1.0), (1, 2, 0.25)])
def test_gradients_of_input_and_factors(inputs, outputs, scale):
    x, weight, bias, down, mix, mask = case(inputs, outputs)
    x, down, mix = (t.requires_grad_() for t in (x, down, mix))
    assert torch.autograd.gradcheck(
        lambda *a: prompted_linear(a[0], weight, bias, a[1], a[2], mask, inputs, scale), (x, down, mix)
    )


def test_leading_dimensions_and_a_frozen_input():
    x, weight, bias, down, mix, _ = case(1, 2, rows=6)
    down.requires_grad_()
    flat = prompted_linear(x, weight, bias, down, mix)
    shaped = prompted_linear(x.view(2, 3, -1), weight, bias, down, mix)
    assert torch.equal(flat.view(2, 3, -1), shaped)
    shaped.sum().backward()
    assert x.grad is None and down.grad.abs().sum() > 0

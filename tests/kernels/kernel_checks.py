"""What runs in a process of its own, because Triton reads TRITON_INTERPRET when it is imported: every check of the
kernels, in Triton's interpreter or on a GPU. Reads a JSON list of checks from stdin, writes the findings to stdout.

A check is {"what": name of a function here, …its arguments}."""

from __future__ import annotations

import functools
import json
import math
import sys

import torch
from torch import Tensor

from aurora_ds.kernels import (
    Plan,
    choice,
    draw_seed,
    dropout_mask,
    low_rank,
    merge,
    norm_low_rank,
    prompted_linear,
    prompted_linear_from,
    reconstruct,
)
from aurora_ds.kernels.low_rank import _fused as _fused_low_rank
from aurora_ds.kernels.norm_low_rank import _fused as _fused_norm
from aurora_ds.kernels.norm_low_rank import twin as norm_twin
from aurora_ds.kernels.prompted_linear import _fused
from aurora_ds.kernels.prompted_linear_from import _fused as _fused_from
from aurora_ds.kernels.reconstruct import _fused as _fused_reconstruct

DEVICE = torch.device("cpu" if choice.interpreted() else "cuda")


def distance(got: Tensor, want: Tensor, terms: Tensor | None = None) -> float:
    """Relative, in the 2-norm; absolute from nothing but zeros. Of up to four numbers, relative to the sizes of the
    `terms` that they are sums of, where given: they may cancel all but wholly, and then any rounding of them shows.
    Infinite for other shapes and for what is no number."""
    if got.shape != want.shape:
        return math.inf
    size = float((want if terms is None or want.numel() > 4 else terms).double().norm())
    error = float((got.double() - want.double()).norm()) / (size or 1.0)
    return math.inf if math.isnan(error) else error


def case(inputs, outputs, form, rank, width_in, width_out, rows, dtype, strided=False):
    """x, W, b, U, A or V, the diagonals or None, and dy, each rounded to `dtype`."""
    generator = torch.Generator().manual_seed(rank + rows)

    def tensor(*shape, by=1.0, dtype=dtype):
        return (torch.randn(*shape, generator=generator) / by**0.5).to(DEVICE, getattr(torch, dtype))

    cp = form == "cp"
    x = tensor(inputs * width_in, rows).t() if strided else tensor(rows, inputs * width_in)
    mix = tensor(width_out, rank, by=rank) if cp else tensor(outputs * width_out, inputs * rank, by=rank)
    return (
        x,
        tensor(outputs * width_out, inputs * width_in, by=inputs * width_in),
        tensor(outputs * width_out),
        tensor(rank, width_in, by=width_in),
        mix,
        tensor(max(inputs, outputs), rank, dtype="float32") if cp else None,
        tensor(rows, outputs * width_out),
    )


def run(path, tensors, inputs, dropout=0.0, seed=None, wide=False, shared=False):
    """y and the gradients of x, U, A or V, and the diagonals; `shared`: from an x Uᵀ that was made before."""
    choice.use(path)
    x, weight, bias, down, mix, diagonal, dy = (t.double() if wide and t is not None else t for t in tensors)
    leaves = [t.detach().clone().requires_grad_() for t in (x, down, mix, diagonal) if t is not None]
    if x.stride(1) != 1:  # clone keeps the strides of a dense tensor; make sure that they arrive
        assert leaves[0].stride() == x.stride()
    settings = {"inputs": inputs, "scale": 0.7, "dropout": dropout, "seed": seed}
    if shared:
        z = low_rank(leaves[0], leaves[1], inputs)
        y = prompted_linear_from(leaves[0], z, weight, bias, *leaves[2:], **settings)
    else:
        y = prompted_linear(leaves[0], weight, bias, *leaves[1:], **settings)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def projection(inputs, dropout, shared=False, **sizes):
    """Distances from float64, and whether a second run has the same bits."""
    tensors, seed = case(inputs, **sizes), torch.tensor(3 << 40)
    got = run("triton", tensors, inputs, dropout, seed, shared=shared)
    again = run("triton", tensors, inputs, dropout, seed, shared=shared)
    want = run("torch", tensors, inputs, dropout, seed, wide=True)
    magnitudes = [None if each is None else each.abs() for each in tensors]
    terms = run("torch", magnitudes, inputs, dropout, seed, wide=True)
    return {
        "distances": [distance(*each) for each in zip(got, want, terms, strict=True)],
        "repeats": all(torch.equal(a, b) for a, b in zip(got, again, strict=True)),
    }


def mask(rows, rank):
    """The mask as the kernel applies it, against philox.dropout_mask."""
    choice.use("triton")
    seed, ones = draw_seed(), functools.partial(torch.ones, device=DEVICE)
    # W = 0, U = 1 and A = I: what comes out is the mask itself
    y = prompted_linear(
        ones(rows, 1),
        0 * ones(rank, 1),
        None,
        ones(rank, 1),
        torch.eye(rank, device=DEVICE),
        dropout=0.4,
        seed=seed,
    )
    return {
        "equal": torch.equal(y, dropout_mask(seed, rows, rank, 0.4, y)),
        "kept": float((y > 0).float().mean()),
    }


def kept(shared):
    """Shapes of what is kept for the backward pass besides what was given."""
    choice.use("triton")
    x, weight, bias, down, mix, _, _ = case(4, 1, "tucker", 5, 19, 21, 37, "float32")
    leaves = [t.requires_grad_() for t in (x, down, mix)]
    found = []
    settings = {"inputs": 4, "dropout": 0.5, "seed": draw_seed()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        if shared:
            prompted_linear_from(x, low_rank(x, down, 4), weight, bias, mix, **settings)
        else:
            prompted_linear(x, weight, bias, down, mix, **settings)
    known = {t.data_ptr() for t in (*leaves, weight, bias)}
    return {"shapes": [list(t.shape) for t in found if t.dim() and t.data_ptr() not in known]}


def checkpointed():
    """Gradients with the forward pass computed again, against those without."""
    from torch.utils.checkpoint import checkpoint

    choice.use("triton")
    x, weight, bias, down, mix, _, _ = case(1, 3, "tucker", 5, 19, 21, 37, "float32")
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        leaves = [t.clone().requires_grad_() for t in (x, down, mix)]

        def output(x, down, mix):
            return prompted_linear(x, weight, bias, down, mix, dropout=0.5, seed=draw_seed())

        y = checkpoint(output, *leaves, use_reentrant=False) if recompute else output(*leaves)
        found.append(torch.autograd.grad(y.square().sum(), leaves))
    return {"equal": all(torch.equal(a, b) for a, b in zip(*found, strict=True))}


def normed(rank, width, rows, dtype, strided=False):
    """LayerNorm with x Uᵀ: h, z and gradients, distances from float64, and whether a second run has the same bits."""
    generator = torch.Generator().manual_seed(rank + rows)

    def tensor(*shape, shift=0.0):
        return (torch.randn(*shape, generator=generator) + shift).to(DEVICE, getattr(torch, dtype))

    x = tensor(width, rows, shift=2.0).t() if strided else tensor(rows, width, shift=2.0)
    weight, bias, down = tensor(width, shift=1.0), tensor(width), tensor(rank, width)
    gradients = tensor(rows, width), tensor(rows, rank)
    found = []
    for wide in (False, False, True):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (x, down)]
        fixed = [t.double() if wide else t for t in (weight, bias)]
        if wide:
            h, z = norm_twin(leaves[0], *fixed, leaves[1], 1e-6)
        else:
            h, z = norm_low_rank(leaves[0], *fixed, leaves[1], 1e-6)
        incoming = [g.to(h) for g in gradients]
        found.append([h.detach(), z.detach(), *torch.autograd.grad((h, z), leaves, incoming)])
    got, again, want = found
    return {
        "distances": [distance(a, b) for a, b in zip(got, want, strict=True)],
        "repeats": all(torch.equal(a, b) for a, b in zip(got, again, strict=True)),
    }


def atomic(inputs, dropout, shared=False, **sizes):
    """Distances of gradients whose parts are added by atomics from those with ordered sums."""
    tensors, seed = case(inputs, **sizes), torch.tensor(3 << 40)
    found = []
    for order in ("atomic", "ordered"):
        choice.use_sums(order)
        found.append(run("triton", tensors, inputs, dropout, seed, shared=shared))
    return {"distances": [distance(*each) for each in zip(*found, strict=True)]}


def reconstruction(rank, dtype):
    """Sites of two widths, all layouts: A and gradients, distances from float64."""
    plan = Plan((33, 20, 33, 33, 20, 80), (3, 1, 1, 4, 2, 1), (1, 1, 4, 1, 1, 1), rank)
    generator = torch.Generator().manual_seed(rank)
    up = [torch.randn(width, rank, generator=generator).to(DEVICE) for width in plan.distinct]
    slices = torch.randn(sum(plan.columns), rank, rank, generator=generator).to(DEVICE)
    gradients = [
        torch.randn(shape, generator=generator).to(DEVICE, getattr(torch, dtype)) for shape in plan.shapes
    ]
    found = []
    for path, wide, out in (
        ("triton", torch.float32, getattr(torch, dtype)),
        ("triton", torch.float32, getattr(torch, dtype)),
        ("torch", torch.float64, torch.float64),
    ):
        choice.use(path)
        leaves = [t.to(wide).requires_grad_() for t in (*up, slices)]
        mixes = reconstruct(leaves[:-1], leaves[-1], plan, out)
        found.append(
            [
                *(m.detach() for m in mixes),
                *torch.autograd.grad(mixes, leaves, [g.to(out) for g in gradients]),
            ]
        )
    got, again, want = found
    return {
        "distances": [distance(a, b) for a, b in zip(got, want, strict=True)],
        "repeats": all(torch.equal(a, b) for a, b in zip(got, again, strict=True)),
    }


def merging(inputs, rank, dtype):
    """W after the merge, against float64; W lies in memory column by column."""
    generator = torch.Generator().manual_seed(rank)
    dtype = getattr(torch, dtype)
    weight = torch.randn(inputs * 30, 50, generator=generator).to(DEVICE, dtype).t()
    down, mix = (
        torch.randn(*shape, generator=generator).to(DEVICE, dtype)
        for shape in ((rank, 30), (50, inputs * rank))
    )
    want = weight.double().clone()
    choice.use("torch")
    merge(want, down.double(), mix.double(), inputs, 0.3)
    choice.use("triton")
    merge(weight, down, mix, inputs, 0.3)
    return {"distances": [distance(weight, want)]}


def compiled(form, shared):
    """Distances of y and gradients under torch.compile, in one graph, from those without; `shared` as in `run`."""
    choice.use("triton")
    x, weight, bias, down, mix, diagonal, _ = case(1, 3, form, 5, 19, 21, 9, "float32")
    leaves = [t.requires_grad_() for t in (x, down, mix, diagonal) if t is not None]

    def output(seed):
        if shared:
            z = low_rank(x, down)
            return prompted_linear_from(x, z, weight, bias, mix, diagonal, dropout=0.5, seed=seed).square()
        return prompted_linear(x, weight, bias, down, mix, diagonal, dropout=0.5, seed=seed).square()

    seed = draw_seed()
    traced = torch.compile(output, fullgraph=True, backend="aot_eager")
    pairs = zip(
        torch.autograd.grad(traced(seed).sum(), leaves),
        torch.autograd.grad(output(seed).sum(), leaves),
        strict=True,
    )
    return {"distances": [distance(a, b) for a, b in pairs]}


def registered():
    """torch's own checks of the ops' schemas, fakes and gradients."""
    x, weight, bias, down, mix, _, _ = case(1, 2, "tucker", 3, 5, 6, 4, "float32")
    leaves = [t.requires_grad_() for t in (x, down, mix)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        _fused, (leaves[0], weight, bias, *leaves[1:], None, 1, 1.0, 0.0, None), test_utils=tests
    )
    torch.library.opcheck(_fused_low_rank, tuple(leaves[:2]), test_utils=tests)
    torch.library.opcheck(_fused_norm, (leaves[0], x[0], x[1], leaves[1], 1e-6), test_utils=tests)
    z = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    torch.library.opcheck(
        _fused_from, (leaves[0], z, weight, bias, leaves[2], None, 1, 1.0, 0.0, None), test_utils=tests
    )
    up, slices = (torch.randn(*s, device=DEVICE, requires_grad=True) for s in ((8, 3), (2, 3, 3)))
    torch.library.opcheck(_fused_reconstruct, (up, slices, [8], [2], [1], torch.float32), test_utils=tests)
    return {"passed": True}


def adapter(form, layout, position):
    """A small model with prompts: outputs, gradients of all trained tensors and the merged model, on both paths."""
    from torch import nn

    from aurora_ds.backbones.site import Site
    from aurora_ds.config import PromptConfig
    from aurora_ds.prompts import attach
    from aurora_ds.prompts.kernel_path import warm_up

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 40), nn.Linear(40, 10)).to(DEVICE).train()
    sites = [
        Site("qkv", "0", 3, 1, "vision", 0, "attention"),
        Site("up", "1", 4, 1, "text", 0, "mlp"),
        Site("down", "2", 1, 4, "text", 0, "mlp"),
    ]
    config = PromptConfig(
        form=form, rank=5, mlp_layout=layout, dropout=0.3, dropout_position=position, context="off"
    )
    prompts = attach(model, sites, config)
    with torch.no_grad():
        for parameter in prompts.bank.parameters():
            parameter.copy_(torch.randn(parameter.shape).to(DEVICE) * 0.3)
    x, found, fused = torch.randn(7, 10).to(DEVICE), {}, False
    for path in ("triton", "torch"):
        choice.use(path)
        prompts.refresh()
        fused = fused or any(each is not None for each in prompts.values.diagonal)
        torch.manual_seed(1)
        y = model(x)
        gradients = torch.autograd.grad(y.square().sum(), list(prompts.bank.parameters()))
        before = {n: p.clone() for n, p in model.named_parameters()}
        prompts.merge()
        merged = [p.detach().clone() for p in model.parameters()]
        prompts.unmerge()
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
        found[path] = [y.detach(), *gradients, *merged]
    pairs = zip(found["triton"], found["torch"], strict=True)
    choice.use("triton")
    return {
        "distances": [distance(a, b) for a, b in pairs],
        "diagonals": fused,
        "warmed": warm_up(prompts, DEVICE, torch.float32),
    }


def main() -> None:
    torch.manual_seed(0)
    checks = json.load(sys.stdin)
    findings = []
    for check in checks:
        arguments = dict(check)
        findings.append(globals()[arguments.pop("what")](**arguments))
    json.dump(findings, sys.stdout)


if __name__ == "__main__":
    main()

"""Sites that read the same input share x Uᵀ: made once, and no number is changed by it."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import awaken
from torch import nn
from torch.utils.checkpoint import checkpoint

from aurora_ds.backbones.shared_input import project_each
from aurora_ds.backbones.site import Site
from aurora_ds.config import PromptConfig
from aurora_ds.prompts import attach
from aurora_ds.prompts import prompted_linear as prompted_linear_module

WIDTH, OUT, SITES = 6, 5, 4


class Stack(nn.Module):
    """Linears that read one input, as the cross-attentions of all text layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.ModuleList([nn.Linear(WIDTH, 2 * OUT) for _ in range(SITES)])
        self.together = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = project_each(self.kv, x) if self.together else [linear(x) for linear in self.kv]
        return torch.stack([y * (i + 1) for i, y in enumerate(outputs)]).square().sum()


def prompted(position="shared", sites="*", form="tucker", dropout=0.3):
    torch.manual_seed(0)
    model = Stack().double()
    specs = [Site(f"kv.{i}", f"kv.{i}", 2, 1, "cross", i, "attention") for i in range(SITES)]
    config = PromptConfig(
        rank=3, form=form, dropout=dropout, dropout_position=position, scale=0.7, context="off", sites=[sites]
    )
    prompts = attach(model, specs, config)
    awaken(prompts.bank)
    prompts.bank.double()
    prompts.enable()
    return model.train(), prompts, torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def started(monkeypatch) -> list[torch.Tensor]:
    """Every x of which x Uᵀ was made by itself."""
    found, make = [], prompted_linear_module.low_rank
    monkeypatch.setattr(
        prompted_linear_module, "low_rank", lambda x, *rest: found.append(x) or make(x, *rest)
    )
    return found


def numbers(model, prompts, x, together, run=None):
    """The output and its gradients, with the same masks drawn."""
    model.together = together
    prompts.refresh()
    torch.manual_seed(1)
    y = (model if run is None else run)(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *prompts.bank.parameters()])]


@pytest.mark.parametrize("form", ["tucker", "cp"])
@pytest.mark.parametrize("sites", ["*", "kv.[02]", "kv.3"])
@pytest.mark.parametrize("position", ["shared", "released"])
def test_no_number_is_changed_and_dropout_stays_each_sites_own(position, sites, form, started):
    model, prompts, x = prompted(position, sites, form)
    shared = numbers(model, prompts, x, True)
    # a site alone has nothing to share; with dropout where the published code has it, x Uᵀ stands by itself anyway
    assert len(started) == (1 if sites != "kv.3" or position == "released" else 0)
    for got, want in zip(shared, numbers(model, prompts, x, False), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_an_adapter_that_is_enabled_later_gets_its_own(started):
    """As the momentum slot does: the same input, other values."""
    model, prompts, x = prompted(dropout=0.0)
    awaken(prompts.add("other", seed=1).double(), seed=1)
    found = []
    for name in ("default", "other", "default"):
        prompts.enable(name)
        with torch.no_grad():
            found.append(model(x))
    assert len(started) == 3 and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_without_an_adapter_and_merged_nothing_is_begun(started):
    model, prompts, x = prompted(dropout=0.0)
    with torch.no_grad():
        adapted = model(x)
        prompts.merge()
        torch.testing.assert_close(model(x), adapted)
        prompts.unmerge()
        prompts.disable()
        plain = model(x)
    assert len(started) == 1 and not torch.allclose(plain, adapted)


def test_adapters_of_two_handles_do_not_share(started):
    """The linears of one input, adapted by two handles: each makes its own x Uᵀ."""
    torch.manual_seed(0)
    model = Stack()
    config = PromptConfig(rank=3, dropout=0.0, context="off")
    for half in ((0, 1), (2, 3)):
        sites = [Site(f"kv.{i}", f"kv.{i}", 2, 1, "cross", i, "attention") for i in half]
        awaken(attach(model, sites, config, seed=half[0]).bank, seed=half[0])
    x = torch.randn(7, WIDTH)
    for linear in model.kv:
        linear._prompts[0].enable()
    together = model(x)
    model.together = False
    assert len(started) == 2
    torch.testing.assert_close(together, model(x))


@pytest.mark.parametrize("position", ["shared", "released"])
def test_recomputed_activations_have_the_same_masks(position):
    model, prompts, x = prompted(position)
    kept = numbers(model, prompts, x, True)
    again = numbers(model, prompts, x, True, lambda x: checkpoint(model, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_compiles_into_one_graph():
    model, prompts, x = prompted()
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        numbers(model, prompts, x, True, traced), numbers(model, prompts, x, True), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

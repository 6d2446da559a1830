"""The expert layer: who goes where, what a token's output depends on, capacity, and what is learned."""

from __future__ import annotations

import pytest
import torch

from aurora_ds.backbones.experts import ExpertFeedForward, gumbel_noise, quick_gelu
from aurora_ds.config.eve import ExpertConfig
from aurora_ds.errors import AuroraError

WIDTH, HIDDEN = 8, 16


def layer(released: bool = False, **options) -> ExpertFeedForward:
    torch.manual_seed(0)
    made = ExpertFeedForward(WIDTH, HIDDEN, ExpertConfig(**{"experts": 4, **options}), released)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def tokens(samples: int = 3, length: int = 10) -> torch.Tensor:
    return torch.randn(samples, length, WIDTH, generator=torch.Generator().manual_seed(1))


def written_out(made: ExpertFeedForward, x: torch.Tensor, vision_tokens: int) -> torch.Tensor:
    """The formula, token by token: the two most probable experts, weighted by their probabilities."""
    moe, out = made.moe, torch.zeros_like(x)
    for place in range(x.shape[1]):
        modality = moe.vision_embed if place < vision_tokens else moe.text_embed
        for sample in range(len(x)):
            u = x[sample, place] + modality
            best = (moe.gate.wg.weight @ u).softmax(0).topk(2)
            share = best.values / best.values.sum()
            out[sample, place] = sum(
                w * moe.experts.experts[e](u) for w, e in zip(share, best.indices, strict=True)
            )
    return out


def test_equals_the_formula() -> None:
    made, x = layer(), tokens()
    torch.testing.assert_close(made(x, 6)[0], written_out(made, x, 6), rtol=1e-5, atol=1e-6)


def test_quick_gelu() -> None:
    x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, (x,))


@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_sample_does_not_depend_on_its_batch(factor: float | None) -> None:
    made, x = layer(capacity_factor=factor), tokens()
    whole = made(x, 6)[0]
    for sample in range(len(x)):
        torch.testing.assert_close(whole[sample], made(x[sample : sample + 1], 6)[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [None, 0.5])
def test_padding_takes_nothing(factor: float | None) -> None:
    made, x = layer(capacity_factor=factor), tokens()
    mask = torch.arange(10)[None] < torch.tensor([[10], [7], [8]])
    out, routing = made(x, 6, mask)
    other, same = made(torch.where(mask[..., None], x, -3 * x + 1), 6, mask)
    assert torch.equal(out[mask], other[mask]) and not out[~mask].any()
    assert torch.equal(routing.balance, same.balance) and int(routing.first_counts.sum()) == int(mask.sum())
    alone = made(x[1:2, :7], 6)[0]
    torch.testing.assert_close(out[1, :7], alone[0], rtol=1e-5, atol=1e-6)


def test_released_padding_and_batch_mates_do_matter() -> None:
    made, x = layer(released=True), tokens()
    made.moe.gate.noise = torch.zeros_like
    assert not torch.allclose(made(x, 6)[0][0], made(x[:1], 6)[0][0])


def test_capacity_is_per_sample() -> None:
    made = layer(capacity_factor=0.25, topk=1)
    routing = made(tokens(2, 64), 64)[1]
    kept = (
        routing.kept[0].view(2, 64)[:, :, None]
        & torch.nn.functional.one_hot(routing.experts[0].view(2, 64), 4).bool()
    ).sum(1)
    chosen = torch.nn.functional.one_hot(routing.experts[0].view(2, 64), 4).sum(1)
    assert torch.equal(kept, chosen.clamp(max=4)) and (chosen > 4).any()


def test_a_token_that_loses_one_expert_gives_the_other_all_its_weight() -> None:
    made = layer(capacity_factor=0.25)
    routing = made(tokens(1, 64), 64)[1]
    weights, kept = routing.weights, routing.kept
    assert (kept.sum(0) == 1).any() and (kept.sum(0) == 0).any()
    torch.testing.assert_close(weights.sum(0), kept.any(0).float())
    assert torch.equal(weights > 0, kept)


def test_topk_is_honoured() -> None:
    for topk in (1, 2, 3):
        made = layer(topk=topk)
        routing = made(tokens(), 6)[1]
        assert routing.experts.shape == (topk, 30)
        assert all(len(set(column)) == topk for column in routing.experts.t().tolist())
    assert layer(released=True, topk=1)(tokens(), 6)[1].experts.shape[0] == 2


def test_one_choice_teaches_the_gate() -> None:
    made = layer(topk=1)
    made(tokens(), 6)[0].square().sum().backward()
    assert made.moe.gate.wg.weight.grad.abs().max() > 1e-3


def test_noise_in_training_alone_and_by_the_seed() -> None:
    made, x = layer(experts=16), tokens(4, 40)
    assert torch.equal(made(x, 6)[1].experts, made(x, 6)[1].experts)
    made.train()

    def chosen(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return made(x, 6)[1].experts

    assert torch.equal(chosen(1), chosen(1)) and not torch.equal(chosen(1), chosen(2))
    assert torch.equal(chosen(1)[0], chosen(2)[0]), "the first choice is without noise"


def test_gumbel_noise_has_its_moments() -> None:
    noise = gumbel_noise(torch.empty(200_000, dtype=torch.float64))
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.var() - 1.6449) < 0.05


def test_balance_is_one_when_even_and_the_number_of_experts_when_all_go_to_one() -> None:
    made = layer(modality_embedding=False)
    with torch.no_grad():
        made.moe.gate.wg.weight.zero_()
        made.moe.gate.wg.weight[:, :4] = 100 * torch.eye(4)
    even = torch.eye(WIDTH)[torch.arange(8) % 4][None]
    assert made(even, 8)[1].balance.item() == pytest.approx(1.0)
    assert made(even[:, :1].expand(1, 8, -1), 8)[1].balance.item() == pytest.approx(4.0)


def test_every_expert_has_a_gradient_even_without_tokens() -> None:
    made = layer(experts=32)
    made(tokens(1, 3), 3)[0].sum().backward()
    gradients = [parameter.grad for parameter in made.moe.experts.parameters()]
    assert all(each is not None for each in gradients) and any(not each.any() for each in gradients)


def test_the_gate_computes_in_fp32_under_autocast() -> None:
    made, x = layer(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        out, routing = made(x, 6)
    assert routing.logits.dtype == torch.float32
    assert torch.equal(routing.logits, made(x, 6)[1].logits) and torch.isfinite(out).all()


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(AuroraError, match="3 different experts where there are 2"):
        layer(experts=2, topk=3)

"""Hard negatives: keyed draws are a function of their key, follow the weights, and never pick a forbidden
column."""

import torch

from aurora_ds.tasks.negatives import draw, keyed_uniform


def test_keyed_numbers_are_uniform_and_depend_on_every_key():
    keys = torch.arange(100_000)
    numbers = keyed_uniform(keys, seed=1, step=2, stream=0)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), bins=10, min=0, max=1)
    assert (counts - 10_000).abs().max() < 500  # five standard deviations
    for other in (keyed_uniform(keys, 2, 2, 0), keyed_uniform(keys, 1, 3, 0), keyed_uniform(keys, 1, 2, 1)):
        assert (numbers == other).float().mean() < 0.01
        assert abs(torch.corrcoef(torch.stack([numbers, other]))[0, 1]) < 0.02


def test_a_samples_number_does_not_depend_on_its_batch():
    keys = torch.tensor([5, 17, 123456])
    together = keyed_uniform(keys, 42, 7, 1)
    alone = torch.cat([keyed_uniform(k[None], 42, 7, 1) for k in keys])
    assert torch.equal(together, alone)


def test_keyed_draws_follow_the_weights():
    weights = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).repeat(20_000, 1)
    index, usable = draw(weights, "keyed", keyed_uniform(torch.arange(20_000), 0, 0, 0))
    share = torch.bincount(index, minlength=4) / 20_000
    assert usable.all()
    assert share[1] == 0
    assert torch.allclose(share, weights[0], atol=0.02)


def test_the_ends_of_the_interval_stay_inside_positive_weights():
    weights = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]])
    index, _ = draw(weights, "keyed", torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert index.tolist() == [1, 2]


def test_a_row_without_candidates_is_marked_and_does_not_fail():
    weights = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    for how in ("keyed", "torch", "argmax"):
        index, usable = draw(weights, how, torch.tensor([0.3, 0.3], dtype=torch.float64))
        assert usable.tolist() == [False, True]
        assert index[1] == 1 and 0 <= index[0] <= 1

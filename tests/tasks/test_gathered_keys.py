"""Keys of all ranks, with gradient to each rank's own, on two real processes."""

from __future__ import annotations

import pytest
import torch

from aurora_ds.tasks.gathered_keys import gather_with_gradient
from aurora_ds.verify.ranks import on_two_ranks

ROWS = 3


def everyone() -> torch.Tensor:
    """(2 · ROWS, 2): rows of rank 0, then of rank 1."""
    return torch.randn(2 * ROWS, 2, generator=torch.Generator().manual_seed(0))


def loss_of(rank: int, keys: torch.Tensor) -> torch.Tensor:
    """Something else on each rank."""
    return ((rank + 1) * keys * torch.arange(1.0, len(keys) + 1)[:, None]).square().sum()


def one_rank(rank: int, how: str) -> dict[str, torch.Tensor]:
    own = everyone()[rank * ROWS : (rank + 1) * ROWS].requires_grad_()
    keys = gather_with_gradient(own, how == "interleaved")
    loss_of(rank, keys).backward()
    return {f"keys{rank}": keys, f"gradient{rank}": own.grad}


@pytest.mark.parametrize("how", ["interleaved", "in turn"])
def test_a_row_learns_from_what_all_ranks_make_of_it(how: str) -> None:
    order = torch.tensor([0, 3, 1, 4, 2, 5]) if how == "interleaved" else torch.arange(6)
    rows = everyone().requires_grad_()
    keys = rows[order]
    (loss_of(0, keys) + loss_of(1, keys)).backward()
    found = on_two_ranks(one_rank, how)
    for rank in (0, 1):
        assert torch.equal(found[f"keys{rank}"], keys)
        torch.testing.assert_close(found[f"gradient{rank}"], rows.grad[rank * ROWS : (rank + 1) * ROWS])


def test_alone_it_is_the_identity() -> None:
    x = everyone()
    assert gather_with_gradient(x, True) is x

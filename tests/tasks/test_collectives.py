"""Which rows travel between ranks: every rank's plan of the exchange, carried out by hand for all ranks at once."""

from __future__ import annotations

import pytest
import torch

from aurora_ds.tasks import collectives


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("size", "rows"), [(2, 3), (5, 4), (16, 1)])
def test_every_rank_gets_the_rows_that_it_asked_for(
    monkeypatch: pytest.MonkeyPatch, size: int, rows: int, interleaved: bool
) -> None:
    wanted = torch.randint(size * rows, (size, rows), generator=torch.Generator().manual_seed(size))
    wanted[0] = wanted[0, 0]  # the same row for all, and others that nobody asks for
    ranks = range(size)
    plans = []
    for rank in ranks:
        monkeypatch.setattr(collectives, "world", lambda rank=rank: (rank, size))
        plans.append(collectives.RowExchange(wanted, interleaved, rows, torch.device("cpu")))
    # row b of rank r, named by the index that it has among all rows
    order = [
        [row * size + rank if interleaved else rank * rows + row for row in range(rows)] for rank in ranks
    ]
    sent = [torch.tensor(order[rank])[plans[rank].rows_to_send].split(plans[rank].send) for rank in ranks]
    for rank, plan in enumerate(plans):
        arrived = [sent[owner][rank] for owner in ranks]
        assert [len(each) for each in arrived] == plan.receive
        assert torch.equal(torch.cat(arrived)[plan.back], wanted[rank])


def test_alone_rows_stay_as_they_are() -> None:
    rows = torch.randn(3, 2)
    assert collectives.gather_rows(rows, interleaved=True) is rows

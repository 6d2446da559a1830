"""A batch read ahead: what all ranks agree on in one call, and when each part of it takes effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aurora_ds.data.unreadable import Limit
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.ahead import Ahead
from aurora_ds.runtime.quarantine import Quarantine
from aurora_ds.runtime.stop import StopRequest
from aurora_ds.verify.ranks import on_two_ranks

FINE, BROKEN = torch.tensor(True), torch.tensor(False)


def two_batches_then_none() -> Iterator[dict]:
    yield {"bad": [], "number": 1}
    yield {"bad": [], "number": 2}
    raise AuroraError("the shard is torn")


def made(folder: str | Path) -> tuple[Ahead, StopRequest]:
    stop = StopRequest()
    return Ahead(two_batches_then_none(), Quarantine(folder, Limit(1.0, 10)), stop), stop


def test_bad_data_ahead_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    ahead, _ = made(tmp_path)
    for number in (1, 2):
        ahead.read()
        assert ahead.agree(FINE)
        assert ahead.take()["number"] == number
    ahead.read()
    assert ahead.agree(FINE), "the losses of the step under way are finite"
    with pytest.raises(AuroraError, match="the shard is torn"):
        ahead.take()


def test_a_request_to_end_is_remembered_and_keeps_the_batch(tmp_path: Path) -> None:
    ahead, stop = made(tmp_path)
    ahead.read()
    ahead.agree(FINE)
    assert not ahead.asked_to_end
    stop.ask("SIGTERM")
    ahead.agree(FINE)
    assert ahead.asked_to_end and ahead.there and ahead.take()["number"] == 1


def test_a_loss_that_is_not_finite_says_nothing_of_the_rest(tmp_path: Path) -> None:
    ahead, _ = made(tmp_path)
    ahead.read()
    assert not ahead.agree(BROKEN)
    assert not ahead.asked_to_end and ahead.take()["number"] == 1


def _two_ranks(rank: int, folder: str) -> dict[str, torch.Tensor]:
    import torch.distributed as dist

    calls, plain = [0], dist.all_reduce

    def counted(*given: object, **named: object) -> object:
        calls[0] += 1
        return plain(*given, **named)

    dist.all_reduce = counted
    ahead, stop = made(folder)
    ahead.read()
    found = {"finite": ahead.agree(BROKEN if rank else FINE), "asked before": ahead.asked_to_end}
    ahead.take()
    if rank == 0:
        stop.ask("SIGTERM")
    ahead.read()
    found |= {"finite again": ahead.agree(FINE), "asked": ahead.asked_to_end, "one call each": calls[0] == 2}
    return {f"{name} {rank}": torch.tensor(value) for name, value in found.items()}


@pytest.mark.slow
def test_two_ranks_know_all_of_it_from_one_call(tmp_path: Path) -> None:
    found = {name: bool(value) for name, value in on_two_ranks(_two_ranks, str(tmp_path)).items()}
    expected = {
        "finite": False,
        "asked before": False,
        "finite again": True,
        "asked": True,
        "one call each": True,
    }
    assert found == {f"{name} {rank}": value for name, value in expected.items() for rank in (0, 1)}

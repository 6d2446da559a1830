"""What memory.py counts beside the resident size: bytes that leave a rank, and products that libraries remember."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from library_caches import make_products, noting_products
from sent import counting
from torch import nn


@pytest.fixture()
def second_of_two() -> Iterator[None]:
    """A group in which nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_rows_that_stay_with_their_rank_are_not_sent(second_of_two: None) -> None:
    rows, out = torch.ones(4, 10), torch.empty(3, 10)
    with counting() as uneven:
        dist.all_to_all_single(out, rows, [2, 1], [1, 3])
    assert uneven.bytes == 40, "one row of four is for the first rank"
    with counting() as even:
        dist.all_to_all_single(rows.clone(), rows)
    assert even.bytes == 80


def test_a_product_is_noted_once_and_can_be_made_again() -> None:
    layer, x = nn.Linear(8, 6, dtype=torch.bfloat16), torch.ones(5, 8, dtype=torch.bfloat16)
    with noting_products() as noted:
        for _ in range(2):
            layer(x).sum().backward()
    assert [text.split(",")[0] for text in noted] == ['["addmm"', '["mm"'], noted
    with noting_products() as again:
        make_products(list(noted))
    assert list(again) == list(noted)

"""What is refused and put in order for NVMe before DeepSpeed sees it. Training on a disk: integration/test_nvme.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import nvme

DISK = {"offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "nvme"}}


def of_sizes(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.empty(size, device="meta")) for size in sizes]


def test_weights_that_would_be_rounded_on_the_disk_are_refused() -> None:
    with pytest.raises(AuroraError, match=r"round the weights to bf16.*train\.precision=bf16"):
        nvme.check_weights("fp32", DISK, knows_fp16=False)
    nvme.check_weights("fp32", DISK, knows_fp16=True)
    nvme.check_weights("bf16", DISK, knows_fp16=False)
    nvme.check_weights("fp32", {"offload_param": {"device": "cpu"}}, knows_fp16=False)


def test_large_gradients_begin_where_a_block_of_the_disk_does() -> None:
    odd, large, small, larger = of_sizes(7, 2**20, 256, 2**21)
    ordered = nvme.in_order([odd, large, small, larger], DISK, ranks=2)
    assert [len(each) for each in ordered] == [2**21, 2**20, 256, 7]
    assert nvme.in_order([odd, large], {}, ranks=2) == [odd, large], "elsewhere the order stays"


def test_a_gradient_that_would_come_back_wrong_is_refused() -> None:
    once, twice = of_sizes(2**20 + 2, 2**20 + 6)
    assert len(nvme.in_order([once], DISK, ranks=2)) == 1, "one may be last"
    with pytest.raises(AuroraError, match="read it back wrong.*zero3_offload.json"):
        nvme.in_order([once, twice], DISK, ranks=2)

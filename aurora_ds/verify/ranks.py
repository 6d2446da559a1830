"""Run a function on two real processes (gloo) and collect the tensors each gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

Work = Callable[[int, str], dict[str, Tensor]]


def _process(rank: int, work: Work, argument: str, scratch: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=2)
    try:
        found = work(rank, argument)
        save_file(
            {n: t.detach().contiguous().clone() for n, t in found.items()}, f"{scratch}/{rank}.safetensors"
        )
    finally:
        dist.destroy_process_group()


def on_two_ranks(work: Work, argument: str) -> dict[str, Tensor]:
    """`work(rank, argument)` on ranks 0 and 1 -> all tensors by name; rank 0's where both give one."""
    with tempfile.TemporaryDirectory() as scratch:
        mp.start_processes(_process, (work, argument, scratch), nprocs=2, start_method="spawn")
        return load_file(f"{scratch}/1.safetensors") | load_file(f"{scratch}/0.safetensors")

"""The ranks of a run: start and stop the process group, and let all ranks decide together.

Works under the `deepspeed` launcher, under torchrun, and in one plain process (a group of size 1 is made, so that
DeepSpeed finds one; no collective is called then). gloo on CPU, NCCL on GPU.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from aurora_ds.errors import AuroraError
from aurora_ds.kernels import choice, compiled
from aurora_ds.runtime import interface

# gloo's words in a plain RuntimeError; NCCL and the store raise DistError.
_LOST_CONNECTION = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection timed out",
    "No route to host",
)
_TIMED_OUT = "Timed out waiting"
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LostRank(AuroraError):
    """Another rank ended in the middle of a collective, or cannot be reached."""


class CollectiveTimeout(LostRank):
    """Another rank did not come to a collective in time."""


def device() -> torch.device:
    """The device of this rank: `cuda:LOCAL_RANK` where there is one, else `cpu`. DS_ACCELERATOR=cpu forces the
    CPU.
    """
    if os.environ.get("DS_ACCELERATOR", "").lower() == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def start(timeout_seconds: float = 1800.0) -> None:
    """Join the process group that the launcher describes, or make one of size 1. Does nothing when already started.

    A collective that a rank does not come to within `timeout_seconds` fails on the others (`explaining_lost_ranks`).
    Raises AuroraError when the launcher's variables are incomplete or the machine has fewer GPUs than ranks.
    """
    if dist.is_initialized():
        return
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if launched:
        missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
        if missing:
            raise AuroraError(
                f"RANK and WORLD_SIZE are set but {', '.join(missing)} are not, so this process cannot find the "
                "other ranks. Start it with the `deepspeed` launcher or torchrun, or unset RANK and WORLD_SIZE to "
                "run alone."
            )
    here = device()
    if here.type == "cuda":
        if here.index >= torch.cuda.device_count():
            raise AuroraError(
                f"This process is local rank {here.index}, but this machine has {torch.cuda.device_count()} GPUs. "
                "Use --num_gpus at most that number, or set DS_ACCELERATOR=cpu to train on the CPU."
            )
        torch.cuda.set_device(here)
    backend = "nccl" if here.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if launched:
        interface.tell_gloo()
        # Without device_id NCCL guesses each rank's device at the first barrier, and warns that it may hang.
        binding = {"device_id": here} if here.type == "cuda" else {}
        dist.init_process_group(backend, timeout=timeout, **binding)
    else:
        # An in-memory store needs no free port, so runs beside each other on one machine cannot collide.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    # A process that ends with a live gloo group aborts instead of returning its exit status.
    atexit.register(stop)
    if here.type == "cuda":
        compiled.use_own_folder()
        choice.agree()


def limit_all(timeout_seconds: float) -> None:
    """The timeout of `start` for the groups that a library has made since: a group is born with torch's own."""
    for group in list(c10d._world.pg_map):
        dist.set_timeout(timedelta(seconds=timeout_seconds), group)


def collectives() -> int:
    """How many collective calls this rank has begun, over all groups: who waits in one has begun more than those who
    did not come to it."""
    return sum(group._get_sequence_number_for_group() for group in list(c10d._world.pg_map))


def stop() -> None:
    """Leave the process group. Safe to call twice; the group can be started again afterwards."""
    atexit.unregister(stop)
    if not dist.is_initialized():
        return
    communication = sys.modules.get("deepspeed.comm.comm")
    if communication is not None and communication.cdb is not None:
        # DeepSpeed caches the groups of the world that ends here; a later engine must not find them.
        communication.destroy_process_group()
        communication.cdb = None
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def explaining_lost_ranks() -> Iterator[None]:
    """What a rank sees when another one ended in the middle of a collective becomes a LostRank; other errors pass.

    The rank that ended knows the reason; here there is only a closed connection, which is no defect of this rank's.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and _TIMED_OUT in str(error):
            raise CollectiveTimeout(
                f"Rank {rank()} waited in vain for another rank in a collective call, for as long as "
                "train.collective_timeout_seconds allows. Nothing that was saved is lost: find out what keeps that "
                "rank, or allow more time, and start training again with --resume auto."
            ) from error
        lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_CONNECTION)
        if world_size() == 1 or not lost:
            raise
        raise LostRank(
            f"Rank {rank()} lost its connection to another rank, which has ended. That rank's own message says why; "
            "without one it was killed, perhaps because memory ran out. Nothing that was saved is lost: start "
            "training again with --resume auto."
        ) from error


def rank() -> int:
    """This process's number among all ranks (0 when alone)."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are (1 when alone)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its own machine (0 when alone)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value that rank `source` holds, on every rank. Plain Python data only."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=source, device=device())
    return holder[0]


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, by rank, on every rank. Collective; plain Python data only."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_tensors(tensors: dict[str, torch.Tensor] | None, source: int = 0) -> dict[str, torch.Tensor]:
    """CPU tensors that rank `source` holds, on every rank, in the same order. Other ranks pass None."""
    if world_size() == 1:
        return tensors or {}
    layout = None
    if rank() == source:
        layout = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in (tensors or {}).items()]
    received = {}
    for name, shape, dtype in broadcast_object(layout, source):
        if rank() == source:
            value = tensors[name].to(device()).contiguous()
        else:
            value = torch.empty(shape, dtype=dtype, device=device())
        # Bytes travel under every backend; not every backend knows every dtype.
        dist.broadcast(value.reshape(-1).view(torch.uint8), src=source)
        received[name] = value.cpu()
    return received


def gather_numbers(values: list[float]) -> list[list[float]]:
    """The rows of all ranks, by rank, on every rank, exactly. Collective; every row has the same length."""
    if world_size() == 1 or not values:
        return [values] * world_size()
    row = torch.tensor(values, dtype=torch.float64, device=device())
    table = torch.empty(world_size() * len(values), dtype=torch.float64, device=device())
    dist.all_gather_into_tensor(table, row)
    return table.view(world_size(), -1).tolist()


def any_rank(here: bool) -> bool:
    """Whether it is so on at least one rank. Collective."""
    return any_of(torch.tensor([here], dtype=torch.int32, device=device()))[0]


def any_of(here: torch.Tensor) -> list[bool]:
    """For each of several flags (int32 on this rank's device, overwritten) whether a rank has it. One collective."""
    if world_size() > 1:
        dist.all_reduce(here, op=dist.ReduceOp.MAX)
    return here.bool().tolist()


def agree(ok: bool, message: str = "") -> None:
    """All ranks go on together, or all stop: raises AuroraError on every rank when any rank brings ok=False.

    The error holds the message of each rank that failed. Collective: every rank must call it.
    """
    if any_rank(not ok):
        stop_together(ok, message)


def stop_together(ok: bool, message: str) -> NoReturn:
    """What `agree` does once all ranks know that not all bring ok=True."""
    failures: dict[str, list[int]] = {}
    for number, (fine, text) in enumerate(gather_objects((ok, message))):
        if not fine:
            failures.setdefault(text, []).append(number)
    if len(failures) == 1 and next(iter(failures.values())) in ([0], list(range(world_size()))):
        raise AuroraError(next(iter(failures)))
    raise AuroraError(
        " ".join(f"(rank {', '.join(map(str, ranks))}) {text}" for text, ranks in failures.items())
    )


def first_on_node(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work` on every rank, but on the first of each machine before the others: what it leaves on the machine's
    disk (compiled kernels) they find there. Collective."""
    if local_rank() == 0:
        done = work(*arguments)
        barrier()
        return done
    barrier()
    return work(*arguments)


def first_rank(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` on rank 0 alone and hand its plain result to every rank. Collective.

    When `work` fails, every rank fails: rank 0 with the error itself, the others with an AuroraError that names it.
    """
    result, failure = None, None
    if rank() == 0:
        try:
            result = work(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for it
            failure = error
    try:
        agree(
            failure is None,
            f"{failure}" if isinstance(failure, AuroraError) else f"Rank 0 failed: {failure!r}.",
        )
    except AuroraError:
        if failure is not None:
            raise failure from None
        raise
    return broadcast_object(result)


def seed_step(seed: int, step: int, micro_step: int = 0) -> None:
    """Seed torch's generators from (seed, step, micro step, rank), so that dropout in a resumed run needs no
    saved state.
    """
    mixed = torch.Generator().manual_seed(seed % (1 << 63))
    base = int(torch.randint(1 << 62, (1,), generator=mixed))
    torch.manual_seed((base + step * 1_000_003 + micro_step * 7_919 + rank() * 104_729) % (1 << 63))

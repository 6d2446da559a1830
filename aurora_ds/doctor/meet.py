"""A real all-reduce, this host's part of it. Needs torch only; the text of this file is sent to the hosts.

Forks one process for each of the host's ranks before torch is imported, and prints what each found as one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

from aurora_ds.runtime.interface import tell_gloo

NUMBERS = 1 << 22  # float32, 16 MiB: long enough to measure a network
ROUNDS = 3


def main(wanted: dict[str, Any]) -> None:
    """`wanted`: folder, environment, backend, address, port, world, first_rank, ranks, seconds."""
    os.environ.update(wanted["environment"])
    children = []
    for place in range(wanted["ranks"]):
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            status = 1
            try:
                status = _take_part(wanted, place, writer)
            finally:
                os._exit(status)  # the parent's buffers and exit handlers are not this process's
        os.close(writer)
        children.append((process, reader))
    found = []
    for process, reader in children:
        with open(reader, encoding="utf-8") as lines:
            found.append(json.loads(lines.read().strip().rpartition("\n")[2] or "{}"))
        os.waitpid(process, 0)
    print(f"FACTS {json.dumps({'ranks': found})}", flush=True)


def _take_part(wanted: dict[str, Any], place: int, writer: int) -> int:
    rank = wanted["first_rank"] + place
    said: dict[str, Any] = {"rank": rank}

    def tell(**more: Any) -> None:
        said.update(more)
        os.write(writer, f"{json.dumps(said)}\n".encode())

    tell(phase="importing torch")
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(place),
        WORLD_SIZE=str(wanted["world"]),
        MASTER_ADDR=wanted["address"],
        MASTER_PORT=str(wanted["port"]),
    )
    try:
        import torch
        import torch.distributed as group

        tell_gloo()
        device = torch.device("cpu")
        if wanted["backend"] == "nccl":
            device = torch.device("cuda", place)
            torch.cuda.set_device(device)
            tell(nccl=".".join(map(str, torch.cuda.nccl.version())))
        tell(phase=f"joining at {wanted['address']}:{wanted['port']}")
        group.init_process_group(wanted["backend"], timeout=timedelta(seconds=wanted["seconds"]))
        tell(phase="adding up")
        sums = torch.full((NUMBERS,), float(rank + 1), device=device)
        group.all_reduce(sums)
        expected = wanted["world"] * (wanted["world"] + 1) / 2
        right = bool((sums == expected).all())
        began = time.perf_counter()
        for _ in range(ROUNDS):
            group.all_reduce(sums)
        if wanted["backend"] == "nccl":
            torch.cuda.synchronize()
        taken = (time.perf_counter() - began) / ROUNDS
        group.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the table of the host that asked
        tell(error=str(error).partition("\n")[0] or type(error).__name__)
        return 1
    tell(phase="done", right=right, seconds=taken, interface=os.environ.get("GLOO_SOCKET_IFNAME"))
    return 0


if __name__ == "__main__":
    sys.exit("sent to hosts by `aurora-ds doctor`")

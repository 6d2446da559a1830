"""What a training step sends between two ranks, at ZeRO 0, 1 and 2 and two sizes of the frozen backbone.

Two real ranks train the retrieval task (gloo on CPU) in a network of their own. Every collective call of ten steps is
counted by who made it: DeepSpeed for gradients, DeepSpeed for updated values, the task for its losses (features and
hard negatives of the other rank), the run for its own agreements. The size of a call is that of the tensor it works on,
of an all-gather that of its whole result. Beside that stands what the kernel counted on the network's only link, TCP's
headers and acknowledgements included: with two ranks each sends an all-reduced tensor once, and half of a gathered one.

    python scripts/bench/step_bytes.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soak
from measurement import REPOSITORY, facts_line, machine_facts, markdown_table, write_results

FIRST, STEPS = 5, 10
SIZES = {"small": {"width": 64, "depth": 2}, "large": {"width": 64, "depth": 12}}
RANK, STAGES = 16, (0, 1, 2)
PORT = 29500  # free: the network is new
OPERATIONS = (
    *(
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "reduce",
    ),
    *(
        "broadcast",
        "all_to_all_single",
        "all_to_all",
        "all_reduce_coalesced",
        "all_gather_coalesced",
        "gather",
    ),
    *("send", "recv", "isend", "irecv", "scatter"),
)


# in a rank -----------------------------------------------------------------------------------------------------------


def size_of(given: Any) -> int:
    """Bytes of a tensor, or of a list of them."""
    if isinstance(given, list | tuple):
        return sum(size_of(each) for each in given)
    return given.numel() * given.element_size()


def moved(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
    """Bytes of the largest tensor of a call: an all-gather's result, everything else's input."""
    import torch

    def is_data(each: Any) -> bool:
        return isinstance(each, torch.Tensor) or (
            isinstance(each, list | tuple) and bool(each) and all(is_data(inner) for inner in each)
        )

    return max((size_of(each) for each in (*arguments, *keywords.values()) if is_data(each)), default=0)


def caller(name: str) -> str:
    """Who called: the nearest of our own or DeepSpeed's functions above, but for DeepSpeed's wrapper of torch."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/deepspeed/" in file and "/deepspeed/comm/" not in file:
            return "values" if "gather" in name or name == "broadcast" else "gradients"
        if "/aurora_ds/" in file:
            return "task" if "/aurora_ds/tasks/" in file else "run"
        frame = frame.f_back
    raise RuntimeError(f"nobody known called {name}")


def rank_main(output: str, arguments: list[str]) -> int:
    """Train in this process, and leave what the steps moved in OUTPUT.bytes-RANK.json."""
    import torch.distributed as dist
    import torch.distributed.distributed_c10d as c10d

    from aurora_ds import train
    from aurora_ds.runtime.engine import Engine
    from aurora_ds.runtime.heartbeat import FORWARD, Heartbeat

    found: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    state: dict[str, Any] = {"step": 0, "inside": False, "link": {}, "trained": 0, "frozen": 0}

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if state["inside"] or not FIRST <= state["step"] < FIRST + STEPS:
                return plain(*given, **named)
            who = caller(name)
            found[who] += moved(name, given, named)
            calls[f"{who} {name}"] += 1
            state["inside"] = True  # one of these may be made of others
            try:
                return plain(*given, **named)
            finally:
                state["inside"] = False

        return call

    at, start = Heartbeat.at, Engine.__init__

    def watched(self: Heartbeat, phase: str, step: int | None = None) -> None:
        if phase == FORWARD and step not in (None, state["step"]):
            state["step"] = step
            if step in (FIRST, FIRST + STEPS):
                dist.barrier()
                state["link"][step] = link_bytes()
                dist.barrier()
        at(self, phase, step)

    def started(self: Engine, *given: Any) -> None:
        start(self, *given)
        state["trained"] = sum(size_of(each) for each in self.trainables.values())
        state["frozen"] = sum(size_of(each) for each in self.task.parameters()) - state["trained"]

    for name in OPERATIONS:
        if hasattr(dist, name):
            wrapped = counted(name, getattr(dist, name))
            setattr(dist, name, wrapped)
            setattr(c10d, name, wrapped)
    Heartbeat.at, Engine.__init__ = watched, started
    status = train.main([*arguments, "--output", output])
    record = {"moved": found, "calls": calls, "trained": state["trained"], "frozen": state["frozen"]}
    record["link"] = state["link"][FIRST + STEPS] - state["link"][FIRST]
    Path(f"{output}.bytes-{os.environ['RANK']}.json").write_text(json.dumps(record))
    return status


def link_bytes() -> int:
    """What this network's loopback link has sent since it is there."""
    line = next(
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    )
    return int(line.partition(":")[2].split()[8])


# the two ranks -------------------------------------------------------------------------------------------------------


def measured(folder: Path, size: str, stage: int) -> dict[str, Any]:
    """Train two ranks and return rank 0's record, per step, with what the kernel counted per rank and step."""
    place = folder / size
    if not place.exists():
        place.mkdir()
        soak.prepare(place, **SIZES[size], rank=RANK)
    output = place / f"zero{stage}"
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--rank",
        str(output),
        str(place / "recipe.yaml"),
    ]
    settings = ["data.workers=0", "train.save_every=1000", "monitor.log_every=10", "evaluate.limit=1"]
    settings += [f"train.zero_stage={stage}", f"train.max_steps={FIRST + STEPS}"]
    shell = "ip link set lo up; pids=; for rank in 0 1; do RANK=$rank LOCAL_RANK=$rank"
    shell += ' "$@" & pids="$pids $!"; done; for pid in $pids; do wait $pid || exit 1; done'
    environment = {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(PORT),
    }
    ended = subprocess.run(
        ["unshare", "--net", "bash", "-c", shell, "ranks", *command, *settings],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"The ranks failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    record = json.loads(Path(f"{output}.bytes-0.json").read_text())
    per_step = {who: count / STEPS for who, count in record["moved"].items()}
    return {
        "size": size,
        "stage": stage,
        "trained": record["trained"],
        "frozen": record["frozen"],
        **{who: per_step.get(who, 0.0) for who in ("gradients", "values", "task", "run")},
        "link": record["link"] / 2 / STEPS,
        "calls": record["calls"],
    }


def expected_link(record: dict[str, Any]) -> float:
    """What each of two ranks must send per step: reduced tensors once, of gathered ones its half."""
    gathered = record["values"] / 2 + record["task"] / 2
    return record["gradients"] + gathered


def table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{each['size']} ({each['frozen'] / 1e6:.2f} MB)",
            str(each["stage"]),
            f"{each['trained']:,}",
            f"{each['gradients']:,.0f}",
            f"{each['gradients'] / each['trained']:.4f}",
            f"{each['values']:,.0f}",
            f"{each['values'] / each['trained']:.4f}",
            f"{each['task']:,.0f}",
            f"{each['run']:,.0f}",
            f"{each['link']:,.0f}",
        ]
        for each in found
    ]
    head = ["frozen backbone", "ZeRO", "trainables (bytes)", "gradients reduced", "of trainables"]
    head += [
        "values gathered",
        "of trainables",
        "the task's exchange",
        "the run's agreements",
        "link, per rank",
    ]
    return (
        "# Bytes that a training step communicates\n\n"
        + markdown_table(head, rows)
        + f"\n\n2 ranks, gloo, fp32, retrieval, prompts of rank {RANK}, global batch {soak.BATCH}; means of {STEPS} "
        "steps. The task's exchange depends on the batch and the embedding, not on the backbone's depth; agreements "
        "are flags and the figures of every tenth step. Link: the kernel's count of bytes sent, with headers and "
        f"acknowledgements, divided by the ranks.\n\n{facts_line(machine_facts(1))}\n"
    )


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--rank"]:
        return rank_main(given[1], given[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ZeRO 1 only, nothing written")
    chosen = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as scratch:
        stages = (1,) if chosen.quick else STAGES
        found = [measured(Path(scratch), size, stage) for stage in stages for size in SIZES]
    write_results("step_bytes", {"measured": found}, table(found), chosen.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())

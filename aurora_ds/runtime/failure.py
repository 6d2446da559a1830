"""What is known when a run fails: failures/rank-00000.txt with the error, all heartbeats and the last collectives.

torch's flight recorder keeps the last collective calls of each rank in memory (gloo and NCCL). It is on by default;
NCCL also writes it by itself when a collective times out, to failures/collectives-rank-N.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import heartbeat, process_group
from aurora_ds.runtime.run_folder import replace_file

FOLDER = "failures"
_CALLS_KEPT, _CALLS_SHOWN = 2000, 12


def record_collectives(output: str | Path) -> None:
    """Switch the flight recorder on, unless the environment says otherwise. Before the process group is started."""
    place = str(Path(output).absolute() / FOLDER / "collectives-rank-")
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": str(_CALLS_KEPT),
        "TORCH_FR_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": place,
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def reporting(output: str | Path) -> Iterator[None]:
    """What ends the block as a defect or a lost rank leaves failures/rank-N.txt; a lost rank's error also says what all
    ranks did last."""
    try:
        yield
    except process_group.LostRank as error:
        written, late = write(output, error), ""
        if isinstance(error, process_group.CollectiveTimeout):
            missing = heartbeat.not_there(heartbeat.read(output), process_group.collectives())
            late = f"{missing[2:3].upper()}{missing[3:]}. " if missing else ""
        raise AuroraError(
            f"{error} {late}Last signs of life: {heartbeat.in_words(output)}. More is in {written}."
        ) from error
    except Exception as error:
        if not isinstance(error, AuroraError):  # those say in a paragraph what is wrong and what to do
            print(f"More about this failure is in {write(output, error)}", flush=True)
        raise


def write(output: str | Path, error: BaseException) -> Path:
    """Write this rank's report and return its place. Raises AuroraError when the disk refuses."""
    path = Path(output) / FOLDER / f"rank-{process_group.rank():05d}.txt"
    beats = "\n".join(json.dumps(beat) for beat in heartbeat.read(output))
    calls = [_line(call) for call in last_collectives()[-_CALLS_SHOWN:]]
    parts = {
        "When": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "Error": "".join(traceback.format_exception(error)),
        "Heartbeats on this machine's disks": beats or "none",
        "Last collective calls of this rank, newest last": "\n".join(calls) or "none were recorded",
        "Written by NCCL when it timed out": "\n".join(
            str(each) for each in sorted(path.parent.glob("collectives-rank-*"))
        )
        or "nothing",
    }
    replace_file(path, "\n\n".join(f"{title}\n{text}" for title, text in parts.items()) + "\n")
    return path


def last_collectives() -> list[dict[str, Any]]:
    """The flight recorder's entries, oldest first; none where this build of torch or the environment has it off."""
    nccl = process_group.device().type == "cuda"
    dump = getattr(
        torch._C._distributed_c10d, "_dump_nccl_trace_json" if nccl else "_dump_fr_trace_json", None
    )
    if dump is None:
        return []
    return json.loads(dump() or b"{}").get("entries", [])


def _line(call: dict[str, Any]) -> str:
    return (
        f"{call.get('record_id')}: {call.get('profiling_name')} {call.get('input_sizes')} "
        f"{call.get('input_dtypes')} {call.get('state')}"
    )

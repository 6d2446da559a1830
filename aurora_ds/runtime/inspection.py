"""not_finite/step-00000012/: what a step with a loss or gradient that is not finite was made of, for looking at.

Each rank leaves its batch as it came from the loader, with its sample keys, losses and the error; rank 0 also the
trained values and the optimizer's state, which are those of the last good step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.disk import write_synced
from aurora_ds.runtime.engine import Engine
from aurora_ds.runtime.run_folder import writing

FOLDER = "not_finite"


def keep(
    output: str | Path,
    step: int,
    engine: Engine,
    batch: dict[str, Any],
    losses: dict[str, Tensor],
    error: AuroraError,
) -> Path:
    """Write the folder and return it. Collective; raises AuroraError on every rank when one cannot write.

    `batch` and `losses` are of the micro-batch that the error was found after: the last one, for a gradient.
    """
    folder = Path(output) / FOLDER / f"step-{step:08d}"
    state = engine.optimizer_state()
    rank, message = process_group.rank(), ""
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            record = {
                "rank": rank,
                "keys": list(batch["keys"]),
                "losses": {
                    name: str(value.detach().float().mean().item())
                    for name, value in losses.items()
                    if isinstance(value, Tensor)
                },
                "error": str(error),
            }
            write_synced(folder / f"rank-{rank:05d}.json", json.dumps(record, indent=1).encode())
            write_synced(folder / f"rank-{rank:05d}.safetensors", save(_tensors(batch)))
            if rank == 0:
                write_synced(folder / "state.safetensors", save(_tensors(state)))
    except AuroraError as refused:
        message = str(refused)
    process_group.agree(not message, message)
    return folder


def _tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().clone().contiguous()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }

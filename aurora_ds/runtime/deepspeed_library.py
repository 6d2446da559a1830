"""DeepSpeed as a library: imported late and quietly, and its ZeRO-3 hooks taken out for a while."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aurora_ds.runtime import process_group


def import_deepspeed() -> Any:
    """The module. Its import takes seconds."""
    if process_group.device().type == "cpu":
        # Otherwise DeepSpeed searches for accelerators and warns that it found none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # On CPU DeepSpeed compiles a shared-memory all-reduce for inference at first use: half a minute and a compiler
    # on every fresh machine, for something training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def without_hooks(offload: Any) -> Iterator[None]:
    """Take out the hooks of a DeepSpeedZeRoOffload, and at the end put them back into the places that they had."""
    handles = [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]
    tables = {id(table): table for handle in handles for table in [handle.hooks_dict_ref()]}
    before = [(table, dict(table)) for table in tables.values()]
    for handle in handles:
        handle.hooks_dict_ref().pop(handle.id)
    try:
        yield
    finally:
        for table, hooks in before:
            table.clear()
            table.update(hooks)

"""One conversion per folder at a time: a lock that the operating system drops when its process and workers are gone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora_ds.errors import AuroraError

LOCK_NAME = ".lock"
# Workers of a killed conversion hold the lock until they notice, see pool.py.
PATIENCE = 3.0  # seconds


@contextmanager
def folder_lock(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds `folder`/.lock. Raises AuroraError when another process has it, or the folder may not be written to."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise AuroraError(
            f"{folder} cannot be written to: {error.strerror}. Choose another --output."
        ) from error
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                holder = os.pread(handle, 64, 0).decode("ascii", "replace").strip() or "unknown"
                raise AuroraError(
                    f"Another conversion (process {holder}) is writing to {folder}. Wait for it, or choose "
                    "another --output."
                )
            time.sleep(0.1)
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

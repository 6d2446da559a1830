"""What is written is on the disk when the call returns, and outlasts a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def write_synced(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file, piece by piece, and wait until the disk has it."""
    with open(path, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's names: renamed and new files are lost in a power cut before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writing that a power cut cannot tear, and the words for a disk that refuses."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from aurora_ds.durable import sync_folder, write_synced
from aurora_ds.errors import AuroraError

_TEMPORARY = ".writing-"


def replace_text(path: Path, text: str) -> None:
    """Put a line of text in the place of the file, whole or not at all, and wait until the disk has it."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    write_synced(temporary, f"{text}\n".encode())
    os.replace(temporary, path)
    sync_folder(path.parent)


def explained(error: OSError, path: Path, size: int) -> AuroraError:
    """Why a checkpoint of `size` bytes could not be written to `path`, what is missing, and what to do."""
    kept = "Earlier checkpoints are kept."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = {
            errno.ENOSPC: f"The disk is full ({_free_mb(path):.1f} MiB are free)",
            errno.EDQUOT: "The disk quota is used up",
            errno.EFBIG: "The largest allowed file size (ulimit -f) is too small",
        }[error.errno]
        return AuroraError(
            f"{what}, and the checkpoint {path} of {size / 2**20:.1f} MiB could not be written ({error.strerror}). "
            f"{kept} Make room, or set train.keep_last lower or train.save_queue false, then run again with "
            "--resume auto."
        )
    if error.errno == errno.EROFS:
        return AuroraError(
            f"The checkpoint {path} could not be written: its file system is read-only, by choice or after a disk "
            f"error (see dmesg). {kept} Mount it for writing, then run again with --resume auto."
        )
    return AuroraError(
        f"The checkpoint {path} could not be written: {error.strerror or error}. {kept} "
        "Check that the output folder can be written to, then run again with --resume auto."
    )


def _free_mb(path: Path) -> float:
    place = next(each for each in path.parents if each.exists())
    return shutil.disk_usage(place).free / 2**20

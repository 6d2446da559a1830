"""A folder of whole files named by their sha256, shared by all processes of a machine and bounded in size.

A file appears under its name only when it is complete and its checksum is right. While it is made it is NAME.partial,
under a lock on NAME.lock that other processes wait for. Locks go with their process: what a killed one left behind is
found unlocked, and removed. Readers hold a shared lock on the file itself, by which files in use are the last to be
removed; an open one stays readable even then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from aurora_ds.data.remote.transfer import TransferFailed
from aurora_ds.errors import AuroraError


class FileCache:
    """At most `most_bytes` of files in `folder`, or as many as are made at once; the least recently opened go first."""

    def __init__(self, folder: Path, most_bytes: int):
        self.folder, self.most_bytes = folder, most_bytes

    def open(self, sha256: str, size: int, fill: Callable[[BinaryIO], None]) -> int:
        """A file descriptor of the content, to be closed by the caller; `fill` writes it when it is not there.

        `fill` writes `size` bytes from the start and checks them. Its TransferFailed is raised here and in the
        processes that waited for it. Raises AuroraError when the folder cannot be used or is too small.
        """
        path = self.folder / f"{sha256}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while (handle := _open_whole(path, size)) is None:
                self._make(path, size, fill)
            return handle
        except OSError as error:
            raise AuroraError(
                f"The cache {self.folder} cannot be used: {error.strerror}. Set data.cache or AURORA_DS_CACHE to a "
                "folder on a local disk with enough room."
            ) from error

    def has(self, sha256: str) -> bool:
        """Whether a file is there now."""
        return (self.folder / f"{sha256}.tar").exists()

    def remove_damaged(self, sha256: str, handle: int) -> bool:
        """Whether a file opened before is damaged, and now removed, or is no longer the one of this name."""
        path = self.folder / f"{sha256}.tar"
        if not _is_at(handle, path):
            return True
        digest, place = hashlib.sha256(), 0
        while block := os.pread(handle, 1 << 20, place):
            digest.update(block)
            place += len(block)
        if digest.hexdigest() == sha256:
            return False
        path.unlink(missing_ok=True)
        return True

    def _make(self, path: Path, size: int, fill: Callable[[BinaryIO], None]) -> None:
        began, note, partial = time.time(), path.with_suffix(".failed"), path.with_suffix(".partial")
        # Not a lock on the file itself: renamed it is the same file, and its first reader would hold up those who wait.
        with locked(path.with_suffix(".lock"), keep=False):
            try:
                if path.exists():  # another process made it meanwhile
                    return
                _raise_noted(note, began)
                with open(partial, "wb") as file:
                    self._reserve(file, size)
                    # Not synced, which would take longer than the download: what a power cut does to the bytes is
                    # found by the checksums of samples, see remove_damaged.
                    fill(file)
                with locked(self.folder / ".lock"):  # whoever counts sees it under one of its names
                    os.rename(partial, path)
                note.unlink(missing_ok=True)
            except TransferFailed as error:
                content = {"time": time.time(), "message": str(error), "reason": error.reason}
                note.write_text(json.dumps(content), encoding="utf-8")
                raise
            finally:
                partial.unlink(missing_ok=True)

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Makes room for `size` bytes, and has `file` take it at once, so that others count it."""
        if size > self.most_bytes:
            raise AuroraError(
                f"A shard of {size / 1e9:.2f} GB does not fit into the cache {self.folder} of "
                f"{self.most_bytes / 1e9:.2f} GB. Raise data.cache_gb."
            )
        with locked(self.folder / ".lock"):
            total = size + self._bytes()
            for path in self._oldest_first() if total > self.most_bytes else ():
                total -= _remove(path)
                if total <= self.most_bytes:
                    break
            os.ftruncate(file.fileno(), size)

    def _bytes(self) -> int:
        """Bytes of all files, after those that killed processes left behind are removed."""
        total = 0
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            if path.suffix in (".partial", ".lock"):
                _remove_left_behind(path)
            if path.suffix in (".partial", ".tar"):
                total += _size(path)
        return total

    def _oldest_first(self) -> Iterator[Path]:
        """Whole files by the time of their last opening, those in use after the others."""
        used, opened = [], []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # a damaged one may be removed at any time
                if entry.name.endswith(".tar"):
                    opened.append((entry.stat().st_mtime_ns, entry.path))
        for _, name in sorted(opened):
            if _in_use(Path(name)):
                used.append(Path(name))
            else:
                yield Path(name)
        yield from used


def _open_whole(path: Path, size: int) -> int | None:
    """A descriptor with a shared lock, marked as just opened; None: there is no such file of this size."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_size == size:
            # Another user's file keeps the time of its download.
            with suppress(PermissionError):
                os.utime(handle)
            return handle
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    path.unlink(missing_ok=True)  # somebody cut it
    return None


@contextmanager
def locked(path: Path, keep: bool = True) -> Iterator[None]:
    """Holds the lock on a file, made if need be; waits for whoever has it. Without `keep` it is removed at the end."""
    while True:
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # whoever had it has removed it
            try:
                yield
            finally:
                if not keep:
                    path.unlink(missing_ok=True)
            return


def _in_use(path: Path) -> bool:
    """Whether some process has the file locked."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _remove_left_behind(path: Path) -> None:
    """Removes NAME.partial and NAME.lock, if no process holds that lock; while it is held here, none can begin."""
    lock = path.with_suffix(".lock")
    with suppress(BlockingIOError), open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file.fileno(), lock):
            path.with_suffix(".partial").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> int:
    """The bytes that it had."""
    size = _size(path)
    path.unlink(missing_ok=True)
    return size


def _raise_noted(note: Path, began: float) -> None:
    """Raises what the process met that was waited for: without this, each waiting one would try as long again."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if content["time"] >= began:
        raise TransferFailed(content["message"], content["reason"])

"""Where a reader gets the bytes of shards from: a folder here, or the cache of a remote one (data/remote/)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from aurora_ds.data.bad_sample import BadSample


class ShardStore(Protocol):
    """Opens shards by the file name that the manifest gives."""

    place: str  # the folder or URL that messages name

    def open(self, shard: str) -> int:
        """A file descriptor for os.pread, which the caller closes.

        Raises BadSample (shard_missing, checksum, unreachable) when the shard of the manifest cannot be had.
        """
        ...

    def expect(self, shards: Iterable[str]) -> None:
        """Is told what will be opened next, so that several shards can be on their way at once. Does not wait."""
        ...

    def renew(self, shard: str, handle: int) -> bool:
        """Whether opening the shard again may give other bytes than the open `handle` does, which had bad ones."""
        ...


class LocalStore:
    """The shards of a folder, as they lie there."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.place = str(folder)

    def open(self, shard: str) -> int:
        """See ShardStore."""
        path = self.folder / shard
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BadSample(
                f"Shard {path} is in the manifest but not in the folder. Copy it there, or convert the "
                "dataset again.",
                "shard_missing",
            ) from error
        except OSError as error:
            raise BadSample(f"Shard {path} cannot be opened: {error.strerror}.", "shard_missing") from error

    def expect(self, shards: Iterable[str]) -> None:
        """See ShardStore: they are here."""

    def renew(self, shard: str, handle: int) -> bool:
        """See ShardStore: this is the only copy that there is."""
        return False

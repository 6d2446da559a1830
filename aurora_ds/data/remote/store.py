"""Opening shards by URL: their manifest and index at once, each shard whole when it is first read."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.manifest import MANIFEST_NAME, Manifest
from aurora_ds.data.remote.cache import FileCache, locked
from aurora_ds.data.remote.location import location_of
from aurora_ds.data.remote.transfer import Patience, RemoteFolder, TransferFailed
from aurora_ds.errors import AuroraError

DEFAULT_CACHE_GB = 100.0
# Seconds for which a shard that could not be had is not asked for again by the same process.
REMEMBERED = 60.0
# Downloads at once in a process, when it is known which shards come next.
AT_ONCE = 4
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


class CachedStore:
    """Shards of a remote folder, read through a cache. See ShardStore."""

    def __init__(self, source: RemoteFolder, manifest: Manifest, cache: FileCache):
        self.place, self.cache = str(source.location), cache
        self._source = source
        self._shards = {
            shard.file: (shard.sha256, shard.bytes)
            for split in manifest.splits.values()
            for shard in split.shards
        }
        self._failed: dict[str, tuple[float, TransferFailed]] = {}
        self._right: set[str] = set()

    def open(self, shard: str) -> int:
        """See ShardStore. Downloads the shard when it is not in the cache."""
        until, problem = self._failed.get(shard, (0.0, None))
        if problem is None or time.monotonic() > until:
            sha256, size = self._shards[shard]
            try:
                return self.cache.open(
                    sha256, size, lambda file: download(self._source, shard, sha256, size, file)
                )
            except TransferFailed as error:
                problem = error
                self._failed[shard] = (time.monotonic() + REMEMBERED, error)
        raise BadSample(f"Shard {shard}: {problem}", problem.reason) from problem

    def expect(self, shards: Iterable[str]) -> None:
        """See ShardStore. The caller's own `open` is one of the downloads at once."""
        missing = deque(shard for shard in shards if not self.cache.has(self._shards[shard][0]))
        for _ in range(min(AT_ONCE, len(missing)) - 1):
            # From the last one on: the caller begins with the first. Daemons, so that no process waits for them to end.
            threading.Thread(target=self._bring, args=(missing,), daemon=True).start()

    def _bring(self, shards: deque[str]) -> None:
        # Who opens a shard that cannot be had meets the error there. RuntimeError: the process is ending.
        with suppress(IndexError, AuroraError, RuntimeError):
            while True:
                os.close(self.open(shards.pop()))

    def renew(self, shard: str, handle: int) -> bool:
        """See ShardStore. A cached shard with another checksum is removed; with the right one the fault is its own."""
        if shard in self._right:
            return False
        if self.cache.remove_damaged(self._shards[shard][0], handle):
            return True
        self._right.add(shard)
        return False


def download(source: RemoteFolder, name: str, sha256: str, size: int | None, file: BinaryIO) -> None:
    """Writes a remote file of that checksum and, where known, size. Raises TransferFailed (checksum) for another."""
    # Twice, because bytes do get damaged on the way; a file that was changed stays changed.
    for _ in range(2):
        file.seek(0)
        if size is None:
            file.truncate()
        digest = hashlib.sha256()

        def take(part: bytes, digest: Any = digest) -> None:
            digest.update(part)
            file.write(part)

        # A part is taken while the next one comes.
        with ThreadPoolExecutor(1) as thread:
            taken: Future[None] | None = None
            for part in source.parts(name, size):
                if taken is not None:
                    taken.result()
                taken = thread.submit(take, part)
            if taken is not None:
                taken.result()
        if digest.hexdigest() == sha256:
            return
    raise TransferFailed(
        f"{source.location}/{name} has other bytes than {MANIFEST_NAME} says (sha256 {digest.hexdigest()[:16]}…, not "
        f"{sha256[:16]}…): it was changed or damaged after it was converted, or belongs to another manifest. Copy "
        "the shards there again, and start again when their manifest is another one.",
        "checksum",
    )


def open_shards(
    shards: str | Path,
    cache: str | Path | None = None,
    cache_gb: float = DEFAULT_CACHE_GB,
    patience: Patience | None = None,
) -> Manifest:
    """The manifest of a local folder, or of the URL of one (http, https, s3, gs, hf), with the store to read it from.

    Shards of a URL are kept in the folder `cache` (default: $AURORA_DS_CACHE, else ~/.cache/aurora_ds/shards), which
    holds at most `cache_gb` 10^9 bytes of them. Raises AuroraError for other protocols, and when the manifest or its
    index cannot be had.
    """
    location = location_of(shards)
    if isinstance(location, Path):
        return Manifest.load(location)
    folder = Path(cache or os.environ.get("AURORA_DS_CACHE") or "~/.cache/aurora_ds/shards").expanduser()
    source = RemoteFolder(location, patience or Patience())
    manifest = _fetch_manifest(source, folder / "manifests")
    manifest.read_from(CachedStore(source, manifest, FileCache(folder, int(cache_gb * 1e9))))
    return manifest


def _fetch_manifest(source: RemoteFolder, folder: Path) -> Manifest:
    """Brings manifest.json, the index and the files it lists into a folder named by the manifest's checksum."""
    try:
        content = source.whole(MANIFEST_NAME)
    except TransferFailed as error:
        if error.reason != "shard_missing":
            raise
        raise AuroraError(
            f"{source.location} has no {MANIFEST_NAME}, so it holds no finished shards. Copy the whole folder that "
            "`aurora-ds shards convert` wrote to there, or correct data.shards."
        ) from error
    manifest = Manifest.from_json(content, f"{source.location}/{MANIFEST_NAME}")
    wanted: dict[str, tuple[str, int | None]] = {name: (sum_, None) for name, sum_ in manifest.files.items()}
    if manifest.index is not None:
        wanted[manifest.index.file] = (manifest.index.sha256, manifest.index.bytes)
    target = folder / hashlib.sha256(content).hexdigest()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / ".lock"):
            for name, (sha256, size) in wanted.items():
                if not _PLAIN_NAME.fullmatch(name):
                    raise AuroraError(
                        f"{source.location}/{MANIFEST_NAME} lists {name!r}, which is no file name."
                    )
                if not (target / name).exists():
                    with _written_whole(target / name) as file:
                        download(source, name, sha256, size, file)
            with _written_whole(target / MANIFEST_NAME) as file:
                file.write(content)
    except OSError as error:
        raise AuroraError(
            f"The cache {folder} cannot be used: {error.strerror}. Set data.cache or AURORA_DS_CACHE to a folder on "
            "a local disk with enough room."
        ) from error
    return Manifest.load(target)


@contextmanager
def _written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it was written without an error."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)

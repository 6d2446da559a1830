"""Bytes of a remote file, part after part through fsspec, with deadlines and retries.

A part that failed is asked for again, so a dropped connection costs one part and not the file. Errors that another
attempt cannot change (not found, not allowed) are final at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from aurora_ds.data.bad_sample import Reason
from aurora_ds.data.remote.location import PROTOCOLS, Location
from aurora_ds.errors import AuroraError

PART_BYTES = 8 << 20
# After a part took too long, smaller ones are asked for, down to this.
LEAST_PART_BYTES = 1 << 16
# Requests that may succeed later although the status says that they are at fault: timeout, too early, too many.
RETRIED_STATUSES = (408, 425, 429)
OUT_OF_RANGE = 416

# Filesystems by (process, protocol). Event loops do not survive a fork, so each process makes its own; those of the
# parent are kept, because their clean-up in a child would reach into the parent's sockets.
_filesystems: dict[tuple[int, str], Any] = {}
# Not the global generator: its state belongs to the user.
_random = random.SystemRandom()


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried. Times in seconds."""

    attempts: int = 6  # in a row, without a new part
    first_wait: float = 0.5  # doubled by each attempt, less a random part of up to a half
    longest_wait: float = 20.0
    part_seconds: float = 60.0
    total_seconds: float = 3600.0  # for a file


class TransferFailed(AuroraError):
    """A remote file cannot be had."""

    def __init__(self, message: str, reason: Reason):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[TransferFailed], tuple[str, Reason]]:
        return type(self), (str(self), self.reason)


class RemoteFolder:
    """Files of a location. It holds no connection, so it may be forked and pickled."""

    def __init__(self, location: Location, patience: Patience):
        self.location, self.patience = location, patience

    def whole(self, name: str) -> bytes:
        """All bytes of a small file. Raises TransferFailed."""
        return b"".join(self.parts(name))

    def parts(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """The bytes of a file in order: exactly `size`, or all. Raises TransferFailed."""
        position, length, failures = 0, PART_BYTES, 0
        began = time.monotonic()
        while size is None or position < size:
            end = position + length if size is None else min(position + length, size)
            left = self.patience.total_seconds - (time.monotonic() - began)
            content, problem, slow = self._part(name, position, end, left)
            everything = len(content) > end - position  # the answer of a server without byte ranges
            reason: Reason = "unreachable"
            if everything:
                content = content[position:size]
            elif size is not None and len(content) < end - position and not problem:
                problem = f"it ends at byte {position + len(content)}, the manifest says {size}"
                reason = "checksum"
            if problem:
                failures += 1
                length = max(LEAST_PART_BYTES, length // 4) if slow else length
                self._wait(name, problem, failures, left, reason)
                continue
            failures = 0
            yield content
            position += len(content)
            if size is None and (everything or len(content) < length):
                return

    def _part(self, name: str, start: int, end: int, left: float) -> tuple[bytes, str, bool]:
        """(bytes, what went wrong or "", whether it was too slow). Raises TransferFailed when it is final."""
        url, seconds = self.location.of(name), max(min(self.patience.part_seconds, left), 0.001)
        filesystem = _filesystem(self.location.protocol)
        try:
            return _read(filesystem, url, start, end, seconds), "", False
        except (asyncio.TimeoutError, FutureTimeout):
            return b"", f"no answer within {seconds:.3g} s", True
        except read_errors(self.location.protocol) as error:
            status = http_status(error)
            if status == OUT_OF_RANGE and start:
                return b"", "", False
            if status is None and isinstance(error, (FileNotFoundError, PermissionError)):
                status = 404 if isinstance(error, FileNotFoundError) else 403
            problem = f"status {status}" if status else f"{type(error).__name__}: {error}"
            transient = status is None or status >= 500 or status in RETRIED_STATUSES or status < 400
            if transient and not _hopeless(error):
                return b"", problem, False
            raise self._failed(name, problem, "shard_missing" if status == 404 else "unreachable") from error

    def _wait(self, name: str, problem: str, failures: int, left: float, reason: Reason) -> None:
        wait = min(self.patience.first_wait * 2 ** (failures - 1), self.patience.longest_wait)
        if failures >= self.patience.attempts or left <= wait:
            raise self._failed(name, f"{problem}, after {failures} attempt(s)", reason)
        time.sleep(wait * _random.uniform(0.5, 1.0))

    def _failed(self, name: str, problem: str, reason: Reason) -> TransferFailed:
        if reason == "shard_missing":
            advice = "Copy it there, or correct the URL."
        elif problem in ("status 401", "status 403") or problem.startswith("NoCredentialsError"):
            advice = (
                "Give this machine the rights to read it: credentials where the protocol's client looks for them, or "
                "FSSPEC_S3_ANON=true for a public bucket."
            )
        else:
            advice = "Check the URL, the network and the server."
        return TransferFailed(f"{self.location}/{name} cannot be read: {problem}. {advice}", reason)


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of a filesystem: each keeps it in another place. None: there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        found = getattr(error, "status", None)
        if type(error).__module__.startswith("gcsfs"):
            found = getattr(error, "code", None)  # elsewhere, codes mean other things
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif response is not None:
            found = getattr(response, "status_code", None)
        if str(found).isdigit():
            return int(found)
        error = error.__cause__
    return None


def read_errors(protocol: str) -> tuple[type[BaseException], ...]:
    """What the filesystem of a protocol raises when a read fails: they have no class in common."""
    import aiohttp

    # EOFError, ValueError: answers that cannot be parsed, and addresses that cannot be used.
    errors: list[type[BaseException]] = [OSError, EOFError, ValueError, aiohttp.ClientError]
    if protocol == "s3":
        import botocore.exceptions

        errors += [botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError]
    if protocol == "gs":
        import gcsfs.retry
        import google.auth.exceptions

        errors += [gcsfs.retry.HttpError, google.auth.exceptions.GoogleAuthError]
    if protocol == "hf":
        from huggingface_hub.errors import HfHubHTTPError

        errors += [
            base for base in HfHubHTTPError.__bases__ if base is not object
        ]  # its HTTP library's error
    return tuple(errors)


def _hopeless(error: BaseException) -> bool:
    """Errors without a status that another attempt cannot change: no credentials, an address that is none."""
    return (
        isinstance(error, ValueError)
        or type(error).__name__ == "NoCredentialsError"
        or str(error).startswith("Forbidden")  # gcsfs
    )


def _filesystem(protocol: str) -> Any:
    """This process's filesystem of a listed protocol. Raises AuroraError when its package is missing."""
    import fsspec

    if protocol not in PROTOCOLS:
        raise ValueError(f"{protocol} is not a protocol that is read")
    key = (os.getpid(), protocol)
    if key not in _filesystems:
        try:
            # Threads may come here together; all get the same one.
            made = fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol))
            _filesystems.setdefault(key, made)
        except ImportError as error:
            raise AuroraError(
                f"{protocol}:// needs the package {PROTOCOLS[protocol]}: pip install 'aurora_ds[remote]'."
            ) from error
    return _filesystems[key]


def _options(protocol: str) -> dict[str, Any]:
    """Options of a filesystem that its configuration files and variables (FSSPEC_…) do not set."""
    from fsspec.config import conf

    if protocol not in ("http", "https") or "client_kwargs" in conf.get(protocol, {}):
        return {}
    # As the clients of the other protocols do: proxies and passwords from the environment and ~/.netrc.
    return {"client_kwargs": {"trust_env": True}}


def _read(filesystem: Any, url: str, start: int, end: int, seconds: float) -> bytes:
    """Bytes [start, end) or up to the end of the file. Raises a timeout error after `seconds`."""
    from fsspec.asyn import sync

    path = filesystem._strip_protocol(url)
    if filesystem.async_impl:
        # Cancels the request, which fsspec's own cat_file with its blocking wait cannot.
        return sync(filesystem.loop, filesystem._cat_file, path, start=start, end=end, timeout=seconds)
    result: Future[bytes] = Future()

    def read() -> None:
        try:
            result.set_result(filesystem.cat_file(path, start=start, end=end))
        except BaseException as error:  # noqa: BLE001 - it is raised again by result()
            result.set_exception(error)

    # A daemon: a read that never ends must not keep the process from ending.
    threading.Thread(target=read, daemon=True).start()
    return result.result(timeout=seconds)

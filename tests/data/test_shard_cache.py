"""The cache folder: whole files only, one download for all, bounded."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from aurora_ds.data.remote.cache import FileCache
from aurora_ds.data.remote.transfer import TransferFailed
from aurora_ds.errors import AuroraError

FORK = multiprocessing.get_context("fork")


def content(number: int, size: int = 1000) -> tuple[str, bytes]:
    """(sha256, bytes)"""
    made = bytes([number]) * size
    return hashlib.sha256(made).hexdigest(), made


def put(cache: FileCache, number: int, size: int = 1000) -> int:
    """Opens file `number` of the cache, which makes it if need be."""
    name, made = content(number, size)
    return cache.open(name, size, lambda file: file.write(made))


def names(cache: FileCache) -> set[str]:
    """What is in the cache, but for its lock."""
    return {path.name for path in cache.folder.iterdir() if path.name != ".lock"}


def never(file: BinaryIO) -> None:
    raise AssertionError("it was there")


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "new/cache", 10_000)
    name, made = content(1)
    for fill in (lambda file: file.write(made), never):
        handle = cache.open(name, 1000, fill)
        assert os.pread(handle, 2000, 0) == made
        os.close(handle)
    assert names(cache) == {f"{name}.tar"}


def test_a_cut_file_is_made_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 10_000)
    os.close(put(cache, 1))
    path = tmp_path / f"{content(1)[0]}.tar"
    os.truncate(path, 10)
    os.close(put(cache, 1))
    assert path.read_bytes() == content(1)[1]


def test_the_least_recently_opened_file_goes_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 3500)
    for number in (1, 2, 3, 1, 4):
        os.close(put(cache, number))
        time.sleep(0.01)
    assert names(cache) == {f"{content(number)[0]}.tar" for number in (1, 3, 4)}


def test_files_in_use_go_last_and_stay_readable(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 2000)
    first = put(cache, 1)
    time.sleep(0.01)
    os.close(put(cache, 2))
    second = put(cache, 3)
    assert names(cache) == {f"{content(number)[0]}.tar" for number in (1, 3)}
    os.close(put(cache, 4))
    assert names(cache) == {f"{content(number)[0]}.tar" for number in (3, 4)}
    assert os.pread(first, 2000, 0) == content(1)[1]
    os.close(first)
    os.close(second)


def test_a_file_larger_than_the_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"does not fit into the cache .*Raise data.cache_gb"):
        put(FileCache(tmp_path, 999), 1)
    assert names(FileCache(tmp_path, 999)) == set()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuroraError, match="cannot be used: Not a directory. Set data.cache"):
        put(FileCache(tmp_path / "file/cache", 10_000), 1)


def in_processes(count: int, work: Callable[[int], None]) -> list[int | None]:
    """Exit codes of so many forked processes that each do `work(number)`."""
    processes = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_many_processes_make_each_file_once(tmp_path: Path) -> None:
    cache, made = FileCache(tmp_path / "cache", 100_000), tmp_path / "made"
    made.mkdir()

    def work(process: int) -> None:
        handles = []
        for turn in range(8):
            number = (process + turn) % 8

            def fill(file: BinaryIO, number: int = number) -> None:
                (made / f"{number}-{os.getpid()}").touch()
                time.sleep(0.02)
                file.write(content(number)[1])

            # They stay open, as a reader's do: others must not wait for that.
            handles.append(cache.open(content(number)[0], 1000, fill))
            assert os.pread(handles[-1], 2000, 0) == content(number)[1]

    assert in_processes(6, work) == [0] * 6
    assert len(list(made.iterdir())) == 8
    assert names(cache) == {f"{content(number)[0]}.tar" for number in range(8)}


def test_many_processes_in_a_cache_too_small_for_all_read_the_right_bytes(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 3000)

    def work(process: int) -> None:
        for turn in range(40):
            number = (7 * process + 3 * turn) % 10
            handle = put(cache, number)
            assert os.pread(handle, 2000, 0) == content(number)[1]
            os.close(handle)

    assert in_processes(4, work) == [0] * 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3000


def test_a_killed_process_leaves_nothing_that_stays(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 10_000)

    def hang(file: BinaryIO) -> None:
        file.write(b"part")
        file.flush()
        time.sleep(60)

    for number in (1, 2):
        process = FORK.Process(target=cache.open, args=(content(number)[0], 1000, hang))
        process.start()
        partial = tmp_path / f"{content(number)[0]}.partial"
        while not (partial.exists() and partial.stat().st_size == 1000):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert partial.exists()
    # The one that is wanted is made anew, the other is removed on the way.
    handle = put(cache, 1)
    assert os.pread(handle, 2000, 0) == content(1)[1]
    os.close(handle)
    assert names(cache) == {f"{content(1)[0]}.tar"}


def test_those_who_waited_get_the_same_failure(tmp_path: Path) -> None:
    cache, tried, met, asked = FileCache(tmp_path, 10_000), [], [], []

    def fail(file: BinaryIO) -> None:
        tried.append(1)
        while len(asked) < 5:
            time.sleep(0.01)
        time.sleep(0.5)  # from asking to waiting
        raise TransferFailed("no network", "unreachable")

    def work() -> None:
        asked.append(1)
        try:
            cache.open(content(1)[0], 1000, fail)
        except TransferFailed as error:
            met.append((str(error), error.reason))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [("no network", "unreachable")] * 5 and len(tried) == 1
    # Later it is tried again.
    os.close(put(cache, 1))
    assert names(cache) == {f"{content(1)[0]}.tar"}

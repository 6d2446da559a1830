"""Batches made by worker processes: what they share, how they start, how they hand over, and what their end means."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.queues
import multiprocessing.util
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from aurora_ds.config import RunConfig
from aurora_ds.data.batch_memory import BatchMemory, FilledSlot, keep_freed_memory
from aurora_ds.data.media import MediaReader
from aurora_ds.data.unreadable import Limit, TooManyUnreadable
from aurora_ds.data.waiting import ReadingBoard, Watch
from aurora_ds.data.worker_signals import end_only_with_the_run
from aurora_ds.errors import AuroraError

# A socket's path has 107 bytes (103 on macOS); multiprocessing adds /pymp-xxxxxxxx/listener-xxxxxxxx to the folder.
LONGEST_FOLDER = 103 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class _Failure:
    """An AuroraError on its way out of a worker: raised there, DataLoader would put a stack trace into its message."""

    message: str
    bad: tuple[dict[str, Any], ...] = ()


class BatchLoader:
    """Iterates batches; len() is exact. A shell over DataLoader that raises errors of workers as they were, tells of
    long waits, and stops when too much is unreadable."""

    def __init__(
        self, batches: DataLoader, board: ReadingBoard, slow_seconds: float, limit: Limit | None = None
    ):
        self.batches, self.board, self.slow_seconds, self.limit = batches, board, slow_seconds, limit

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.batches)
        try:
            with Watch(self.board, self.slow_seconds) as watch:
                while True:
                    with _killed_worker_in_words():
                        watch.begin()
                        batch = next(iterator, None)
                        watch.end()
                    if batch is None:
                        return
                    if isinstance(batch, _Failure):
                        raise (
                            TooManyUnreadable(batch.message, list(batch.bad))
                            if batch.bad
                            else AuroraError(batch.message)
                        )
                    if self.limit is not None:
                        self.limit.add(batch["bad"])
                    if isinstance(batch["image"], FilledSlot):
                        batch["image"] = batch["image"].tensor()
                    yield batch
        finally:
            # Its workers end with its last reference; left to a traceback or to garbage collection, that takes seconds.
            del iterator


@contextlib.contextmanager
def _killed_worker_in_words() -> Iterator[None]:
    """DataLoader tells of a worker's end by an error out of a signal handler, so at any line of the main thread."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise AuroraError(
            "A data worker process was killed, perhaps because memory ran out: use fewer data.workers or a smaller "
            "data.prefetch and resume. If it could not hand over a batch, it said why above."
        ) from error


class Batches(Dataset):
    """Item n is `batch(n)`, or the failure to make it: the mapping that DataLoader's workers share."""

    batch: Callable[[int], dict[str, Any]]
    media: MediaReader
    memory: BatchMemory | None = None

    def __getitem__(self, number: int) -> dict[str, Any] | _Failure:
        try:
            return self.batch(number)
        except TooManyUnreadable as error:
            return _Failure(str(error), tuple(error.bad))
        except AuroraError as error:
            return _Failure(str(error))


def batch_loader(
    config: RunConfig, batches: Batches, numbers: range, rows: int, limit: Limit | None = None
) -> BatchLoader:
    """A loader of the items `numbers`, of at most `rows` media each."""
    # A single batch is made faster here than in a process that must be started for it.
    workers = min(config.data.workers, len(numbers)) if len(numbers) > 1 else 0
    board = ReadingBoard(workers, batches.media.place)
    batches.media.note = board.note
    if workers:
        prepare_socket_folder()
        # as many as can be under way, and two for the run that reads them; each takes two file descriptors
        slots = min(workers * config.data.prefetch + 2, 100)
        batches.memory = _batch_memory(
            slots, rows * config.data.video.frames * 3 * config.backbone.vision.image_size**2
        )
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        # fork: a start costs milliseconds; workers run no CUDA and one thread, which is what fork needs to be safe.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_prepare_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return BatchLoader(loader, board, config.data.slow_seconds, limit)


def _batch_memory(slots: int, floats: int) -> BatchMemory | None:
    try:
        return BatchMemory(slots, floats)
    except OSError:  # every batch then takes memory of its own
        return None


def _prepare_worker(worker: int) -> None:
    # The tokenizers library warns once per fork unless told that its threads are not wanted here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_with)
    keep_freed_memory()
    end_only_with_the_run()
    # Objects of the main process need no collecting here; looking at them would copy their pages.
    gc.freeze()


def _end_with(error: Exception, batch: object) -> None:
    """In the place of multiprocessing's printing, which loses the batch and lets the run wait for it for ever."""
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def prepare_socket_folder() -> None:
    """Choose the folder of the sockets over which workers hand batches on: that of temporary files, or, where its path
    is too long for a socket, as a cluster's folders of a job may be, a short one. Raises AuroraError if there is none.
    """
    own = tempfile.gettempdir()
    for folder in (own, *SHORT_FOLDERS):
        if (
            len(os.fsencode(folder)) <= LONGEST_FOLDER
            and Path(folder).is_dir()
            and os.access(folder, os.W_OK)
        ):
            break
    else:
        raise AuroraError(
            f"Data workers need a folder for sockets whose path has at most {LONGEST_FOLDER} bytes: {own} (TMPDIR) is "
            f"longer, and {', '.join(SHORT_FOLDERS)} cannot be written. Set TMPDIR to a shorter folder or "
            "data.workers to 0."
        )
    before = tempfile.tempdir
    try:
        tempfile.tempdir = folder
        multiprocessing.util.get_temp_dir()  # kept for this process and for those that it starts
    finally:
        tempfile.tempdir = before

"""Runs shard tasks on worker processes, results in task order. Workers end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from aurora_ds.errors import AuroraError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """function(task) for each task, in order, on `workers` processes (1: in this one).

    Two tasks per worker are in flight, so closing the iterator early leaves little undone work behind. Raises what
    `function` raises, and AuroraError when a worker is killed from outside.
    """
    if workers < 1:
        raise AuroraError(f"--workers must be at least 1, not {workers}.")
    if workers == 1:
        yield from map(function, tasks)
        return
    # fork: workers share the folder's lock with this process, and no module is imported again.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        remaining = iter(tasks)
        pending: list[Future] = [pool.submit(function, task) for task in islice(remaining, 2 * workers)]
        try:
            while pending:
                yield pending.pop(0).result()
                pending += [pool.submit(function, task) for task in islice(remaining, 1)]
        except BrokenProcessPool as error:
            raise AuroraError(
                "A worker process was killed, perhaps because memory ran out. What is written is whole: run "
                "the same command again to continue, with fewer --workers if memory is short."
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _end_with_parent(parent: int) -> None:
    # Ctrl-C goes to the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Where shard tasks run: processes of this machine, or a Ray cluster. Results come in task order from both.

All machines of a cluster need aurora_ds, and must see source and output under the same paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from aurora_ds.data.convert.pool import run_in_order
from aurora_ds.errors import AuroraError

EXECUTORS = ("local", "ray")

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a function over tasks."""

    def run_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """function(task) for each task, in order; few tasks are in flight at a time."""


@contextmanager
def open_executor(name: str, workers: int, ray_address: str | None = None) -> Iterator[Executor]:
    """The executor of that name. Raises AuroraError for an unknown one, and for a cluster that cannot be reached."""
    if workers < 1:
        raise AuroraError(f"--workers must be at least 1, not {workers}.")
    if name not in EXECUTORS:
        raise AuroraError(f"There is no executor {name!r}; there is {', '.join(EXECUTORS)}.")
    if name == "local":
        if ray_address is not None:
            raise AuroraError("--ray-address goes with --executor ray.")
        yield _Local(workers)
        return
    ray = _import_ray()
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if ray_address is None:
            # "local": a cluster of this machine's own, with a processor for each worker, whatever RAY_ADDRESS says.
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(address=ray_address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise AuroraError(
            f"The Ray cluster at {ray_address} cannot be reached: {error}. Start one with `ray start --head`, and give "
            "its address or `auto` as --ray-address."
        ) from error
    try:
        yield _Ray(ray, workers)
    finally:
        ray.shutdown()


class _Local:
    def __init__(self, workers: int):
        self._workers = workers

    def run_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        return run_in_order(function, tasks, self._workers)


class _Ray:
    """Ray repeats the task of a machine that is lost; shards are written whole or not at all, so that is safe."""

    def __init__(self, ray: Any, workers: int):
        self._ray, self._workers = ray, workers

    def run_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        remote = self._ray.remote(num_cpus=1, max_retries=3)(function)
        remaining = iter(tasks)
        pending = [remote.remote(task) for task in islice(remaining, 2 * self._workers)]
        try:
            while pending:
                yield self._result(pending.pop(0))
                pending += [remote.remote(task) for task in islice(remaining, 1)]
        finally:
            for waiting in pending:
                self._ray.cancel(waiting)

    def _result(self, waiting: Any) -> Any:
        try:
            return self._ray.get(waiting)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AuroraError):
                raise error.cause from error
            if "failed to import" in str(error.cause):
                raise AuroraError(
                    "A machine of the Ray cluster cannot import what it is to run. Install the same version of "
                    f"aurora_ds on every machine of it. {str(error.cause).splitlines()[-1]}"
                ) from error
            raise
        except self._ray.exceptions.RayError as error:
            raise AuroraError(
                f"A task was lost on the Ray cluster: {error}. What is written is whole: run the same command again to "
                "continue."
            ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise AuroraError(
            "--executor ray needs the package ray: pip install 'aurora_ds[ray]'. Without it, --executor local runs on "
            "the processes of this machine."
        ) from error
    return ray

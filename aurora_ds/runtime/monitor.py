"""TensorBoard, written by rank 0: figures over steps and over samples, the configuration, hyperparameters,
pictures; and the same figures exactly in metrics.jsonl (metrics_log.py).

The event files lie in `OUTPUT/tensorboard/by_step` and `…/by_samples`, two runs of the same tags. They are apart
because a resumed run hides the events that the killed one wrote after its last checkpoint, and TensorBoard does
that per folder, counting in that folder's axis. When the files cannot be written (disk full), the run goes on
without them: whether it can still save its state is for the next checkpoint to say, to all ranks.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from aurora_ds.runtime import process_group
from aurora_ds.runtime.metrics_log import MetricsLog

FOLDER = "tensorboard"


class Monitor:
    """The run's figures on disk. Every rank makes one; only rank 0 writes, and no TensorBoard files when `enabled`
    is False.
    """

    def __init__(
        self,
        output: str | Path,
        enabled: bool = True,
        resume_step: int | None = None,
        resume_samples: int | None = None,
        evaluates_again: bool = False,
    ) -> None:
        """`resume_step`, `resume_samples`: the position of the checkpoint resumed from; later events are hidden.
        `evaluates_again`: an evaluation at that position, too, since the run makes it once more."""
        self.folder = Path(output) / FOLDER
        self._by_step: Any = None
        self._by_samples: Any = None
        self._log: MetricsLog | None = None

        def open_files() -> None:
            self._log = MetricsLog(output, resume_step, evaluates_again)
            if enabled:
                self._by_step = _writer(self.folder / "by_step", resume_step)
                self._by_samples = _writer(self.folder / "by_samples", resume_samples)
                for line in self._log.kept():
                    figures = {name: value for name, value in line.items() if name not in ("step", "samples")}
                    self._draw(figures, line["step"], line.get("samples"))

        if process_group.rank() == 0:
            self._write(open_files)

    def scalars(self, values: dict[str, float | str], step: int, samples: int | None = None) -> None:
        """Write figures at `step`, and at `samples` when given. Values that are not finite are written as they are;
        words (the name of a host) only go into metrics.jsonl."""

        def write() -> None:
            if self._log is not None:
                self._log.write(step, samples, values)
            self._draw(values, step, samples)

        self._write(write)

    def _draw(self, values: dict[str, float | str], step: int, samples: int | None) -> None:
        if self._by_step is None:
            return
        for name, value in values.items():
            if isinstance(value, str):
                continue
            self._by_step.add_scalar(name, value, step)
            if samples is not None:
                self._by_samples.add_scalar(name, value, samples)

    def counts(self, tag: str, values: list[float], step: int) -> None:
        """How much each of several numbered things had, as a histogram with one bar for each."""

        def write() -> None:
            numbers = np.arange(len(values))
            self._by_step.add_histogram_raw(
                tag,
                min=0,
                max=len(values),
                num=sum(values),
                sum=float((numbers * values).sum()),
                sum_squares=float((numbers**2 * values).sum()),
                bucket_limits=(numbers + 1).tolist(),
                bucket_counts=values,
                global_step=step,
            )

        if self._by_step is not None:
            self._write(write)

    def text(self, tag: str, content: str, step: int = 0) -> None:
        """A text, shown as a code block (the configuration as YAML)."""
        if self._by_step is not None:
            block = "\n".join(f"    {line}" for line in content.splitlines())
            self._write(lambda: self._by_step.add_text(tag, block, step))

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """A picture: uint8 array (3, height, width)."""
        if self._by_step is not None:
            self._write(lambda: self._by_step.add_image(tag, picture, step))

    def figure(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure, where matplotlib is installed."""
        if self._by_step is not None:
            self._write(lambda: self._by_step.add_figure(tag, figure, step))

    def hyperparameters(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """The run's settings (nested; flattened to dotted names) beside its final metrics, for the HPARAMS page."""
        if self._by_step is None:
            return
        from torch.utils.tensorboard.summary import hparams

        named = {f"hparam/{name}": float(value) for name, value in metrics.items()}

        def write() -> None:
            for summary in hparams(_flat(config), named):
                self._by_step.file_writer.add_summary(summary)
            for name, value in named.items():
                self._by_step.add_scalar(name, value)

        self._write(write)
        self.flush()

    def flush(self) -> None:
        """Put everything written so far on disk."""
        self._write(lambda: [writer.flush() for writer in (self._by_step, self._by_samples) if writer])

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        self._write(lambda: [file.close() for file in self._files()])
        self._by_step = self._by_samples = self._log = None

    def _files(self) -> list[Any]:
        return [file for file in (self._by_step, self._by_samples, self._log) if file is not None]

    def _write(self, work: Callable[[], object]) -> None:
        """Do `work`; what the disk refuses ends the monitoring, with a warning, and not the run."""
        try:
            work()
        except OSError as error:
            for file in self._files():
                with contextlib.suppress(OSError):  # what it still holds cannot be written either
                    file.close()
            self._by_step = self._by_samples = self._log = None
            warnings.warn(
                f"Figures are no longer written to {self.folder.parent}: {error.strerror or error}. The run goes on; "
                "it stops at its next checkpoint if that cannot be written either.",
                stacklevel=2,
            )


def memory() -> dict[str, float]:
    """MiB of this rank: its process now and at most so far; on a GPU what tensors took of it at most so far, and what
    torch has reserved. Worker processes that load data are not in it."""
    found = {
        "memory/process_mb": psutil.Process().memory_info().rss / 2**20,
        "memory/process_peak_mb": _process_peak_mb(),
    }
    if process_group.device().type == "cuda":
        found["memory/device_peak_mb"] = memory_mb()
        found["memory/device_reserved_mb"] = torch.cuda.memory_reserved() / 2**20
    return found


def memory_mb() -> float:
    """Peak memory of this rank in MiB: allocated GPU memory, or the process's resident set on the CPU."""
    if process_group.device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _process_peak_mb()


def _process_peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _writer(folder: Path, resumed_at: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard hides earlier events from `purge_step` on. Those at the step of the checkpoint itself are hidden too,
    # because an evaluation may be made again there; what stays is drawn once more. A run that begins anew in a folder
    # that a killed one left hides everything. The first writer of a folder says where it begins, too: `tensorboard
    # --load_fast=false` takes the first such word for the beginning, and only later ones for a restart.
    return SummaryWriter(str(folder), purge_step=resumed_at or 0)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat

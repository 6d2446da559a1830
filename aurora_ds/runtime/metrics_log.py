"""metrics.jsonl: every figure of a run as exact numbers, one JSON object per line, beside TensorBoard's fp32 curves.

Each line has `step`, `samples` where known, and the figures; floats are written so that reading them back gives the
same bits. A line is whole or not there: a torn one, of a killed run, is dropped when the run is resumed, and so are
lines of steps that will be taken again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

FILE = "metrics.jsonl"
# Beginning of the names of an evaluation's figures.
EVALUATION = "eval/"


class MetricsLog:
    """The open file of one run. Appends; what is written is out of this process after every line."""

    def __init__(
        self, output: str | Path, resume_step: int | None = None, evaluates_again: bool = False
    ) -> None:
        """`resume_step`: lines of later steps are dropped, and with `evaluates_again` evaluations at that step, too;
        None: all lines are, the run begins anew.

        Raises OSError when the folder cannot be written to.
        """
        path = Path(output) / FILE
        lines = [] if resume_step is None else read(path)
        kept = [line for line in lines if _stays(line, resume_step, evaluates_again)]
        self._kept = [line for line in kept if line["step"] == resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{FILE}")
        temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, samples: int | None, figures: dict[str, float | str]) -> None:
        """One line. Raises OSError when the disk is full."""
        place = {"step": step} if samples is None else {"step": step, "samples": samples}
        self._file.write(f"{json.dumps(place | figures)}\n")
        self._file.flush()

    def kept(self) -> list[dict[str, Any]]:
        """The lines of the step that the run was resumed after, as they stood when the file was opened."""
        return self._kept

    def close(self) -> None:
        """Safe to call twice."""
        self._file.close()


def _stays(line: dict[str, Any], resume_step: int, evaluates_again: bool) -> bool:
    again = evaluates_again and any(name.startswith(EVALUATION) for name in line)
    return line["step"] < resume_step or (line["step"] == resume_step and not again)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in order; none when there is no file. NaN and infinities are read as such."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # torn: the writer was killed in the middle of it
        lines.append(json.loads(line))
    return lines

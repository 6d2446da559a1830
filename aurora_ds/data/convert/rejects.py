"""rejects.jsonl: what could not be converted, why, and when it is too much."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from aurora_ds.data.convert.entries import Reject
from aurora_ds.data.convert.spool import Spool
from aurora_ds.errors import AuroraError


class Rejects:
    """Rejects of the annotations, which stay in the spool, then those of media, in the order of the shards."""

    def __init__(self, spool: Spool, most: int, output: Path):
        self._spool, self._most, self._path = spool, most, output / "rejects.jsonl"
        self._earlier = spool.reject_count()
        self._media: list[Reject] = []

    def __len__(self) -> int:
        return self._earlier + len(self._media)

    def add(self, rejects: Iterable[Reject]) -> None:
        """More rejects of media. Raises AuroraError when there are too many in all."""
        self._media += rejects
        self.check()

    def check(self, others: Iterable[Reject] = ()) -> None:
        """Raises AuroraError, with all rejects in the file, when these and `others` are more than allowed."""
        others = list(others)
        total = len(self) + len(others)
        if total <= self._most:
            return
        self.write(others)
        first = next(chain(self._spool.rejects(), self._media, others))
        raise AuroraError(
            f"{total} rejects so far, more than --max-rejects allows ({self._most}). The first: {first.media_id} "
            f"of {first.split}: {first.reason}. All are in {self._path}. Correct the source, or "
            "allow more; the same command continues."
        )

    def write(self, others: Iterable[Reject] = ()) -> None:
        """Writes the file in full or not at all."""
        temporary = self._path.with_name(f".{self._path.name}.partial")
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(_lines(chain(self._spool.rejects(), self._media, others)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)


def most_rejects(given: int | str, total: int) -> int:
    """`N` or `P%` of `total` -> a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(given).strip())
    if match is None or (not match[2] and "." in match[1]):
        raise AuroraError(f"--max-rejects must be a number such as 10 or a share such as 1%, not {given!r}.")
    return int(total * float(match[1]) / 100) if match[2] else int(match[1])


def _lines(rejects: Iterable[Reject]) -> Iterator[str]:
    for reject in rejects:
        yield json.dumps(vars(reject), ensure_ascii=False) + "\n"

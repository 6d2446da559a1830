"""Entries of a dataset grouped by medium, on disk: an SQLite file in the output's .progress/, so memory stays bounded.

Media of a split are numbered in order of first appearance. The file is written under a temporary name and renamed when
it is whole; one made from the same annotations is used again, any other is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.progress import Counter
from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError

# Where the words of an annotation are; without words it is of no use and is rejected.
WORDS = {"questions": "question", "statements": "sentence", "phrases": "phrase", "moments": "caption"}
CACHE_KIB = 64 * 1024
ENTRIES_PER_STEP = 2000

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE media (number INTEGER, split TEXT, key TEXT, names TEXT, extra TEXT, listed INTEGER,
                    PRIMARY KEY (split, number)) WITHOUT ROWID;
CREATE UNIQUE INDEX media_by_key ON media (split, key);
CREATE TABLE annotations (split TEXT, number INTEGER, place INTEGER, kind TEXT, value TEXT, identity TEXT,
                          PRIMARY KEY (split, number, place)) WITHOUT ROWID;
CREATE TABLE rejects (split TEXT, media_id TEXT, reason TEXT);
"""


@dataclass(frozen=True)
class SpooledMedium:
    """A medium with all its annotations. `number`: its place in the split, rejected ones counted."""

    number: int
    names: str | tuple[str, ...]
    annotations: dict[str, list[Any]]
    identities: dict[str, list[Any]]
    extra: dict[str, Any]

    @property
    def media_id(self) -> str:
        """How messages and rejects call it."""
        return self.names if isinstance(self.names, str) else " + ".join(self.names)


class Spool:
    """A finished spool. Media are read by ranges of their numbers; nothing is kept in memory."""

    def __init__(self, path: Path):
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.facts = {
            name: json.loads(value) for name, value in self._database.execute("SELECT * FROM facts")
        }

    @property
    def splits(self) -> dict[str, int]:
        """split -> number of media, in order of first appearance."""
        return self.facts["splits"]

    @property
    def entries_sha256(self) -> str:
        """sha256 over all entries as the family gave them."""
        return self.facts["entries_sha256"]

    @property
    def listed(self) -> int:
        """Media named in the annotations, rejected ones counted."""
        return self.facts["listed"]

    def counts(self) -> dict[str, tuple[int, int]]:
        """split -> (media with something to convert, pairs)."""
        return {name: (media, pairs) for name, (media, pairs) in self.facts["counts"].items()}

    def reject_count(self) -> int:
        """How many were rejected while reading the annotations."""
        return self._database.execute("SELECT count(*) FROM rejects").fetchone()[0]

    def rejects(self) -> Iterator[Reject]:
        """Those, in order."""
        for row in self._database.execute("SELECT * FROM rejects ORDER BY rowid"):
            yield Reject(*row)

    def media(self, split: str, first: int, end: int) -> list[SpooledMedium]:
        """Media `first` to `end` - 1 of the split, but for those whose annotations were all rejected."""
        span = (split, first, end)
        found: list[SpooledMedium] = []
        by_number: dict[int, SpooledMedium] = {}
        for number, names, extra, listed in self._database.execute(
            "SELECT number, names, extra, listed FROM media WHERE split = ? AND number >= ? AND number < ?",
            span,
        ):
            names = json.loads(names)
            names = names if isinstance(names, str) else tuple(names)
            medium = SpooledMedium(number, names, {}, {}, json.loads(extra))
            by_number[number] = medium
            if listed >= 0:
                found.append(medium)
        for number, kind, value, identity in self._database.execute(
            "SELECT number, kind, value, identity FROM annotations WHERE split = ? AND number >= ? AND number < ? "
            "ORDER BY number, place",
            span,
        ):
            medium = by_number[number]
            medium.annotations.setdefault(kind, []).append(json.loads(value))
            medium.identities.setdefault(kind, []).append(json.loads(identity))
        return found

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


def open_spool(
    path: Path, identity: str, entries: Iterable[Entry | Reject], limit: int | None, progress: Counter
) -> Spool:
    """The spool at `path`, filled from `entries` unless it is there already with the same `identity`.

    limit: media of each split that are kept. Raises AuroraError for entries that contradict each other, and when the
    disk is full.
    """
    if path.is_file():
        spool = _read_if_same(path, identity)
        if spool is not None:
            return spool
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        writing = _Writing(temporary, limit)
        try:
            writing.add_all(entries, progress)
            writing.finish(identity)
        finally:
            writing.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (sqlite3.Error, OSError) as error:
        raise AuroraError(
            f"The annotations cannot be written to {path}: {error}. Make room there, and run the same command again."
        ) from error
    return Spool(path)


def _read_if_same(path: Path, identity: str) -> Spool | None:
    try:
        spool = Spool(path)
    except sqlite3.Error:
        return None  # not a database: it is replaced
    if spool.facts.get("identity") == identity:
        return spool
    spool.close()
    return None


class _Writing:
    """A spool in the making. It is thrown away when the process ends early, so the database need not be safe."""

    def __init__(self, path: Path, limit: int | None):
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")
        self._limit = limit
        self._splits: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._rejected_outside = 0
        self._blanks = False
        # The medium of the entry before: entries of one medium mostly stand together.
        self._last: tuple[str, str, int, int, str, str] | None = None

    def add_all(self, entries: Iterable[Entry | Reject], progress: Counter) -> None:
        seen = 0
        for entry in entries:
            if isinstance(entry, Reject):
                self._reject(entry)
            else:
                self._add(entry)
            seen += 1
            if seen % ENTRIES_PER_STEP == 0:
                progress.advance(ENTRIES_PER_STEP)
        progress.advance(seen % ENTRIES_PER_STEP)
        self._leave()

    def finish(self, identity: str) -> None:
        """Turns blank annotations into rejects, counts, and commits."""
        run = self._database.execute
        if self._blanks:
            self._reject_blanks()
        counts = {name: [0, 0] for name in self._splits}
        for split, number in run("SELECT split, count(*) FROM media WHERE listed >= 0 GROUP BY split"):
            counts[split][0] = number
        for split, number in run("SELECT split, count(*) FROM annotations GROUP BY split"):
            counts[split][1] = number
        facts = {
            "identity": identity,
            "splits": self._splits,
            "counts": counts,
            "listed": sum(self._splits.values()) + self._rejected_outside,
            "entries_sha256": self._digest.hexdigest(),
        }
        self._database.executemany(
            "INSERT INTO facts VALUES (?, ?)", [(name, json.dumps(value)) for name, value in facts.items()]
        )
        run("COMMIT")

    def close(self) -> None:
        self._database.close()

    def _reject_blanks(self) -> None:
        """A reject for each annotation without words, one for a medium that has no others."""
        run = self._database.execute
        blanks = run(
            "SELECT a.split, a.number, a.place, a.value, m.names, (SELECT count(*) FROM annotations b "
            "WHERE b.split = a.split AND b.number = a.number AND b.kind != ?) FROM annotations a "
            "JOIN media m ON m.split = a.split AND m.number = a.number WHERE a.kind = ?",
            (_BLANK, _BLANK),
        ).fetchall()
        told = set()
        for split, number, place, kind, names, kept in blanks:
            if kept:
                reason = f"{kind[:-1]} {place} is blank; the medium keeps its other annotations"
            elif (split, number) not in told:
                reason = f"all {kind} are blank"
                told.add((split, number))
                run("UPDATE media SET listed = -1 WHERE split = ? AND number = ?", (split, number))
            else:
                continue
            run("INSERT INTO rejects VALUES (?, ?, ?)", (split, _shown(names), reason))
        run("DELETE FROM annotations WHERE kind = ?", (_BLANK,))

    def _reject(self, reject: Reject) -> None:
        self._check_split(reject.split)
        row = (reject.split, reject.media_id, reject.reason)
        self._digest.update(_text(["reject", *row]).encode())
        known = self._database.execute(
            "SELECT 1 FROM media WHERE split = ? AND key = ?", (reject.split, _text(reject.media_id))
        ).fetchone()
        if known is None:
            if self._full(reject.split):
                return
            self._rejected_outside += 1
        self._splits.setdefault(reject.split, 0)
        self._database.execute("INSERT INTO rejects VALUES (?, ?, ?)", row)

    def _add(self, entry: Entry) -> None:
        key = _text(entry.media if entry.key is None else entry.key)
        names, extra = _text(entry.media), _text(entry.extra)
        value = _text(entry.annotation)
        self._digest.update(f"{entry.split}\n{key}\n{names}\n{extra}\n{entry.kind}\n{value}\n".encode())
        if self._last is None or self._last[:2] != (entry.split, key):
            self._leave()
            self._enter(entry, key, names, extra)
        if self._last is None:
            return  # beyond the limit
        split, _, number, place, known_names, known_extra = self._last
        if known_names != names:
            raise AuroraError(
                f"In the annotations, split {split}, {json.loads(key)!r} is given to both {_shown(known_names)} and "
                f"{_shown(names)}. One identity must mean one medium."
            )
        if known_extra != extra:
            known_extra = self._merge(split, number, known_names, known_extra, entry.extra)
        if entry.kind is not None:
            words = (
                entry.annotation
                if entry.kind == "captions"
                else entry.annotation.get(WORDS.get(entry.kind, ""))
            )
            blank = isinstance(words, str) and not pre_caption(words, 1)
            self._blanks |= blank
            self._database.execute(
                "INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?)",
                (split, number, place, _BLANK, entry.kind, "null")
                if blank
                else (split, number, place, entry.kind, value, _text(entry.annotation_id)),
            )
            place += 1
        self._last = (split, key, number, place, known_names, known_extra)

    def _enter(self, entry: Entry, key: str, names: str, extra: str) -> None:
        row = self._database.execute(
            "SELECT number, listed, names, extra FROM media WHERE split = ? AND key = ?", (entry.split, key)
        ).fetchone()
        if row is not None:
            number, listed, names, extra = row
            self._last = (entry.split, key, number, listed, names, extra)
            return
        self._check_split(entry.split)
        if self._full(entry.split):
            return
        number = self._splits.setdefault(entry.split, 0)
        self._splits[entry.split] += 1
        self._database.execute(
            "INSERT INTO media VALUES (?, ?, ?, ?, ?, 0)", (number, entry.split, key, names, extra)
        )
        self._last = (entry.split, key, number, 0, names, extra)

    def _leave(self) -> None:
        """Stores how many annotations the medium has been given so far."""
        if self._last is not None:
            split, _, number, place, _, _ = self._last
            self._database.execute(
                "UPDATE media SET listed = ? WHERE split = ? AND number = ?", (place, split, number)
            )
        self._last = None

    def _merge(self, split: str, number: int, names: str, known: str, extra: dict[str, Any]) -> str:
        """Fields that a later entry of the medium adds. The same field with two values is an error."""
        merged = json.loads(known)
        for field, value in json.loads(_text(extra)).items():
            if merged.setdefault(field, value) != value:
                raise AuroraError(
                    f"In the annotations, split {split}, {_shown(names)} has two values of `{field}`: "
                    f"{merged[field]!r} and {value!r}."
                )
        text = _text(merged)
        self._database.execute(
            "UPDATE media SET extra = ? WHERE split = ? AND number = ?", (text, split, number)
        )
        return text

    def _full(self, split: str) -> bool:
        return self._limit is not None and self._splits.get(split, 0) >= self._limit

    def _check_split(self, split: str) -> None:
        if split not in self._splits and not split.isidentifier():
            raise AuroraError(
                f"The annotations name a split {split!r}; a split's name is letters, digits and _, such as train."
            )


_BLANK = "(blank)"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shown(names: str) -> str:
    names = json.loads(names)
    return names if isinstance(names, str) else " + ".join(names)

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
from dataclasses import dataclass, field
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
CREATE TABLE media (split TEXT, number INTEGER, key TEXT, names TEXT, extra TEXT, places INTEGER, kept INTEGER,
                    rejected INTEGER DEFAULT 0, PRIMARY KEY (split, number)) WITHOUT ROWID;
CREATE UNIQUE INDEX media_by_key ON media (split, key);
CREATE TABLE annotations (split TEXT, number INTEGER, first INTEGER, run TEXT,
                          PRIMARY KEY (split, number, first)) WITHOUT ROWID;
CREATE TABLE blanks (split TEXT, number INTEGER, place INTEGER, kind TEXT);
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
        self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
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
        found: dict[int, SpooledMedium] = {}
        for number, names, extra in self._database.execute(
            "SELECT number, names, extra FROM media WHERE split = ? AND number >= ? AND number < ? AND NOT rejected",
            span,
        ):
            names = json.loads(names)
            names = names if isinstance(names, str) else tuple(names)
            found[number] = SpooledMedium(number, names, {}, {}, json.loads(extra))
        for number, run in self._database.execute(
            "SELECT number, run FROM annotations WHERE split = ? AND number >= ? AND number < ? ORDER BY number, first",
            span,
        ):
            for kind, value, identity in json.loads(run):
                found[number].annotations.setdefault(kind, []).append(value)
                found[number].identities.setdefault(kind, []).append(identity)
        return list(found.values())

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


@dataclass
class _Current:
    """The medium that entries are of right now; `number` None: it is beyond the limit. Others follow rarely, since a
    medium's entries mostly stand together."""

    entry: Entry
    number: int | None
    places: int
    kept: int
    first: int
    run: list[tuple[str, Any, Any]] = field(default_factory=list)

    def is_of(self, other: Entry) -> bool:
        mine = self.entry
        return (mine.media, mine.split, mine.key, mine.extra) == (
            other.media,
            other.split,
            other.key,
            other.extra,
        )


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
        self._current: _Current | None = None

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
        counts = {
            split: (media, pairs)
            for split, media, pairs in run(
                "SELECT split, count(*) FILTER (WHERE NOT rejected), sum(kept) FROM media GROUP BY split"
            )
        }
        facts = {
            "identity": identity,
            "splits": self._splits,
            "counts": {split: counts.get(split, (0, 0)) for split in self._splits},
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
        told = set()
        for split, number, place, kind, names, kept in run(
            "SELECT split, number, place, kind, names, kept FROM blanks JOIN media USING (split, number) "
            "ORDER BY split, number, place"
        ).fetchall():
            if kept:
                reason = f"{kind[:-1]} {place} is blank; the medium keeps its other annotations"
            elif (split, number) not in told:
                reason = f"all {kind} are blank"
                told.add((split, number))
                run("UPDATE media SET rejected = 1 WHERE split = ? AND number = ?", (split, number))
            else:
                continue
            run("INSERT INTO rejects VALUES (?, ?, ?)", (split, _shown(names), reason))

    def _reject(self, reject: Reject) -> None:
        self._check_split(reject.split)
        # half of a surrogate pair is no text for SQLite
        row = [text.encode("utf-8", "replace").decode() for text in vars(reject).values()]
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
        current = self._current
        if current is None or not current.is_of(entry):
            self._leave()
            current = self._enter(entry)
        if current.number is None or entry.kind is None:
            return
        words = (
            entry.annotation if entry.kind == "captions" else entry.annotation.get(WORDS.get(entry.kind, ""))
        )
        if isinstance(words, str) and not pre_caption(words, 1):
            self._blanks = True
            row = (entry.split, current.number, current.places, entry.kind)
            self._database.execute("INSERT INTO blanks VALUES (?, ?, ?, ?)", row)
        else:
            current.run.append((entry.kind, entry.annotation, entry.annotation_id))
            current.kept += 1
        current.places += 1

    def _enter(self, entry: Entry) -> _Current:
        """Makes the entry's medium the current one: a new one, or one that was met before."""
        key, names = _text(entry.media if entry.key is None else entry.key), _text(entry.media)
        self._digest.update(_text([entry.split, key, names, entry.extra]).encode())
        row = self._database.execute(
            "SELECT number, names, extra, places, kept FROM media WHERE split = ? AND key = ?",
            (entry.split, key),
        ).fetchone()
        if row is None:
            self._check_split(entry.split)
            number = None if self._full(entry.split) else self._splits.setdefault(entry.split, 0)
            places = kept = 0
            if number is not None:
                self._splits[entry.split] += 1
                self._database.execute(
                    "INSERT INTO media (split, number, key, names, extra) VALUES (?, ?, ?, ?, ?)",
                    (entry.split, number, key, names, _text(entry.extra)),
                )
        else:
            number, known_names, known_extra, places, kept = row
            if known_names != names:
                raise AuroraError(
                    f"In the annotations, split {entry.split}, {json.loads(key)!r} is given to both "
                    f"{_shown(known_names)} and {_shown(names)}. One identity must mean one medium."
                )
            self._merge(entry.split, number, names, known_extra, entry.extra)
        self._current = _Current(entry, number, places, kept, places)
        return self._current

    def _leave(self) -> None:
        """Stores what the current medium has been given since it was entered."""
        current, self._current = self._current, None
        if current is None or current.number is None:
            return
        place = (current.entry.split, current.number)
        self._database.execute(
            "UPDATE media SET places = ?, kept = ? WHERE split = ? AND number = ?",
            (current.places, current.kept, *place),
        )
        if current.run:
            run = _text(current.run)
            self._digest.update(run.encode())
            self._database.execute(
                "INSERT INTO annotations VALUES (?, ?, ?, ?)", (*place, current.first, run)
            )

    def _merge(self, split: str, number: int, names: str, known: str, extra: dict[str, Any]) -> None:
        """Fields that a later entry of the medium adds. The same field with two values is an error."""
        merged = json.loads(known)
        for name, value in json.loads(_text(extra)).items():
            if merged.setdefault(name, value) != value:
                raise AuroraError(
                    f"In the annotations, split {split}, {_shown(names)} has two values of `{name}`: "
                    f"{merged[name]!r} and {value!r}."
                )
        text = _text(merged)
        if text != known:
            self._database.execute(
                "UPDATE media SET extra = ? WHERE split = ? AND number = ?", (text, split, number)
            )

    def _full(self, split: str) -> bool:
        return self._limit is not None and self._splits.get(split, 0) >= self._limit

    def _check_split(self, split: str) -> None:
        if split not in self._splits and not (split.isidentifier() and split.isascii()):
            raise AuroraError(
                f"The annotations name a split {split!r}; a split's name is letters, digits and _, such as train."
            )


# One encoder for all: json.dumps makes a new one for each call with options, which costs more than the encoding.
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _shown(names: str) -> str:
    names = json.loads(names)
    return names if isinstance(names, str) else " + ".join(names)

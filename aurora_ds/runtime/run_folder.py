"""A run's output folder: claimed by one run with one configuration, and by one process at a time.

run.json holds the configuration that the folder belongs to. Settings that decide only how fast, how often or how
visibly a run works may change when it is resumed; every other difference means another run, and is an error unless
it was accepted: run.json then keeps the earlier configuration too, for the checkpoints that were written with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import checkpoint, process_group
from aurora_ds.runtime.disk import write_synced

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
# Dotted names, or sections ending in a dot, that a resumed run may change without becoming another run.
FREE_TO_CHANGE = (
    "description",
    "kernels",
    "backbone.activation_checkpointing",
    "backbone.attention",
    "retrieval.k_test",
    "retrieval.beta",
    "retrieval.pairs_per_batch",
    "retrieval.image_cache_mb",
    "data.workers",
    "data.prefetch",
    "data.decoded_mb",
    "data.bad_samples",
    "data.max_bad_share",
    "data.slow_seconds",
    "train.max_steps",
    "train.zero_stage",
    "train.expert_parallel",
    "train.save_every",
    "train.save_queue",
    "train.keep_last",
    "train.evaluate_every",
    "train.moved_after",
    "train.collective_timeout_seconds",
    "train.unreachable_seconds",
    "evaluate.",
    "monitor.",
)

_locks: dict[str, BinaryIO] = {}


def claim_output(
    output: str | Path, config: dict[str, Any], resume: str = "auto", accept_changes: bool = False
) -> None:
    """Make `output` this run's folder, or fail on every rank. Collective; rank 0 looks and writes.

    `config` is the resolved configuration as plain JSON. Raises AuroraError when the folder belongs to a run with
    another configuration (the first differences are named) that is not accepted, when another live process writes into
    it, or when `resume` is `never` and it already holds checkpoints. The claim ends with the process, or with
    `release_output`.
    """
    process_group.first_rank(_claim, Path(output), config, resume, accept_changes)


def release_output(output: str | Path) -> None:
    """Let another process claim the folder. Does nothing where this process holds no claim."""
    lock = _locks.pop(str(Path(output).absolute()), None)
    if lock is not None:
        lock.close()


def own_checkpoint(output: str | Path) -> Callable[[Path, dict[str, Any]], None]:
    """`check(path, state)` raises AuroraError when a checkpoint in this folder was written by another run.

    The folder must be claimed. A state without a configuration passes.
    """
    known: list[dict[str, Any]] = []

    def check(path: Path, state: dict[str, Any]) -> None:
        if not known:
            record = json.loads((Path(output) / RUN_FILE).read_text(encoding="utf-8"))
            known.extend([record["config"], *record.get("before", [])])
        theirs = state.get("config")
        if theirs is None or any(not differences(theirs, config)[0] for config in known):
            return
        raise AuroraError(
            f"The checkpoint {path} was written by another run than the one of this folder; it differs in "
            f"{_first(differences(theirs, known[0])[0])}."
        )

    return check


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The settings that differ, in words: (those that decide a run's result, those that may change)."""
    # Through JSON both sides have lists for tuples and strings for keys.
    old, new = _flat(json.loads(json.dumps(theirs))), _flat(json.loads(json.dumps(ours)))
    deciding, free = [], []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key, _ABSENT) != new.get(key, _ABSENT):
            told = f"{key} ({_shown(old, key)} there, {_shown(new, key)} now)"
            (free if _is_free(key) else deciding).append(told)
    return deciding, free


def fingerprint(config: dict[str, Any]) -> str:
    """sha256 over the settings that decide a run's result, as canonical JSON."""
    deciding = {key: value for key, value in _flat(config).items() if not _is_free(key)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the disk refuses inside the block becomes an AuroraError about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AuroraError(
            f"{path} could not be written: {reason}. Make room or give a folder that can be written to, and run "
            "again; what was saved before is kept."
        ) from error


def replace_file(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises AuroraError when it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, text.encode())
        os.replace(temporary, path)


def replace_folder(path: str | Path, write: Callable[[Path], None]) -> None:
    """`write(folder)` fills a new folder, which then takes the place of `path`: a killed process or a full disk leaves
    the one that was there before. Raises AuroraError when it cannot be written."""
    path = Path(path)
    temporary, aside = path.with_name(f".writing-{path.name}"), path.with_name(f".replaced-{path.name}")
    try:
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _claim(output: Path, config: dict[str, Any], resume: str, accept_changes: bool) -> None:
    if output.exists() and not output.is_dir():
        raise AuroraError(f"The output {output} is a file. Give a folder; it is made when it does not exist.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        _lock(output)
    except OSError as error:
        raise AuroraError(f"The output folder {output} cannot be written to: {error.strerror}.") from error
    try:
        before = _compare(output, config, resume, accept_changes)
    except AuroraError:
        release_output(output)
        raise
    record = {"schema": 1, "fingerprint": fingerprint(config), "config": config}
    if before:
        record["before"] = before
    temporary = output / f".{RUN_FILE}"
    try:
        write_synced(temporary, json.dumps(record, indent=1).encode())
        os.replace(temporary, output / RUN_FILE)
    except OSError as error:
        raise AuroraError(f"{output / RUN_FILE} cannot be written: {error.strerror}.") from error


def _lock(output: Path) -> None:
    key = str(output.absolute())
    if key in _locks:
        return
    # Advisory locks die with their process, so a killed run never blocks the next one.
    lock = open(output / LOCK_FILE, "ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise AuroraError(
            f"Another process is writing into the output folder {output} right now. Wait for it, stop it, or give "
            "another --output."
        ) from error
    _locks[key] = lock


def _compare(output: Path, config: dict[str, Any], resume: str, accept_changes: bool) -> list[dict[str, Any]]:
    """The configurations that the run had before, newest first."""
    has_checkpoints = bool(list((output / checkpoint.FOLDER).glob("step-*")))
    if resume == "never" and has_checkpoints:
        raise AuroraError(
            f"The output folder {output} already holds checkpoints, and --resume never would start over beside "
            "them. Use --resume auto to go on, remove the folder, or give another --output."
        )
    if not (output / RUN_FILE).exists():
        if has_checkpoints:
            raise AuroraError(
                f"The output folder {output} holds checkpoints but no {RUN_FILE}, so what they belong to is "
                "unknown. Give another --output, and --resume with the path of the checkpoint to start from."
            )
        return []
    try:
        record = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
        theirs, before = record["config"], record.get("before", [])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AuroraError(
            f"{output / RUN_FILE} cannot be read ({error!r}), so whose output this is is unknown. Give another "
            "--output."
        ) from error
    different, _ = differences(theirs, config)
    if not different:
        return before
    if not accept_changes:
        raise AuroraError(
            f"The output folder {output} belongs to another run; it differs in {_first(different)}. Give another "
            "--output, or the same settings to go on with that run; --accept-changes goes on with the new ones."
        )
    return [theirs, *before]


def _first(different: list[str]) -> str:
    more = f" and {len(different) - 6} more" if len(different) > 6 else ""
    return f"{', '.join(different[:6])}{more}"


_ABSENT = object()


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"


def _is_free(key: str) -> bool:
    return any(key.startswith(name) if name.endswith(".") else key == name for name in FREE_TO_CHANGE)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

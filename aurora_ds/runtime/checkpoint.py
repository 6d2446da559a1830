"""Checkpoints of a run: small, whole, the same for every ZeRO stage and number of ranks, complete or not there.

`OUTPUT/checkpoints/step-00001234/` holds adapter_config.json, adapter_model.safetensors, optimizer.safetensors
(fp32 masters and moments), state.json and, when given, task_buffers.safetensors. Rank 0 writes them into a
temporary folder, syncs, re-opens and compares them, renames the folder, and replaces the text file `latest`; all
ranks then go on or stop together. state.json is written last and lists size and sha256 of the others: a folder
without it is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group, tensor_file
from aurora_ds.runtime.disk import explained, replace_text, sync_folder, write_synced
from aurora_ds.runtime.engine import Engine

FOLDER = "checkpoints"
LATEST = "latest"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_MODEL = "adapter_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TASK_BUFFERS = "task_buffers.safetensors"
STATE = "state.json"
SCHEMA = 1
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_TEMPORARY, _REPLACED = ".writing-", ".replaced-"

AdapterFiles = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]
OwnCheckpoint = Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds beside the engine's values: the caller's `state` and the task's buffers."""

    path: Path
    step: int
    state: dict[str, Any]
    task_buffers: dict[str, Tensor]
    versions: dict[str, str]


def save(
    output: str | Path,
    step: int,
    engine: Engine,
    adapter_files: AdapterFiles,
    state: dict[str, Any],
    task_buffers: dict[str, Tensor] | None = None,
    keep_last: int = 2,
) -> Path:
    """Write `OUTPUT/checkpoints/step-NNNNNNNN` and return it. Collective; rank 0 writes.

    `adapter_files` maps the whole fp32 trainables (name -> CPU tensor) to the adapter's tensors and JSON config;
    rank 0 calls it. `state` must be JSON; `task_buffers` are whole tensors (queues, momentum slots). Older
    checkpoints beyond `keep_last` are removed once the new one is safe. Raises AuroraError on every rank when
    writing fails (disk full, unreadable afterwards, values not finite); earlier checkpoints are then untouched.
    """
    values = engine.trainable_values()
    optimizer = engine.optimizer_state()
    path = Path(output) / FOLDER / f"step-{step:08d}"

    def write() -> None:
        tensors, adapter_config = adapter_files(values)
        files = {ADAPTER_MODEL: tensors, OPTIMIZER: optimizer}
        if task_buffers:
            files[TASK_BUFFERS] = task_buffers
        _write_folder(path, files, adapter_config, {"step": step, "state": state})
        _prune(path.parent, keep_last)

    process_group.first_rank(write)
    return path


def load(path: str | Path, engine: Engine) -> Loaded:
    """Put a checkpoint's masters, moments and step into `engine`; hand back the caller's state. Collective.

    Rank 0 reads, so only its machine needs the files. Raises AuroraError on every rank when the checkpoint is
    damaged or belongs to a task with other trainables.
    """
    record, optimizer, buffers = None, None, None

    def read() -> dict[str, Any]:
        nonlocal optimizer, buffers
        found = verify(path)
        optimizer = _read_tensors(Path(path) / OPTIMIZER)
        buffers = _read_tensors(Path(path) / TASK_BUFFERS) if TASK_BUFFERS in found["files"] else {}
        return found

    record = process_group.first_rank(read)
    optimizer = process_group.broadcast_tensors(optimizer)
    buffers = process_group.broadcast_tensors(buffers)
    engine.load_optimizer_state(optimizer)
    return Loaded(Path(path), int(record["step"]), record["state"], buffers, record["versions"])


def find(output: str | Path, mode: str = "auto", own: OwnCheckpoint | None = None) -> Path | None:
    """The checkpoint to resume from, the same on every rank. Collective.

    `mode`: `auto` the newest checkpoint of `output` that is whole, or None where there are none at all; damaged newer
    ones are passed over with a warning. `required` the newest; anything else is the path of a checkpoint or of another
    run's output folder; `never` gives None. `own(state)`: raises AuroraError when a checkpoint in `output` was written
    by another run, which counts as damage.

    Raises AuroraError when what was asked for is damaged or not there, and in `auto` when all there is is damaged.
    """
    if mode == "never":
        return None
    found = process_group.first_rank(_find, Path(output), mode, own)
    return None if found is None else Path(found)


def complete(output: str | Path, own: OwnCheckpoint | None = None) -> list[Path]:
    """The complete checkpoints of an output folder, oldest first. Damaged ones are passed over with a warning."""
    good = []
    for path in _step_folders(Path(output) / FOLDER):
        try:
            _verify_own(path, own)
            good.append(path)
        except AuroraError as error:
            warnings.warn(f"Passing over a checkpoint. {error}", stacklevel=2)
    return good


def latest(output: str | Path) -> Path | None:
    """The folder that the text file `latest` names, or None. Does not look inside."""
    folder = Path(output) / FOLDER
    steps = _step_folders(folder)  # puts back what a killed writer had set aside
    if not (folder / LATEST).is_file():
        return None
    named = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
    return named if named in steps else None


def verify(path: str | Path) -> dict[str, Any]:
    """Re-open every file of a checkpoint and compare it with state.json, which is returned.

    Raises AuroraError naming the file and what is wrong with it: missing, cut short, altered, or values not finite.
    """
    path = Path(path)
    try:
        record = json.loads((path / STATE).read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise AuroraError(
                f"The checkpoint {path} has schema {record['schema']}; this version reads schema {SCHEMA}. Use the "
                f"version of aurora_ds that wrote it ({record.get('versions', {}).get('aurora_ds', 'unknown')})."
            )
        expected = record["files"]
    except FileNotFoundError as error:
        raise AuroraError(
            f"{path} is not a complete checkpoint: it has no {STATE}. Give a folder named step-NNNNNNNN that a run "
            "has finished writing, or an output folder."
        ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AuroraError(f"The checkpoint {path} is damaged: {STATE} cannot be read ({error!r}).") from error
    for name, facts in expected.items():
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise AuroraError(
                f"The checkpoint {path} is damaged: {name} cannot be read ({error.strerror})."
            ) from error
        if len(content) != facts["bytes"]:
            raise AuroraError(
                f"The checkpoint {path} is damaged: {name} has {len(content)} bytes, {facts['bytes']} were written."
            )
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise AuroraError(
                f"The checkpoint {path} is damaged: the content of {name} has changed since it was written."
            )
    return record


def _verify_own(path: Path, own: OwnCheckpoint | None) -> None:
    record = verify(path)
    if own is not None:
        own(path, record["state"])


def _find(output: Path, mode: str, own: OwnCheckpoint | None) -> str | None:
    if mode not in ("auto", "required"):
        given = Path(mode)
        if (given / FOLDER).is_dir():
            output, mode, own = given, "required", None
        else:
            if not given.is_dir():
                raise AuroraError(
                    f"There is no checkpoint folder {given} to resume from. Give a step-NNNNNNNN folder, an output "
                    "folder, or one of auto, required, never."
                )
            verify(given)
            return str(given)
    there = _step_folders(output / FOLDER)
    if there and mode == "required":
        try:
            _verify_own(there[-1], own)
        except AuroraError as error:
            raise AuroraError(
                f"{error} Use --resume auto to go on from the newest whole checkpoint before it."
            ) from error
        return str(there[-1])
    good = complete(output, own) if there else []
    if good:
        return str(good[-1])
    if there:
        raise AuroraError(
            f"None of the {len(there)} checkpoints under {output / FOLDER} can be resumed from; what is wrong with "
            "each is above. Give another --output, or --resume with the path of a whole one; to start this run from "
            "the beginning, remove that folder."
        )
    if mode == "required":
        raise AuroraError(
            f"There is no complete checkpoint under {output / FOLDER}, and resuming was required. Check the output "
            "folder, or use --resume auto to start from the beginning."
        )
    return None


def _step_folders(folder: Path) -> list[Path]:
    """Step folders by step. A folder that was set aside when the writer died before the new one was in place
    comes back.
    """
    if not folder.is_dir():
        return []
    for aside in folder.glob(f"{_REPLACED}step-*"):
        original = folder / aside.name.removeprefix(_REPLACED)
        if not original.exists():
            os.replace(aside, original)
    steps = [
        (int(match[1]), path) for path in folder.iterdir() if (match := _STEP_FOLDER.fullmatch(path.name))
    ]
    return [path for _, path in sorted(steps)]


def _write_folder(
    path: Path, files: dict[str, dict[str, Tensor]], adapter_config: dict[str, Any], record: dict[str, Any]
) -> None:
    temporary = path.parent / f"{_TEMPORARY}{path.name}"
    contents: dict[str, list[bytes | memoryview]] = {}
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            sync_folder(path.parent.parent)  # or a power cut takes the folder with all that is in it
        _step_folders(path.parent)  # puts back what was set aside; the rest of it was replaced
        for kind in (_TEMPORARY, _REPLACED):
            for left_over in path.parent.glob(f"{kind}*"):
                shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir()
        files = {name: _on_cpu(tensors, name) for name, tensors in files.items()}
        contents[ADAPTER_CONFIG] = [json.dumps(adapter_config, indent=1, sort_keys=True).encode()]
        contents |= {name: tensor_file.pieces(tensors) for name, tensors in files.items()}
        for name, content in contents.items():
            write_synced(temporary / name, *content)
        for name, tensors in files.items():
            _compare(temporary / name, tensors)
        _compare_text(temporary / ADAPTER_CONFIG, contents[ADAPTER_CONFIG])
        facts = {
            name: {
                "bytes": (temporary / name).stat().st_size,
                "sha256": tensor_file.sha256(temporary / name),
            }
            for name in contents
        }
        record = {"schema": SCHEMA, **record, "files": facts, "versions": versions()}
        contents[STATE] = [json.dumps(record, indent=1).encode()]
        write_synced(temporary / STATE, *contents[STATE])
        _compare_text(temporary / STATE, contents[STATE])
        sync_folder(temporary)
        _put_in_place(temporary, path)
        replace_text(path.parent / LATEST, path.name)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # before the free space is measured
        size = sum(len(piece) for content in contents.values() for piece in content)
        raise explained(error, path, size) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename into place; an older folder of the same step is set aside first, and only then removed."""
    aside = path.parent / f"{_REPLACED}{path.name}"
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    os.replace(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: Path, keep_last: int) -> None:
    """Remove all but the `keep_last` checkpoints of the highest steps, never the one that `latest` names."""
    latest = (folder / LATEST).read_text(encoding="utf-8").strip()
    for path in _step_folders(folder)[:-keep_last]:
        if path.name != latest:
            # renamed first: a kill in the middle leaves something temporary, not a checkpoint with files missing
            going = folder / f"{_TEMPORARY}{path.name}"
            shutil.rmtree(going, ignore_errors=True)
            os.replace(path, going)
            shutil.rmtree(going, ignore_errors=True)


def _on_cpu(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the file `name`, contiguous. Raises AuroraError when a value is not finite."""
    whole = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    for key in tensor_file.not_finite(whole):
        raise AuroraError(
            f"{key} in {name} holds values that are not finite, so no checkpoint was written; the last good "
            "one is kept. Lower train.lr, set train.clip_norm, or resume from the last good checkpoint with "
            "another precision."
        )
    return whole


def _compare(path: Path, tensors: dict[str, Tensor]) -> None:
    """Open a file as a resumed run would, and require the very tensors that were to be saved."""
    try:
        wrong = tensor_file.differences(path, tensors)
    except SafetensorError as error:
        raise AuroraError(f"The check after saving failed: {path.name} cannot be read ({error}).") from error
    if wrong:
        raise AuroraError(
            f"The check after saving failed: {', '.join(wrong)} in {path.name} is not what was saved."
        )


def _compare_text(path: Path, content: list[bytes]) -> None:
    if path.read_bytes() != b"".join(content):
        raise AuroraError(f"The check after saving failed: {path.name} is not what was saved.")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return tensors_from_bytes(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AuroraError(f"{path} cannot be read as safetensors: {error}.") from error


@cache
def versions() -> dict[str, str]:
    """Python and the packages that a run's numbers pass through, as installed."""
    packages = (
        "aurora_ds",
        "torch",
        "deepspeed",
        "safetensors",
        "transformers",
        "timm",
        "numpy",
        "pillow",
        "av",
    )
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found

"""What changed since a checkpoint was written: settings and versions. What the numbers depend on is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError
from aurora_ds.runtime.run_folder import differences

# Reading and writing files as they are: another version of these gives the same numbers.
_WITHOUT_EFFECT = ("python", "safetensors")


def check(
    path: Path,
    theirs: tuple[dict[str, Any] | None, dict[str, str]],
    ours: tuple[dict[str, Any], dict[str, str]],
    accepted: bool,
) -> str:
    """Compare (configuration, versions) of the checkpoint `path` with those of now. Returns what changed, in words.

    Raises AuroraError when something changed that the numbers depend on, unless it was `accepted`. A part after `+` in
    a version (`+cpu`) says how a package was built and is told, but not refused.
    """
    deciding, free = differences(theirs[0], ours[0]) if theirs[0] else ([], [])
    for name in sorted(theirs[1].keys() & ours[1].keys()):
        there, now = theirs[1][name], ours[1][name]
        if there != now:
            told = f"{name} ({there} there, {now} now)"
            same = name in _WITHOUT_EFFECT or there.partition("+")[0] == now.partition("+")[0]
            (free if same else deciding).append(told)
    if deciding and not accepted:
        raise AuroraError(
            f"Since the checkpoint {path} was written, changed what the numbers depend on: {', '.join(deciding)}. Go "
            "back to what it was written with, or add --accept-changes to go on with what is there now: the run is "
            "then no longer the one that an uninterrupted run would have been."
        )
    told = []
    if deciding:
        told.append(f"accepted, though the numbers depend on it: {', '.join(deciding)}")
    if free:
        told.append(f"without effect on the numbers: {', '.join(free)}")
    return "; ".join(told)

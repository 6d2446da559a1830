"""The file of a medium under the source's media folders. A folder is listed once per process, and only for `stem.*`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from os.path import basename, dirname, isfile, join
from pathlib import Path

from aurora_ds.data.reader import IMAGE_TYPES, VIDEO_TYPES

OUTSIDE = "the path leads out of the source folder"
# Further extensions under which files lie on disks; a shard's member is named by its content.
IMAGE_NAMES, VIDEO_NAMES = (*IMAGE_TYPES, "jpeg"), (*VIDEO_TYPES, "3g2", "mts", "m2ts", "mpeg")


class MediaFiles:
    """Finds files by the names that annotations give them. `candidates`: the family's, see sources.py."""

    def __init__(self, folders: Sequence[Path], candidates: Callable[[str], list[str]], video: bool):
        # Plain strings: this runs for every medium, and Path objects take longer than the look at the disk.
        self._folders, self._candidates = [str(folder) for folder in folders], candidates
        self._types = VIDEO_NAMES if video else IMAGE_NAMES
        self._missing = "there is no such video file" if video else "there is no such image file"
        self._stems: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> Path | str:
        """The file, or in words why there is none. The first candidate that exists in any folder counts."""
        candidates = self._candidates(name)
        if any(_leads_out(each) for each in (name, *candidates)):
            return OUTSIDE
        for candidate in candidates:
            for folder in self._folders:
                path = join(folder, candidate)
                if candidate.endswith(".*"):
                    found = self._of_stem(dirname(path), basename(path)[:-2])
                    if found is not None:
                        return found
                elif isfile(path):
                    return Path(path)
        return self._missing

    def _of_stem(self, folder: str, stem: str) -> Path | None:
        if folder not in self._stems:
            self._stems[folder] = self._list(folder)
        name = self._stems[folder].get(stem)
        return None if name is None else Path(folder, name)

    def _list(self, folder: str) -> dict[str, str]:
        """stem -> file. `a.mov.mp4` has the stems a.mov and a; of two files of one stem that of fewer dots counts,
        then the first by name."""
        found: dict[str, str] = {}
        if not os.path.isdir(folder):
            return found
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
        for name in sorted(names, key=lambda name: (name.count("."), name)):
            stem = name
            while stem.rpartition(".")[2].lower() in self._types:
                stem = stem.rpartition(".")[0]
                found.setdefault(stem, name)
        return found


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")

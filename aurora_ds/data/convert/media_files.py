"""The file of a medium under the source's media folders. A folder is listed once per process, and only for `stem.*`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from aurora_ds.data.reader import IMAGE_TYPES, VIDEO_TYPES

OUTSIDE = "the path leads out of the source folder"
# Further extensions under which files lie on disks; a shard's member is named by its content.
IMAGE_NAMES, VIDEO_NAMES = (*IMAGE_TYPES, "jpeg"), (*VIDEO_TYPES, "3g2", "mts", "m2ts", "mpeg")


class MediaFiles:
    """Finds files by the names that annotations give them. `candidates`: the family's, see sources.py."""

    def __init__(self, folders: Sequence[Path], candidates: Callable[[str], list[str]], video: bool):
        self._folders, self._candidates = folders, candidates
        self._types = VIDEO_NAMES if video else IMAGE_NAMES
        self._missing = "there is no such video file" if video else "there is no such image file"
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path | str:
        """The file, or in words why there is none. The first candidate that exists in any folder counts."""
        for candidate in [name, *self._candidates(name)]:
            path = PurePosixPath(candidate)
            if path.is_absolute() or ".." in path.parts:
                return OUTSIDE
        for candidate in self._candidates(name):
            for folder in self._folders:
                path = folder / candidate
                if path.name.endswith(".*"):
                    found = self._of_stem(path.parent, path.name[:-2])
                    if found is not None:
                        return found
                elif path.is_file():
                    return path
        return self._missing

    def _of_stem(self, folder: Path, stem: str) -> Path | None:
        if folder not in self._stems:
            self._stems[folder] = self._list(folder)
        names = self._stems[folder].get(stem)
        return folder / names[0] if names else None

    def _list(self, folder: Path) -> dict[str, list[str]]:
        """stem -> files. `a.mov.mp4` stands under a.mov and, after files of fewer extensions, under a."""
        found: dict[str, list[str]] = {}
        if not folder.is_dir():
            return found
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        for name in sorted(names, key=lambda name: name.count(".")):
            stem = name
            while stem.rpartition(".")[2].lower() in self._types:
                stem = stem.rpartition(".")[0]
                found.setdefault(stem, []).append(name)
        return found

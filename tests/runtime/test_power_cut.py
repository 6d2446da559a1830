"""A power cut before any file operation of a checkpoint: what was there before is there, or the new one whole.

Three disks are imagined. `all written`: every operation before the cut reached the disk, as after a SIGKILL. `torn`:
files that nobody had waited for (fsync) are cut in half. `names lost`: everything since the last wait for a folder is
undone.
"""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import checkpoint

LOSSES = ("all written", "torn", "names lost")


class PowerCut(BaseException):
    """Not an Exception: nothing in the code may catch it and tidy up."""


class FailingDisk:
    """Counts file operations below `root`; before number `cut_before` the power goes, and nothing works any more."""

    def __init__(self, root: Path, cut_before: int, loss: str) -> None:
        self.root, self.cut_before, self.loss = root, cut_before, loss
        self.count, self.off, self.journal = 0, False, []
        self._unsynced: set[Path] = set()
        self._safe = root.parent / "safe"
        self._aside = False
        self._snapshot()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        plain = builtins.open

        def opened(file, mode="r", *arguments, **keywords):
            if self._aside or "w" not in mode or not str(file).startswith(str(self.root)):
                return plain(file, mode, *arguments, **keywords)
            self._operation(f"write {Path(file).name}")
            self._unsynced.add(Path(file))
            return plain(file, mode, *arguments, **keywords)

        monkeypatch.setattr(builtins, "open", opened)

    def _counted(self, name: str, original: Callable) -> Callable:
        def operation(target, *arguments, **keywords):
            if self._aside:
                return original(target, *arguments, **keywords)
            path = Path(os.readlink(f"/proc/self/fd/{target}")) if name == "fsync" else Path(target)
            self._operation(f"{name} {path.name}")
            if name != "fsync":
                result = original(target, *arguments, **keywords)
                if name == "replace":
                    self._moved(path, Path(arguments[0]))
                return result
            # only noted: waiting for the real disk would take most of the test's time
            if path.is_dir():
                self._snapshot()
            else:
                self._unsynced.discard(path)
            return None

        return operation

    def _moved(self, old: Path, new: Path) -> None:
        self._unsynced = {
            new / path.relative_to(old) if path.is_relative_to(old) else path for path in self._unsynced
        }

    def _operation(self, what: str) -> None:
        if self.off:
            raise PowerCut
        self.count += 1
        self.journal.append(what)
        if self.count == self.cut_before:
            self.off = self._aside = True
            if self.loss == "torn":
                for path in self._unsynced:
                    if path.exists():
                        os.truncate(path, path.stat().st_size // 2)
            elif self.loss == "names lost":
                shutil.rmtree(self.root)
                shutil.copytree(self._safe, self.root)
            self._aside = False
            raise PowerCut

    def _snapshot(self) -> None:
        self._aside = True
        shutil.rmtree(self._safe, ignore_errors=True)
        shutil.copytree(self.root, self._safe)
        self._aside = False


def save(output: Path, step: int, fill: float, keep_last: int = 1) -> None:
    queue = {"queue": torch.full((8,), fill)}
    checkpoint.save(
        output, step, FakeEngine(fill, (50,)), lambda values: (values, {}), {}, queue, keep_last=keep_last
    )


# (steps saved before, step saved when the power goes)
SITUATIONS = {
    "the first": ([], 1),
    "another, and the oldest goes": ([1, 2], 3),
    "the same step again": ([1, 2], 2),
}


def cut_everywhere(output: Path, before: list[int], step: int, loss: str) -> list[str]:
    """Save with a cut before operation 1, 2, 3 … until one save ends undisturbed. Returns its operations."""
    number, start = 0, output.parent / "start"
    start.mkdir()
    for each in before:
        save(start, each, float(each), keep_last=2)
    while True:
        number += 1
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(start, output)
        disk = FailingDisk(output, number, loss)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            try:
                save(output, step, 10.0)
            except PowerCut:
                pass
            else:
                assert disk.count < number
                return disk.journal
        assert_resumable(output, before, step, f"cut before {disk.journal[-1]} ({number}), {loss}")


def assert_resumable(output: Path, before: list[int], step: int, where: str) -> None:
    named = checkpoint.latest(output)
    if before:
        assert named is not None, where
    if named is not None:
        checkpoint.verify(named)
    found = checkpoint.find(output, "auto")  # a damaged one would warn, and warnings are errors here
    assert found is not None or not before, where
    if found is not None:
        engine = FakeEngine(0.0, (50,))
        loaded = checkpoint.load(found, engine)
        fill = engine.state["p.master"][0].item()
        assert loaded.task_buffers["queue"][0].item() == fill, where
        assert loaded.step >= max(before, default=step), where
        assert fill == 10.0 if loaded.step == step and step not in before else fill in (loaded.step, 10.0), (
            where
        )
    save(output, 4, 4.0)
    left = {path.name for path in (output / "checkpoints").iterdir()}
    assert left == {"latest", "step-00000004"}, where


@pytest.fixture(autouse=True)
def a_quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_power_goes_before_every_operation_of_a_save(situation: str, loss: str, tmp_path: Path) -> None:
    before, step = SITUATIONS[situation]
    journal = cut_everywhere(tmp_path / "run", before, step, loss)
    saved = f"step-{step:08d}"
    assert "replace .writing-" + saved in journal and "replace .writing-latest" in journal
    assert journal.index("write state.json") > journal.index("fsync optimizer.safetensors")
    assert journal.index("replace .writing-" + saved) > journal.index("fsync state.json")


@pytest.mark.filterwarnings("ignore:Passing over")
def test_the_imagined_disk_shows_a_writer_that_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fsync the same test must fail."""

    def write(path: Path, *content: bytes) -> None:
        with open(path, "wb") as file:
            file.writelines(content)

    monkeypatch.setattr(checkpoint, "write_synced", write)
    with pytest.raises(AuroraError, match="damaged"):
        cut_everywhere(tmp_path / "run", [1, 2], 3, "torn")

"""A disk that becomes read-only under a run, or was so before: the last checkpoint stays, and the error says it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_run import wait_for

from aurora_ds.runtime import checkpoint


@pytest.fixture
def made_read_only() -> Iterator[Callable[[Path], None]]:
    """`made_read_only(folder)`: whoever opens a file there from now on finds a read-only file system."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a read-only file system needs root")
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True)
        if bound.returncode:
            pytest.skip(f"mounting is not allowed here: {bound.stderr.strip()}")
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_it_becomes_so_while_the_run_goes_on(
    made_read_only: Callable, launch: Callable, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    # steps enough for any machine
    run = launch(
        ["-m", "aurora_ds.train", recipe, "--output", output, "train.epochs=1000", "train.keep_last=1000"]
    )
    wait_for(lambda: (output / "checkpoints" / "latest").is_file(), run)
    made_read_only(output / "checkpoints")
    assert run.wait(240) == [2], run.output()
    last = checkpoint.find(output, "required")
    assert last == checkpoint.latest(output)
    said = run.output()
    assert "read-only" in said and "Earlier checkpoints are kept" in said and "Traceback" not in said
    assert str(output / "checkpoints") in said


def test_it_was_so_before(made_read_only: Callable, train: Callable, recipe: Path, tmp_path: Path) -> None:
    from aurora_ds.errors import AuroraError
    from aurora_ds.recipe import load_config
    from aurora_ds.train import run

    output = tmp_path / "run"
    train(output, "train.max_steps=2")
    made_read_only(output)
    with pytest.raises(AuroraError, match="Read-only file system|read-only") as refused:
        run(load_config(str(recipe), ["train.max_steps=4"]), output)
    assert str(output) in str(refused.value)
    assert checkpoint.find(output, "required").name == "step-00000002"

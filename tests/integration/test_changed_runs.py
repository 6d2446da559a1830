"""A run that comes back to other settings, other versions, or another run's checkpoint: told, refused, or accepted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read
from aurora_ds.train import run


@pytest.fixture(scope="module")
def begun(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints at 2 and 4."""
    output = tmp_path_factory.mktemp("begun") / "run"
    train(output, "train.max_steps=4")
    return output


@pytest.fixture
def output(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def steps(output: Path) -> list[int]:
    return [line["step"] for line in read(output / FILE) if "train/loss" in line]


def test_another_version_is_refused_until_it_is_accepted(
    output: Path, recipe: Path, capsys: pytest.CaptureFixture
) -> None:
    state = checkpoint.find(output, "required") / checkpoint.STATE
    record = json.loads(state.read_text())
    record["versions"] |= {"torch": "1.13.0", "python": "3.8.1"}
    state.write_text(json.dumps(record))
    config = load_config(str(recipe), ["train.max_steps=5"])
    with pytest.raises(AuroraError, match=r"torch \(1\.13\.0 there, .*--accept-changes") as refused:
        run(config, output)
    assert "python" not in str(refused.value) and steps(output) == [1, 2, 3, 4]
    run(config, output, accept_changes=True)
    said = capsys.readouterr().out
    assert "accepted, though the numbers depend on it: torch (1.13.0 there" in said
    assert "train.max_steps (4 there, 5 now), python (3.8.1 there" in said.partition("without effect")[2]
    assert steps(output) == [1, 2, 3, 4, 5]


def test_other_settings_are_accepted_when_asked_and_then_are_the_runs(
    output: Path, recipe: Path, capsys: pytest.CaptureFixture
) -> None:
    config = load_config(str(recipe), ["train.max_steps=5", "train.lr=5e-4"])
    run(config, output, accept_changes=True)
    assert "depend on it: train.lr (0.001 there, 0.0005 now)" in capsys.readouterr().out
    run(load_config(str(recipe), ["train.max_steps=6", "train.lr=5e-4"]), output)
    assert steps(output) == [1, 2, 3, 4, 5, 6]


def test_a_named_checkpoint_of_other_settings_is_refused(output: Path, recipe: Path, tmp_path: Path) -> None:
    config = load_config(str(recipe), ["train.weight_decay=0.5"])
    with pytest.raises(AuroraError, match=r"train\.weight_decay \(0\.05 there, 0\.5 now\)"):
        run(config, tmp_path / "other", resume=str(output))


def test_another_runs_checkpoint_in_the_folder_is_passed_over(
    output: Path, train, recipe: Path, tmp_path: Path
) -> None:
    train(tmp_path / "other", "train.max_steps=5", "train.lr=1e-4")
    theirs = checkpoint.find(tmp_path / "other", "required")
    shutil.copytree(theirs, output / "checkpoints" / theirs.name)
    with pytest.raises(
        AuroraError, match=r"written by another run .* train\.lr \(0\.0001 there, 0\.001 now\)"
    ):
        run(load_config(str(recipe), ["train.max_steps=6"]), output, resume="required")
    with pytest.warns(UserWarning, match="another run"):
        train(output, "train.max_steps=6")
    assert steps(output) == [1, 2, 3, 4, 5, 6]

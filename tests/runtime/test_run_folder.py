"""An output folder belongs to one configuration, and to one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.run_folder import (
    claim_output,
    fingerprint,
    own_checkpoint,
    release_output,
    replace_folder,
)


def config(**changes) -> dict:
    settings = RunConfig().model_dump()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            settings[section][name] = value
        else:
            settings[section] = value
    return settings


def claim(output: Path, resume: str = "auto", accept: bool = False, **changes) -> None:
    try:
        claim_output(output, config(**changes), resume, accept)
    finally:
        release_output(output)


def test_the_same_configuration_may_come_back(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    claim(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["seed"] == 42 and record["fingerprint"] == fingerprint(config())


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(AuroraError, match=r"another run; it differs in seed \(42 there, 7 now\), train.lr"):
        claim(tmp_path, seed=7, train__lr=0.5)
    assert json.loads((tmp_path / "run.json").read_text())["config"]["seed"] == 42


def test_settings_that_do_not_decide_the_result_may_change(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path, train__zero_stage=3, train__keep_last=9, data__workers=7, monitor__log_every=1)


def test_accepted_changes_become_the_runs_and_earlier_checkpoints_stay_its_own(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path, accept=True, seed=7)
    claim(tmp_path, seed=7)
    own = own_checkpoint(tmp_path)
    for changes in ({}, {"seed": 7}, {"seed": 7, "train__keep_last": 5}):
        own(tmp_path / "step-00000001", {"config": config(**changes)})
    with pytest.raises(AuroraError, match=r"step-00000002 was .* another run .* in seed \(8 there, 7 now\)"):
        own(tmp_path / "step-00000002", {"config": config(seed=8)})


def test_never_refuses_a_folder_with_checkpoints(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(AuroraError, match="already holds checkpoints.*--resume auto"):
        claim(tmp_path, "never")
    claim(tmp_path, "auto")


def test_checkpoints_of_unknown_origin_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(AuroraError, match="holds checkpoints but no run.json"):
        claim(tmp_path)


def test_a_broken_run_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(AuroraError, match="run.json cannot be read"):
        claim(tmp_path)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(AuroraError, match="is a file"):
        claim(tmp_path / "run")


def test_two_processes_cannot_share_a_folder_and_a_dead_one_blocks_nobody(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'ab'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run.lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(AuroraError, match="Another process is writing"):
            claim(tmp_path)
    finally:
        other.kill()
        other.wait()
    claim(tmp_path)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(content: str, fails: bool = False):
        def write(folder: Path) -> None:
            (folder / "one").write_text(content)
            if fails:
                raise OSError(28, "No space left on device")
            (folder / "two").write_text(content)

        return write

    replace_folder(tmp_path / "adapter", fill("first"))
    with pytest.raises(AuroraError, match="adapter could not be written: No space left"):
        replace_folder(tmp_path / "adapter", fill("second", fails=True))
    assert {path.name: path.read_text() for path in (tmp_path / "adapter").iterdir()} == {
        "one": "first",
        "two": "first",
    }
    replace_folder(tmp_path / "adapter", fill("third"))
    assert (tmp_path / "adapter" / "two").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_accumulation_is_part_of_what_a_run_is() -> None:
    """The contrastive loss sees one micro-batch at a time."""
    first, second = ({"train": {"accumulation": number, "zero_stage": number}} for number in (1, 2))
    assert fingerprint(first) != fingerprint(second)

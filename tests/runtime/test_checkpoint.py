"""Checkpoints: whole, checked, replaced atomically, and the last good one survives whatever goes wrong with the "
"next."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine
from toy_task import global_batch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import checkpoint, tensor_file


def adapter_files(values: dict) -> tuple[dict, dict]:
    return values, {"rank": 32}


def save(output: Path, step: int, engine: FakeEngine | None = None, **keywords) -> Path:
    return checkpoint.save(
        output, step, engine or FakeEngine(step), adapter_files, {"epoch": step}, **keywords
    )


def steps(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir() if path.is_dir())


def test_a_checkpoint_holds_the_named_files_and_comes_back_whole(tmp_path: Path) -> None:
    buffers = {"image_queue": torch.arange(6.0).reshape(2, 3)}
    path = save(tmp_path, 12, task_buffers=buffers)
    assert path == tmp_path / "checkpoints" / "step-00000012"
    assert sorted(file.name for file in path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json",
        "task_buffers.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000012\n"
    engine = FakeEngine(0.0)
    loaded = checkpoint.load(path, engine)
    assert loaded.step == 12 and loaded.state == {"epoch": 12}
    assert torch.equal(engine.state["p.master"], torch.full((3, 4), 12.0))
    assert torch.equal(loaded.task_buffers["image_queue"], buffers["image_queue"])


def test_a_real_engine_continues_from_its_checkpoint_bit_for_bit(
    tmp_path: Path, make_engine: Callable
) -> None:
    def train(engine, first: int, last: int) -> None:
        for step in range(first, last):
            engine.backward_and_step(engine.forward(global_batch(step))["loss"])

    whole = make_engine(0)
    train(whole, 0, 2)
    path = checkpoint.save(tmp_path, 2, whole, adapter_files, {})
    train(whole, 2, 4)
    resumed = make_engine(0)
    assert checkpoint.load(path, resumed).step == resumed.step == 2
    train(resumed, 2, 4)
    wanted, found = whole.optimizer_state(), resumed.optimizer_state()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert steps(tmp_path) == ["step-00000003", "step-00000004"]


def test_pruning_never_removes_the_newest_even_when_higher_steps_are_there(tmp_path: Path) -> None:
    save(tmp_path, 8)
    save(tmp_path, 9)
    save(tmp_path, 3, keep_last=1)
    assert "step-00000003" in steps(tmp_path)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, FakeEngine(1.0))
    path = save(tmp_path, 5, FakeEngine(2.0))
    engine = FakeEngine()
    checkpoint.load(path, engine)
    assert engine.state["p.master"][0, 0] == 2.0 and steps(tmp_path) == ["step-00000005"]


def test_a_kill_between_setting_aside_and_replacing_loses_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    os.replace(path, path.parent / f".replaced-{path.name}")
    assert checkpoint.find(tmp_path, "auto") == path


def test_a_kill_while_writing_leaves_the_last_good_one_and_the_next_save_cleans_up(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    torn = tmp_path / "checkpoints" / ".writing-step-00000002"
    torn.mkdir()
    (torn / "optimizer.safetensors").write_bytes(b"half")
    assert checkpoint.find(tmp_path, "auto") == good
    save(tmp_path, 3)
    assert not torn.exists()


def test_killed_at_any_moment_of_saving_a_whole_checkpoint_is_there(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    engine = FakeEngine()
    engine.state["p.exp_avg"] = torch.ones(200_000)
    first = 2
    for wait in (0.02, 0.05, 0.09, 0.14, 0.2):
        child = os.fork()
        if child == 0:
            for step in range(first, first + 10_000):
                save(tmp_path, step, engine, keep_last=1)
            os._exit(0)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = checkpoint.find(tmp_path, "required")
        assert found.name >= good.name
        good, first = found, int(found.name.removeprefix("step-")) + 1


def damage_cut(path: Path) -> None:
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def damage_flip(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_missing(path: Path) -> None:
    (path / "adapter_config.json").unlink()


def damage_state(path: Path) -> None:
    (path / "state.json").write_text('{"schema": 1, "files": ')


def damage_no_state(path: Path) -> None:
    (path / "state.json").unlink()


DAMAGES = [
    (damage_cut, "optimizer.safetensors has .* bytes"),
    (damage_flip, "content of adapter_model.safetensors has changed"),
    (damage_missing, "adapter_config.json cannot be read"),
    (damage_state, "state.json cannot be read"),
    (damage_no_state, "no state.json"),
]


@pytest.mark.parametrize("damage, text", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable, text: str
) -> None:
    good = save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with pytest.warns(UserWarning, match=text):
        assert checkpoint.find(tmp_path, "auto") == good


@pytest.mark.parametrize("damage, text", DAMAGES)
def test_a_damaged_checkpoint_named_by_path_is_an_error(tmp_path: Path, damage: Callable, text: str) -> None:
    path = save(tmp_path, 2)
    damage(path)
    with pytest.raises(AuroraError, match=text):
        checkpoint.find(tmp_path, str(path))
    with pytest.raises(AuroraError, match=text):
        checkpoint.load(path, FakeEngine())


def test_required_refuses_a_damaged_newest_one_and_says_what_goes_on(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damage_flip(save(tmp_path, 2))
    with pytest.raises(
        AuroraError, match="step-00000002 is damaged.*--resume auto to go on from the newest whole"
    ):
        checkpoint.find(tmp_path, "required")


def test_auto_does_not_start_over_when_all_there_is_is_damaged(tmp_path: Path) -> None:
    damage_flip(save(tmp_path, 1))
    with (
        pytest.warns(UserWarning, match="has changed since"),
        pytest.raises(AuroraError, match="None of the 1 checkpoints"),
    ):
        checkpoint.find(tmp_path, "auto")


def test_a_checkpoint_of_another_run_counts_as_damaged(tmp_path: Path) -> None:
    def own(path: Path, state: dict) -> None:
        if state["epoch"] != 1:
            raise AuroraError(f"{path} is another run's.")

    good = save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.warns(UserWarning, match="step-00000002 is another run's"):
        assert checkpoint.find(tmp_path, "auto", own) == good
    with pytest.raises(AuroraError, match="step-00000002 is another run's"):
        checkpoint.find(tmp_path, "required", own)


def test_auto_finds_nothing_in_a_new_folder_and_never_looks_nowhere(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path / "new", "auto") is None
    save(tmp_path, 1)
    assert checkpoint.find(tmp_path, "never") is None


def test_required_fails_when_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="no complete checkpoint.*--resume auto"):
        checkpoint.find(tmp_path, "required")


def test_a_path_may_be_a_checkpoint_or_another_output_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "other", 4)
    assert checkpoint.find(tmp_path / "mine", str(path)) == path
    assert checkpoint.find(tmp_path / "mine", str(tmp_path / "other")) == path
    with pytest.raises(AuroraError, match="no checkpoint folder"):
        checkpoint.find(tmp_path / "mine", str(tmp_path / "nowhere"))


def test_a_newer_schema_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | {"schema": 2}))
    with pytest.raises(AuroraError, match="schema 2; this version reads schema 1"):
        checkpoint.verify(path)


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    with pytest.raises(AuroraError, match="p.master in optimizer.safetensors|p in adapter_model.safetensors"):
        save(tmp_path, 2, FakeEngine(float("nan")))
    assert checkpoint.find(tmp_path, "required") == good and steps(tmp_path) == [good.name]


def test_a_full_disk_while_saving_keeps_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path, 1)
    written = checkpoint.write_synced

    def full(path: Path, *content: bytes) -> None:
        if path.name == "optimizer.safetensors":
            written(path, *content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, *content)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(AuroraError, match="disk is full.*Earlier checkpoints are kept"):
        save(tmp_path, 2)
    assert steps(tmp_path) == [good.name] and checkpoint.find(tmp_path, "required") == good
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == good.name


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_the_last_good_one(tiny_disk: Path) -> None:
    good = save(tiny_disk, 1)
    big = FakeEngine()
    big.state["p.exp_avg"] = torch.ones(300_000)
    with pytest.raises(AuroraError, match=r"disk is full \(1\.0 MiB are free\), and .* of 1\.1 MiB"):
        save(tiny_disk, 2, big)
    assert steps(tiny_disk) == [good.name] and checkpoint.find(tiny_disk, "required") == good
    save(tiny_disk, 3)


def test_a_disk_that_became_read_only_keeps_the_last_good_one(tiny_disk: Path) -> None:
    good = save(tiny_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(AuroraError, match="file system is read-only.*Earlier checkpoints are kept"):
        save(tiny_disk, 2)
    assert checkpoint.find(tiny_disk, "required") == good


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    big = FakeEngine()
    big.state["p.exp_avg"] = torch.ones(300_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    try:
        with pytest.raises(AuroraError, match=r"ulimit -f\) is too small, and .* of 1\.1 MiB"):
            save(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [good.name] and checkpoint.find(tmp_path, "required") == good


def test_an_output_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(AuroraError, match="could not be written.*output folder can be written to"):
        save(tmp_path, 1)


def test_what_was_written_is_compared_with_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tensor_file.pieces
    monkeypatch.setattr(
        tensor_file, "pieces", lambda tensors: original({k: v.reshape(-1)[:0] for k, v in tensors.items()})
    )
    with pytest.raises(AuroraError, match="check after saving failed: p in adapter_model.safetensors"):
        save(tmp_path, 1)
    assert steps(tmp_path) == []


def test_a_checkpoint_at_the_recipe_size_is_small(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.state = {f"p.{part}": torch.randn(324_098) for part in ("master", "exp_avg", "exp_avg_sq")}
    path = save(tmp_path, 1, engine)
    assert sum(file.stat().st_size for file in path.iterdir()) < 12 * 2**20

"""Conversions that are killed, run twice, or run at once."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_data import write_recipe, write_source

from aurora_ds.data.convert import convert, writer
from aurora_ds.data.convert.entries import Entry
from aurora_ds.data.convert.lock import folder_lock
from aurora_ds.data.convert.pool import run_in_order
from aurora_ds.data.convert.progress import Counter
from aurora_ds.data.convert.spool import open_spool
from aurora_ds.data.manifest import MANIFEST_NAME, Manifest
from aurora_ds.data.shardcheck import verify_shards
from aurora_ds.errors import AuroraError

# A process waits as NAP says before each image or entry, for good if it likes: the test decides when it is killed.
WAITING = """
import sys, time
from aurora_ds.data.convert import convert, spool, writer
place, name = PLACE
plain, seen = getattr(place, name), [0]
def slow(*given):
    seen[0] += 1
    time.sleep(NAP)
    return plain(*given)
setattr(place, name, slow)
convert(*sys.argv[1:4], workers=int(sys.argv[4]))
"""
IMAGES = WAITING.replace("PLACE", "writer, 'members'")
SLOW = IMAGES.replace("NAP", "0.01")
STOPPED = IMAGES.replace("NAP", "600 if seen[0] > 12 else 0")  # with 5 in a shard: after two of each process
STOPPED_READING = WAITING.replace("PLACE", "spool._Writing, '_add'").replace(
    "NAP", "600 if seen[0] > 5 else 0"
)


def whole(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def start(source: Path, recipe: Path, output: Path, workers: int, program: str = STOPPED) -> subprocess.Popen:
    command = [sys.executable, "-c", program, str(recipe), str(source), str(output), str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_conversion_leaves_whole_shards_and_continues(tmp_path: Path, workers: int) -> None:
    source, recipe = write_source(tmp_path / "source", 40, 5), write_recipe(tmp_path / "small.yaml", 5)
    expected = tmp_path / "expected"
    convert(recipe, source, expected)
    output = tmp_path / "out"
    process = start(source, recipe, output, workers)
    wait_for(lambda: len(list(output.glob("*.tar"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # workers outlive their parent by moments only
    wait_for(lambda: not _group_members(process.pid))
    done = whole(output)
    assert 2 <= len(done) < 9 and not (output / MANIFEST_NAME).exists()
    assert all(content == (expected / name).read_bytes() for name, content in done.items())
    with pytest.raises(AuroraError, match="holds no finished shards"):
        Manifest.load(output)
    kept = {name: os.stat(output / name).st_mtime_ns for name in done}
    convert(recipe, source, output, workers=2)
    assert whole(output) == whole(expected)
    assert (output / MANIFEST_NAME).read_bytes() == (expected / MANIFEST_NAME).read_bytes()
    assert {name: os.stat(output / name).st_mtime_ns for name in done} == kept, (
        "whole shards are not written again"
    )
    assert not list(output.glob(".*.partial"))
    verify_shards(output)


@pytest.mark.slow
def test_conversions_killed_at_any_moment_leave_whole_shards(tmp_path: Path) -> None:
    source, recipe = write_source(tmp_path / "source", 60, 9), write_recipe(tmp_path / "small.yaml", 3)
    expected, output = tmp_path / "expected", tmp_path / "out"
    convert(recipe, source, expected)
    random = np.random.default_rng(0)
    for _ in range(25):
        process = start(source, recipe, output, 2, SLOW)
        try:
            process.wait(random.uniform(0.3, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(lambda pid=process.pid: not _group_members(pid))
        assert all(content == (expected / name).read_bytes() for name, content in whole(output).items())
        if (output / MANIFEST_NAME).exists():
            assert len(whole(output)) == len(whole(expected))
    convert(recipe, source, output, workers=2)
    assert whole(output) == whole(expected)
    for name in (MANIFEST_NAME, "index.safetensors"):
        assert (output / name).read_bytes() == (expected / name).read_bytes()
    assert not list(output.rglob("*.partial"))


def test_a_conversion_killed_while_it_reads_annotations(tmp_path: Path) -> None:
    source, recipe = write_source(tmp_path / "source", 40, 5), write_recipe(tmp_path / "small.yaml", 5)
    output = tmp_path / "out"
    process = start(source, recipe, output, 1, STOPPED_READING)
    partial = output / ".progress/.spool.sqlite.partial"
    wait_for(partial.is_file)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.is_file() and not whole(output)
    # nothing is written yet, so other annotations may follow
    entries = json.loads((source / "annotations.json").read_text())
    (source / "annotations.json").write_text(json.dumps(entries[1:]))
    assert convert(recipe, source, output)["splits"]["train"]["samples"] == 39
    assert not list(output.rglob("*.partial")) and not list(output.rglob("spool.sqlite"))
    verify_shards(output)


def spool(path: Path, identity: str, entries: Iterable[Entry]) -> list[str]:
    """Media of split train."""
    opened = open_spool(path, identity, entries, None, Counter("", None, None))
    names = [medium.media_id for medium in opened.media("train", 0, 9)]
    opened.close()
    return names


def test_a_finished_spool_is_used_again_for_the_same_annotations_only(tmp_path: Path) -> None:
    def unread() -> Iterator[Entry]:
        raise AssertionError("the annotations are read again")
        yield

    path = tmp_path / "spool.sqlite"
    assert spool(path, "one", [Entry("train", "a.jpg")]) == ["a.jpg"]
    assert spool(path, "one", unread()) == ["a.jpg"]
    assert spool(path, "another", [Entry("train", "b.jpg")]) == ["b.jpg"]
    path.write_bytes(b"no database")
    assert spool(path, "another", [Entry("train", "c.jpg")]) == ["c.jpg"]


def test_a_spool_that_has_no_room_is_told_in_words(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(AuroraError, match="annotations cannot be written to .*spool.sqlite.*Make room"):
            spool(tmp_path / "spool.sqlite", "", (Entry("train", f"{n}.jpg") for n in range(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _group_members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def test_a_second_conversion_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    source, recipe = write_source(tmp_path / "source", 40, 5), write_recipe(tmp_path / "small.yaml", 5)
    output = tmp_path / "out"
    process = start(source, recipe, output, 1)
    try:
        wait_for(lambda: (output / ".lock").is_file() and (output / ".lock").read_text() == str(process.pid))
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(AuroraError, match=rf"Another conversion \(process {process.pid}\) is writing to"):
            with folder_lock(output, patience=0.2):
                pass
    finally:
        process.kill()
        process.wait()
    convert(recipe, source, output)


def test_the_lock_is_dropped_after_errors(source: Path, tmp_path: Path) -> None:
    for _ in range(2):
        (source / "images/train/001.jpg").write_bytes(b"no image")
        with pytest.raises(AuroraError, match="rejects so far"):
            convert("folder", source, tmp_path / "out")


def test_running_again_changes_nothing(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    convert(small_recipe, source, tmp_path / "out")
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    convert(small_recipe, source, tmp_path / "out")
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_a_folder_of_another_conversion_is_refused(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    convert(small_recipe, source, tmp_path / "out")
    with pytest.raises(AuroraError, match="belongs to another conversion"):
        convert(small_recipe, source, tmp_path / "out", limit=2)
    entries = json.loads((source / "annotations.json").read_text())
    entries[0]["caption"] = ["changed"]
    (source / "annotations.json").write_text(json.dumps(entries))
    with pytest.raises(AuroraError, match="belongs to another conversion"):
        convert(small_recipe, source, tmp_path / "out")


def test_shards_of_unknown_origin_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-000000.tar").write_bytes(b"mine")
    with pytest.raises(AuroraError, match="holds shards that this conversion did not write"):
        convert("folder", source, tmp_path / "out")
    assert (tmp_path / "out/train-000000.tar").read_bytes() == b"mine"


def test_a_removed_or_cut_shard_is_written_again(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(small_recipe, source, output)
    expected = whole(output)
    (output / "train-000000.tar").unlink()
    os.truncate(output / "train-000001.tar", 2000)
    convert(small_recipe, source, output)
    assert whole(output) == expected


def test_a_shard_whose_sidecar_was_lost_in_a_power_cut_is_written_again(
    source: Path, small_recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    convert(small_recipe, source, output)
    expected = whole(output)
    (output / ".progress/train-000000.tar.json").write_bytes(b"")
    (output / ".progress/train-000001.tar.json").unlink()
    convert(small_recipe, source, output)
    assert whole(output) == expected
    verify_shards(output)


def test_a_killed_worker_is_told_in_words(
    source: Path, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()
    monkeypatch.setattr(
        writer, "members", lambda *_: os.getpid() != parent and os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(AuroraError, match="worker process was killed.*run the same command again"):
        convert(small_recipe, source, tmp_path / "out", workers=2)


def test_results_come_in_the_order_of_tasks() -> None:
    assert list(run_in_order(_late_when_small, range(8), 3)) == [n * n for n in range(8)]


def _late_when_small(number: int) -> int:
    time.sleep(0.02 * (8 - number))
    return number * number

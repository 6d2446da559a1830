"""Answers that fail: what a retry heals is healed, the rest is an error that names the shard."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_servers import FaultProxy, nginx, s3_server, upload

from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import BadSample, ShardReader
from aurora_ds.data.remote import open_shards, transfer
from aurora_ds.data.remote.transfer import Patience
from aurora_ds.errors import AuroraError

QUICK = Patience(attempts=3, first_wait=0.01, part_seconds=0.5, total_seconds=20.0)
SURE = Patience(attempts=3, first_wait=0.01, part_seconds=60.0, total_seconds=200.0)  # no answer is too late
SHARD = "train-000001.tar"  # media 7 to 13 of train
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def web(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx that serves the folder of the shards."""
    with nginx(shards, tmp_path_factory.mktemp("nginx") / "run") as url:
        yield url


@pytest.fixture
def proxy(web: str) -> Iterator[FaultProxy]:
    with FaultProxy(web).running() as proxy:
        yield proxy


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of several parts."""
    monkeypatch.setattr(transfer, "PART_BYTES", 3000)
    monkeypatch.setattr(transfer, "LEAST_PART_BYTES", 1000)


@pytest.mark.parametrize(
    "faults",
    [
        ["drop"],
        ["cut"],
        [500],
        [503, 429],
        [502, 504],
        ["hang"],
        ["trickle"],
        ["whole"],
        ["drop", "whole"],
        ["cut", 503, "pass", "drop", "hang", "pass", "pass", "cut"],
    ],
)
def test_what_a_retry_heals(
    faults: list[str | int], proxy: FaultProxy, small_parts: None, manifest: Manifest, tmp_path: Path
) -> None:
    late = {"hang", "trickle"} & set(faults)
    reader = ShardReader(open_shards(proxy.url, tmp_path, patience=QUICK if late else SURE))
    proxy.faults[SHARD] = list(faults)
    assert reader.read("train", 8) == ShardReader(manifest).read("train", 8)
    assert not proxy.faults[SHARD]
    assert not [path for path in tmp_path.iterdir() if path.suffix not in ("", ".tar")]


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        ("drop", "Disconnected", 3),
        ("cut", "ClientPayloadError", 3),
        (503, "status 503, after 3 attempt", 3),
        ("hang", "no answer within 0.5 s, after 3 attempt", 3),
        ("trickle", "no answer within", 3),
        (403, "status 403. Give this machine the rights", 1),
        (401, "status 401", 1),
    ],
)
def test_what_stays_bad_is_an_error_in_time(
    fault: str | int, message: str, requests: int, proxy: FaultProxy, tmp_path: Path
) -> None:
    patience = QUICK if fault in ("hang", "trickle") else SURE
    reader = ShardReader(open_shards(proxy.url, tmp_path, patience=patience))
    proxy.faults[SHARD], proxy.forever = [fault], True
    began = time.monotonic()
    with pytest.raises(
        BadSample, match=f"Shard {SHARD}: http.*{SHARD} cannot be read: .*({message})"
    ) as caught:
        reader.read("train", 8)
    # aiohttp itself asks again at once when a connection breaks that was used before.
    assert proxy.requests[SHARD] in ((requests, 2 * requests) if fault == "drop" else (requests,))
    assert caught.value.reason == "unreachable"
    asked = proxy.requests[SHARD]
    # The same shard is not waited for again at once; others are not touched by it.
    with pytest.raises(BadSample):
        reader.read("train", 9)
    assert proxy.requests[SHARD] == asked and time.monotonic() - began < 10
    assert reader.read("train", 0).key.startswith("train-0000000")
    assert not list(tmp_path.glob("*.partial"))


def test_a_transfer_has_a_time_limit_even_if_it_moves(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patience = Patience(attempts=3, first_wait=0.05, part_seconds=0.5, total_seconds=1.0)
    reader = ShardReader(open_shards(proxy.url, tmp_path, patience=patience))
    monkeypatch.setattr(transfer, "PART_BYTES", 100)
    proxy.faults[SHARD] = [503, "pass"] * 500
    began = time.monotonic()
    with pytest.raises(BadSample, match="cannot be read"):
        reader.read("train", 8)
    assert time.monotonic() - began < 12  # all parts take 25 s


def test_the_manifest_is_tried_again_too(proxy: FaultProxy, manifest: Manifest, tmp_path: Path) -> None:
    proxy.faults = {"manifest.json": ["drop", 503], "index.safetensors": ["cut"]}
    assert open_shards(proxy.url, tmp_path, patience=SURE).pairs("train") == manifest.pairs("train")
    proxy.faults, proxy.forever = {"manifest.json": ["drop"]}, True
    with pytest.raises(AuroraError, match="manifest.json cannot be read"):
        open_shards(proxy.url, tmp_path, patience=QUICK)


def test_damage_on_the_way_is_noticed_and_healed(
    proxy: FaultProxy, manifest: Manifest, tmp_path: Path
) -> None:
    reader = ShardReader(open_shards(proxy.url, tmp_path, patience=SURE))
    proxy.faults[SHARD] = ["flip"]
    assert reader.read("train", 8) == ShardReader(manifest).read("train", 8)
    assert proxy.requests[SHARD] == 2


def test_s3_answers_that_fail(
    shards: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_parts: None
) -> None:
    with s3_server() as endpoint, FaultProxy(endpoint).running() as proxy:
        upload(shards, endpoint, "bucket", "shards")
        monkeypatch.setattr(transfer, "_filesystems", {})
        for name, value in (("ENDPOINT_URL", proxy.url), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
            monkeypatch.setenv(f"AWS_{name}", value)
        remote = open_shards("s3://bucket/shards", tmp_path, patience=SURE)
        proxy.faults = {SHARD: ["drop", 503, "cut", 500], "train-000000.tar": [403]}
        reader = ShardReader(remote)
        assert reader.read("train", 8) == ShardReader(manifest).read("train", 8)
        assert not proxy.faults[SHARD]
        with pytest.raises(BadSample, match="train-000000.tar: s3://bucket/shards/.* status 403") as caught:
            reader.read("train", 0)
        assert caught.value.reason == "unreachable" and proxy.requests["train-000000.tar"] == 1


def test_many_processes_download_each_shard_once(
    proxy: FaultProxy, manifest: Manifest, shards: Path, tmp_path: Path
) -> None:
    plain = ShardReader(manifest)
    expected = {medium: plain.read("train", medium).media for medium in range(45)}
    remote = open_shards(proxy.url, tmp_path, patience=SURE)

    def work(process: int) -> None:
        reader = ShardReader(remote)
        for turn in range(45):
            medium = (11 * process + 7 * turn) % 45
            assert reader.read("train", medium).media == expected[medium]

    processes = [FORK.Process(target=work, args=(number,)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert all(proxy.requests[path.name] == 1 for path in shards.glob("train-*.tar"))


def test_a_download_of_a_killed_process_is_taken_over(
    proxy: FaultProxy, manifest: Manifest, tmp_path: Path
) -> None:
    remote = open_shards(proxy.url, tmp_path)
    proxy.faults[SHARD] = ["hang"]
    process = FORK.Process(target=lambda: ShardReader(remote).read("train", 8))
    process.start()
    deadline = time.monotonic() + 120
    while not proxy.requests[SHARD]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob("*.partial"))
    assert ShardReader(remote).read("train", 8) == ShardReader(manifest).read("train", 8)
    assert not list(tmp_path.glob("*.partial"))


def test_shards_that_come_next_are_downloaded_together(
    proxy: FaultProxy, manifest: Manifest, tmp_path: Path
) -> None:
    reader, plain = ShardReader(open_shards(proxy.url, tmp_path)), ShardReader(manifest)
    proxy.faults = {f"train-{number:06d}.tar": ["late"] for number in range(4)}
    reader.expect("train", range(28))
    assert [reader.read("train", n) for n in range(28)] == [plain.read("train", n) for n in range(28)]
    assert proxy.most_late_at_once > 1
    assert all(proxy.requests[name] == 1 for name in proxy.faults)


def test_an_expected_shard_that_cannot_be_had_is_told_where_it_is_read(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    reader = ShardReader(open_shards(proxy.url, tmp_path, patience=SURE))
    proxy.faults, proxy.forever = {SHARD: [403]}, True
    reader.expect("train", range(28))
    assert reader.read("train", 0) and reader.read("train", 14)
    with pytest.raises(BadSample, match="status 403"):
        reader.read("train", 8)


def test_a_process_that_ends_while_shards_come_does_so_at_once_and_in_silence(
    proxy: FaultProxy, small_parts: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    remote = open_shards(proxy.url, tmp_path)
    proxy.faults = {f"train-{number:06d}.tar": ["pass", "pass", "hang"] for number in range(6)}

    def work() -> None:
        ShardReader(remote).expect("train", range(45))
        time.sleep(0.1)

    process, began = FORK.Process(target=work), time.monotonic()
    process.start()
    process.join(30)
    assert process.exitcode == 0 and time.monotonic() - began < 10
    assert capfd.readouterr().err == ""


def test_proxies_of_the_environment_are_used(
    proxy: FaultProxy, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    proxy.rewrite = lambda path: path.removeprefix("http://shards.invalid")
    reader = ShardReader(open_shards("http://shards.invalid", tmp_path, patience=QUICK))
    assert reader.read("train", 8) == ShardReader(manifest).read("train", 8)

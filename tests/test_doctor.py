"""`aurora-ds doctor`: what the hosts' words are judged to be, and the check of this machine, without a host file.

Over real hosts: tests/integration/test_hosts.py.
"""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path

import pytest

from aurora_ds.doctor import network, probe
from aurora_ds.doctor.checks import all_findings
from aurora_ds.doctor.contact import MEET, Reply, ask
from aurora_ds.doctor.finding import Asked, Finding
from aurora_ds.doctor.run import run

SOUND = {
    "folder_error": "",
    "python": "3.11.7",
    "packages": {"torch": "2.12.0", "deepspeed": "0.19.8", "triton": "3.7.1"},
    "project": {"folder": "/x/aurora_ds", "version": "1.0", "sources": "ab" * 32},
    "gpus": {"names": ["H200"] * 8, "driver": "570.1", "seen_by_torch": 8, "cuda": "12.9"},
    "shards": {"/data": {"manifest": "cd" * 32, "shards": 7, "hashed": 2, "problems": []}},
    "checkpoint": {"sha256": "ef" * 32, "bytes": 900},
    "disk": {"folder": "/runs", "free": 10**12},
    "shared_memory": {"free": 10**10},
    "port": {"number": 29500},
    "addresses": {"own": ["10.0.0.1"], "by_name": "10.0.0.1"},
    "interface": {"name": "eth0", "transfer_unit": 9000, "set": {}, "absent": [], "have": ["lo", "eth0"]},
}
ASKED = Asked(
    {"a": 8, "b": 8, "c": 8}, remote=True, shards=("/data",), checkpoint="/data/base.pth", output="/runs/x"
)


def judged(asked: Asked = ASKED, **changes: dict) -> dict[tuple[str, str], Finding]:
    """(check, host) -> finding, where `changes` are put into the facts of host b."""
    replies = {host: Reply(copy.deepcopy(SOUND), ahead=0.0, uncertainty=0.01) for host in asked.hosts}
    if "b" in replies:
        replies["b"].facts.update(changes)
    return {(each.check, each.host): each for each in all_findings(asked, replies)}


def failed(found: dict[tuple[str, str], Finding]) -> set[tuple[str, str]]:
    return {key for key, each in found.items() if each.result == "failed"}


def test_hosts_that_are_alike_pass() -> None:
    found = judged()
    assert not failed(found)
    assert {key for key, each in found.items() if each.result == "skipped"} == {("port", "b"), ("port", "c")}


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        ({"python": "3.12.1"}, "python", "3.12.1; elsewhere 3.11.7"),
        ({"packages": SOUND["packages"] | {"torch": "2.11.0"}}, "torch", "2.11.0; elsewhere 2.12.0"),
        ({"packages": SOUND["packages"] | {"triton": None}}, "triton", "not installed"),
        ({"project": SOUND["project"] | {"sources": "00" * 32}}, "aurora_ds", "elsewhere 1.0, sources abab"),
        ({"project": {"error": "aurora_ds is not installed"}}, "aurora_ds", "not installed"),
        ({"gpus": {"names": [], "driver": None, "reason": "nvidia-smi is not installed"}}, "gpu", "0 GPUs for 8 slots"),
        ({"gpus": SOUND["gpus"] | {"seen_by_torch": 0}}, "gpu", "torch (CUDA 12.9) sees 0"),
        ({"gpus": SOUND["gpus"] | {"driver": "535.2"}}, "gpu", "driver 535.2; elsewhere"),
        ({"gpus": {"error": "Driver/library version mismatch"}}, "gpu", "mismatch"),
        ({"shards": {"/data": {"error": "No such file or directory"}}}, "shards", "/data: No such file"),
        ({"shards": {"/data": SOUND["shards"]["/data"] | {"problems": ["t-1.tar has 3 bytes"]}}}, "shards", "t-1.tar"),
        ({"shards": {"/data": SOUND["shards"]["/data"] | {"manifest": "00" * 32}}}, "shards", "elsewhere manifest cd"),
        ({"checkpoint": {"sha256": "00" * 32, "bytes": 900}}, "checkpoint", "elsewhere sha256 efef"),
        ({"disk": {"folder": "/runs", "free": 10**8}}, "disk", "0.1 GB free at /runs"),
        ({"disk": {"error": "Read-only file system"}}, "disk", "Read-only"),
        ({"shared_memory": {"free": 64 << 20}}, "shared memory", "67 MB free in /dev/shm"),
        ({"interface": SOUND["interface"] | {"transfer_unit": 1500}}, "interface", "MTU 1500; elsewhere MTU 9000"),
        ({"interface": SOUND["interface"] | {"absent": ["ib0"]}}, "interface", "names ib0; it has lo, eth0"),
        ({"interface": SOUND["interface"] | {"name": None}}, "interface", "loopback"),
    ],
)  # fmt: skip
def test_a_host_that_differs_is_the_one_that_fails_and_is_told_what_to_do(
    change: dict, check: str, says: str
) -> None:
    found = judged(**change)
    assert failed(found) == {(check, "b")}
    assert says in found[check, "b"].found and found[check, "b"].advice


def test_the_first_hosts_port_is_looked_at() -> None:
    replies = {host: Reply(copy.deepcopy(SOUND), ahead=0.0, uncertainty=0.0) for host in ASKED.hosts}
    replies["a"].facts["port"] = {"error": "Address already in use"}
    found = {(each.check, each.host): each for each in all_findings(ASKED, replies)}
    assert failed(found) == {("port", "a")} and "--master-port" in found["port", "a"].advice


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (255, "root@b: Permission denied (publickey).", "ssh-copy-id b"),
        (255, "Host key verification failed.", "ssh-keyscan b"),
        (255, "ssh: Could not resolve hostname b: Name or service not known", "/etc/hosts"),
        (255, "ssh: connect to host b port 22: Connection timed out", "ping b"),
        (255, "ssh: connect to host b port 22: Connection refused", "sshd"),
        (127, "bash: /x/python: No such file or directory", "under the same path"),
    ],
)
def test_a_host_that_is_not_reached_fails_with_advice_and_passes_nothing(
    status: int, said: str, advice: str
) -> None:
    replies = {host: Reply(copy.deepcopy(SOUND), ahead=0.0, uncertainty=0.0) for host in ASKED.hosts}
    replies["b"] = Reply(None, said, status)
    found = {(each.check, each.host): each for each in all_findings(ASKED, replies)}
    assert failed(found) == {("ssh", "b")}
    assert found["ssh", "b"].found == said and advice in found["ssh", "b"].advice
    assert {each.result for (check, host), each in found.items() if host == "b" and check != "ssh"} == {
        "skipped"
    }


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "wrong"), [(0.9, 0.0, False), (-90.0, 0.1, True), (3.0, 2.5, False)]
)
def test_a_clock_fails_only_beyond_what_the_question_took(
    ahead: float, uncertainty: float, wrong: bool
) -> None:
    found = network.clock(ASKED, "b", Reply(SOUND, ahead=ahead, uncertainty=uncertainty))
    assert (found.result == "failed") == wrong


def test_a_cpu_run_asks_for_no_gpu_and_a_wrong_sum_is_no_success() -> None:
    cpu = Asked({"a": 2, "b": 2}, remote=True, cpu=True)
    found = judged(cpu, gpus={"names": [], "driver": None, "reason": "nvidia-smi is not installed"})
    assert {found["gpu", host].result for host in "ab"} == {"skipped"}
    done = {"rank": 0, "phase": "done", "right": True, "seconds": 0.01}
    replies = {
        "a": Reply({"ranks": [done, done]}),
        "b": Reply({"ranks": [done, done | {"right": False}]}),
    }
    results = [each.result for each in network.all_reduce(cpu, replies, "gloo", 1 << 20)]
    assert results == ["passed", "failed"]
    slow = Reply(
        {"ranks": [done, done | {"seconds": 0.5}]}
    )  # a host's network is as fast as the slowest one's
    same = {each.found for each in network.all_reduce(cpu, {"a": replies["a"], "b": slow}, "gloo", 1 << 20)}
    assert len(same) == 1 and "500.0 ms" in same.pop()


def test_ranks_that_did_not_meet_are_named_with_where_they_stood() -> None:
    stuck = {"rank": 1, "phase": "joining at 10.0.0.1:29500", "error": "timed out"}
    found = network.all_reduce(Asked({"a": 1}, True), {"a": Reply({"ranks": [stuck]})}, "gloo", 4)[0]
    assert "rank 1 while joining at 10.0.0.1:29500: timed out" in found.found and "firewall" in found.advice
    silent = network.all_reduce(Asked({"a": 1}, True), {"a": Reply(None, "no answer within 9 s")}, "gloo", 4)[
        0
    ]
    assert silent.result == "failed" and "no answer" in silent.found


def test_this_machine_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The real probe and the real all-reduce of two ranks; one shard has lost its end."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    world.write(tmp_path / "raw", counts={"train": 4, "test": 2}, captions=1)
    convert("folder", tmp_path / "raw", tmp_path / "shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "base.pth").write_bytes(b"weights")
    arguments = [f"data.shards={tmp_path / 'shards'}", f"backbone.checkpoint={tmp_path / 'base.pth'}"]

    def doctor() -> tuple[int, dict[str, dict]]:
        status = run(None, "retrieval_coco", arguments, tmp_path / "out", port)
        record = json.loads((tmp_path / "out" / "doctor.json").read_text())
        return status, {each["check"]: each for each in record["findings"]}

    status, found = doctor()
    assert status == 0, found
    assert found["all-reduce"]["result"] == "passed" and "gloo, 2 ranks" in found["all-reduce"]["found"]
    assert "7 bytes" in found["checkpoint"]["found"] and "2 hashed" in found["shards"]["found"]
    assert {check for check, each in found.items() if each["result"] == "skipped"} == {
        "gpu",
        "interface",
        "clock",
    }

    shard = tmp_path / "shards" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with socket.create_server(("", port)):
        status, found = doctor()
    assert status == 1
    assert {check for check, each in found.items() if each["result"] == "failed"} == {"shards", "port"}
    assert found["all-reduce"]["result"] == "skipped" and "port" in found["all-reduce"]["found"]
    assert "aurora-ds shards verify" in capsys.readouterr().out


def test_a_folder_as_checkpoint_is_read_whole_and_a_built_in_one_is_found(tmp_path: Path) -> None:
    from aurora_ds.doctor.run import _data

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    first = probe.checkpoint(str(tmp_path))
    assert first["bytes"] == len("config.json") + len("model.safetensors")
    (tmp_path / "model.safetensors").write_text("model.safetensorz")
    assert probe.checkpoint(str(tmp_path))["sha256"] != first["sha256"]
    assert probe.checkpoint(_data("retrieval_world", [])["checkpoint"])["bytes"] > 10**6


def test_a_host_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "sleeper"))
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sleeper").chmod(0o755)
    reply = ask(None, MEET, {}, seconds=0.5)
    assert reply.facts is None and "no answer within" in reply.failure

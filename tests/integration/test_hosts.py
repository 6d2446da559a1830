"""Training on hosts of their own (network, processes, hostname, sshd each) through the real launchers, and faults.

The hosts are in separate_hosts.py. A run on them is compared with the run of one process, number by number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import separate_hosts
from separate_hosts import Host, Hosts
from small_run import STEPS_PER_EPOCH, Ranks, environment, wait_for
from test_resume import NO_DROPOUT, adapter, assert_close_losses, assert_equal, losses

from aurora_ds.multinode.launched import VARIABLE
from aurora_ds.runtime.metrics_log import FILE, read

pytestmark = pytest.mark.slow
SHORT = (*NO_DROPOUT, "train.epochs=1")
LONGER = "train.epochs=5"  # not over before a rank of it is found and killed


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """host1 and host2."""
    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    started = separate_hosts.start(tmp_path_factory.mktemp("hosts") / "net")
    yield started
    started.close()


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, on this machine."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(output, *SHORT)
    return output


@pytest.fixture
def on_host(repository: Path, tmp_path: Path):
    """`on_host(host, command)`: start it there, in the repository; what still runs after the test is killed."""
    started: list[Ranks] = []

    def on_host(host: Host, command: list[object]) -> Ranks:
        log = tmp_path / f"log-{len(started)}.txt"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with log.open("w") as file:
            process = subprocess.Popen(
                host.inside(command, repository),
                env=environment(repository) | {"HOME": str(host.home), "PATH": path},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append(Ranks([process], [log]))
        return started[-1]

    yield on_host
    for each in started:
        if each.running():
            each.kill()


@pytest.fixture
def multinode(on_host, hosts: Hosts, repository: Path, recipe: Path):
    """`multinode(output, arguments…, slots=1, own=())`: scripts/train_multinode.sh on host1, for both hosts."""

    def multinode(output: Path, *arguments: str, slots: int = 1, own: tuple[object, ...] = ()) -> Ranks:
        script = repository / "scripts" / "train_multinode.sh"
        command = [script, "--hostfile", hosts.hostfile(slots), *own]
        return on_host(hosts[0], [*command, recipe, "--output", output, *SHORT, *arguments])

    return multinode


def of_launch(output: Path, host: Host | None = None) -> list[psutil.Process]:
    """Every process, on this machine or on one of its hosts, that the launch into `output` has started there."""
    lines = (output / ".deepspeed_env").read_text().splitlines()
    wanted = next(line for line in lines if line.startswith(f"{VARIABLE}="))
    name, _, value = wanted.partition("=")
    tree = (
        None
        if host is None
        else {each.pid for each in psutil.Process(host.tree.pid).children(recursive=True)}
    )
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended, or is not ours
            if process.environ().get(name) == value and (tree is None or process.pid in tree):
                found.append(process)
    return found


def rank_on(output: Path, host: Host) -> psutil.Process:
    """The training process of a host."""
    return next(
        each
        for each in of_launch(output, host)
        if "aurora_ds.train" in each.cmdline() and "RANK" in each.environ()
    )


def steps_done(output: Path) -> int:
    return max((line["step"] for line in read(output / FILE) if "train/loss" in line), default=0)


# training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_hosts_train_as_one_process_does(
    whole: Path, multinode, tmp_path: Path, stage: int, slots: int
) -> None:
    output = tmp_path / "run"
    run = multinode(output, f"train.zero_stage={stage}", slots=slots)
    assert run.wait() == [0], run.output()[-6000:]
    said = run.output()
    assert f"dist_world_size={2 * slots}" in said and "host2: " in said
    assert len(losses(output)) == STEPS_PER_EPOCH
    assert_close_losses(losses(output), losses(whole))
    assert of_launch(output) == []


def test_torchrun_on_two_hosts_starts_the_same_run(
    whole: Path, on_host, hosts: Hosts, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    command += ["--master-addr", hosts[0].address, "--master-port", 29511, "--node-rank"]
    train = ["-m", "aurora_ds.train", recipe, "--output", output, *SHORT, "train.zero_stage=2"]
    runs = [on_host(hosts[node], [*command, node, *train]) for node in range(2)]
    for run in runs:
        assert run.wait() == [0], run.output()[-6000:]
    assert_close_losses(losses(output), losses(whole))


# faults of a run -----------------------------------------------------------------------------------------------------


def test_a_rank_that_is_killed_on_another_host_is_started_again(
    train, multinode, hosts: Hosts, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    train(whole, *NO_DROPOUT, LONGER)
    output = tmp_path / "run"
    run = multinode(output, LONGER, "train.save_every=1", own=("--max-restarts", 2))
    wait_for(lambda: steps_done(output) >= 2, run)
    first = of_launch(output)
    rank_on(output, hosts[1]).kill()
    assert run.wait() == [0], run.output()[-6000:]
    said = run.output()
    assert (
        "train_multinode: launch 1 ended with status" in said and "restart 1 of 2, from step-000000" in said
    )
    assert "pdsh@host1: host2: ssh exited with" in said  # which host
    assert "resumed after step" in said
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in first)
    assert_close_losses(losses(output), losses(whole))
    assert_equal(adapter(output), adapter(whole), 1e-5)


def test_sigterm_reaches_the_ranks_of_both_hosts_and_nothing_is_left(
    multinode, hosts: Hosts, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run = multinode(output, "train.epochs=50", own=("--max-restarts", 2, "--grace", 30))
    wait_for(lambda: steps_done(output) >= 2, run)
    supervisor = next(
        each
        for each in psutil.Process(run.processes[0].pid).children(recursive=True)
        if "aurora_ds.multinode" in each.cmdline()
    )
    supervisor.send_signal(signal.SIGTERM)
    # ranks that finish their step and end well make it 0; ranks that the signal ends, 143
    assert run.wait(90)[0] in (0, 128 + signal.SIGTERM), run.output()[-6000:]
    assert "SIGTERM to the ranks: host1: 1, host2: 1" in run.output()
    assert "restart 1" not in run.output()
    assert of_launch(output) == []


def test_a_host_that_loses_its_power_ends_the_launch_within_a_minute(
    repository: Path, recipe: Path, on_host, tmp_path: Path
) -> None:
    started = separate_hosts.start(tmp_path / "net")
    try:
        output, script = tmp_path / "run", repository / "scripts" / "train_multinode.sh"
        command = [script, "--hostfile", started.hostfile(1), recipe, "--output", output, *SHORT]
        run = on_host(started[0], [*command, "train.epochs=200"])
        wait_for(lambda: steps_done(output) >= 2, run)
        began = time.monotonic()
        started[1].kill()
        assert run.wait(90)[0] not in (0, 2), run.output()[-6000:]
        assert time.monotonic() - began < 60
        assert "host2: ssh exited with" in run.output() and "launch 1 ended with status" in run.output()
        assert of_launch(output) == []
    finally:
        started.close()


def test_a_mistake_ends_before_any_host_is_asked(
    on_host, hosts: Hosts, repository: Path, recipe: Path, tmp_path: Path
) -> None:
    script = repository / "scripts" / "train_multinode.sh"
    wrong = tmp_path / "hostfile"
    wrong.write_text("host1 slots=1\nhost2\n")
    run = on_host(hosts[0], [script, "--hostfile", wrong, recipe, "--output", tmp_path / "run"])
    assert run.wait(60) == [2]
    assert "Line 2 of the host file" in run.output() and "Traceback" not in run.output()


# doctor --------------------------------------------------------------------------------------------------------------


def doctor(on_host, host: Host, hostfile: Path, output: Path, *arguments: object) -> tuple[int, dict, str]:
    """(exit status, (check, host) -> finding, what was printed)."""
    import json

    command = [sys.executable, "-m", "aurora_ds", "doctor", "--hostfile", hostfile, "--output", output]
    run = on_host(host, [*command, *arguments])
    status = run.wait(200)[0]
    assert (output / "doctor.json").exists(), run.output()[-6000:]
    findings = json.loads((output / "doctor.json").read_text())["findings"]
    return status, {(each["check"], each["host"]): each for each in findings}, run.output()


def test_doctor_finds_two_hosts_in_order(on_host, hosts: Hosts, recipe: Path, tmp_path: Path) -> None:
    status, found, said = doctor(on_host, hosts[0], hosts.hostfile(2), tmp_path / "out", recipe)
    assert status == 0, said
    results = {check: found[check, "host2"]["result"] for check, host in found if host == "host2"}
    # one set of GPUs, and none on these hosts; the port is the first host's
    assert {check for check, result in results.items() if result == "skipped"} == {"gpu", "port"}
    assert set(results.values()) == {"passed", "skipped"}
    assert "4 ranks" in found["all-reduce", "host1"]["found"]
    assert found["interface", "host2"]["found"].startswith("cable0")


@pytest.fixture(scope="module")
def ailing(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, backbone: dict, shards: Path
) -> Iterator[Hosts]:
    """Three hosts: host2 has another version of the package, another checkpoint and another shard; host3 is off."""
    import shutil

    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ailing")
    other = folder / "aurora_ds"
    shutil.copytree(repository / "aurora_ds", other, ignore=shutil.ignore_patterns("__pycache__"))
    source = (other / "__init__.py").read_text()
    (other / "__init__.py").write_text(source.replace('__version__ = "', '__version__ = "9.'))
    checkpoint, shard = folder / "tiny.safetensors", folder / "train-000000.tar"
    content = bytearray(Path(backbone["checkpoint"]).read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    content = bytearray((shards / "train-000000.tar").read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    over = {
        other: repository / "aurora_ds",
        checkpoint: Path(backbone["checkpoint"]),
        shard: shards / "train-000000.tar",
    }
    started = separate_hosts.start(folder / "net", count=3, mounts={1: over})
    started[2].kill()
    yield started
    started.close()


def test_doctor_names_each_fault_and_what_to_do(on_host, ailing: Hosts, recipe: Path, tmp_path: Path) -> None:
    listener = on_host(
        ailing[0],
        [
            sys.executable,
            "-c",
            "import socket, time; s = socket.create_server(('', 29500)); print('up', flush=True); time.sleep(300)",
        ],
    )
    wait_for(lambda: "up" in listener.output(), listener)
    status, found, said = doctor(on_host, ailing[0], ailing.hostfile(1), tmp_path / "out", recipe)
    assert status == 1
    failed = {key for key, each in found.items() if each["result"] == "failed"}
    assert failed == {
        ("ssh", "host3"),
        ("aurora_ds", "host2"),
        ("checkpoint", "host2"),
        ("shards", "host2"),
        ("port", "host1"),
    }, said
    assert found["aurora_ds", "host2"]["found"].startswith("9.")
    assert "same commit" in found["aurora_ds", "host2"]["advice"]
    assert "train-000000.tar has another sha256" in found["shards", "host2"]["found"]
    assert "ping host3" in found["ssh", "host3"]["advice"]
    assert "29500" in found["port", "host1"]["found"]
    assert found["torch", "host3"]["result"] == "skipped"  # never passed
    assert {found["all-reduce", host]["result"] for host in ("host1", "host2", "host3")} == {"skipped"}
    assert all(found[key]["advice"] for key in failed)


def test_doctor_says_where_ranks_stood_that_did_not_meet(on_host, hosts: Hosts, tmp_path: Path) -> None:
    nobody = f"{separate_hosts.NETWORK}.99"
    asked = ("--master-addr", nobody, "--timeout", 5)
    status, found, said = doctor(on_host, hosts[0], hosts.hostfile(1), tmp_path / "out", *asked)
    assert status == 1
    assert {key for key, each in found.items() if each["result"] == "failed"} == {
        ("all-reduce", "host1"),
        ("all-reduce", "host2"),
    }, said
    assert f"rank 1 while joining at {nobody}:29500" in found["all-reduce", "host2"]["found"]
    assert "firewall" in found["all-reduce", "host2"]["advice"]


def test_doctor_finds_a_clock_that_is_ahead_and_a_network_that_is_cut(
    on_host, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("a clock of its own for a host needs libfaketime: apt-get install libfaketime")
    late = {"LD_PRELOAD": str(library), "FAKETIME": "+90s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    started = separate_hosts.start(tmp_path / "net", variables={1: late})
    try:
        status, found, said = doctor(on_host, started[0], started.hostfile(1), tmp_path / "out")
        assert status == 1, said
        assert {key for key, each in found.items() if each["result"] == "failed"} == {("clock", "host2")}, (
            said
        )
        ahead = float(found["clock", "host2"]["found"].split()[0])
        assert ahead == pytest.approx(90, abs=2)
        started.link(1, "down")
        status, found, said = doctor(on_host, started[0], started.hostfile(1), tmp_path / "out")
        assert status == 1 and found["ssh", "host2"]["result"] == "failed", said
    finally:
        started.close()

"""The supervisor over a launcher of its own kind: restarts, signals, nothing left behind. The real launcher is in
tests/integration/test_hosts.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.multinode import launched, supervise
from aurora_ds.multinode.launch import Launch

# A launcher that starts two ranks with a data worker each, and ends with the largest of their statuses
LAUNCHER = """import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"RANK": str(n)}) for n in range(2)]
sys.exit(max(abs(rank.wait()) for rank in ranks))"""
WORKER = "import subprocess, sys; worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"


@dataclass
class Scripted(Launch):
    """Launches that run the given rank programs, one after the other."""

    programs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resumed: list[bool] = []

    def command(self, resume: bool) -> list[str]:
        self.resumed.append(resume)
        return [sys.executable, "-c", LAUNCHER, self.programs[len(self.resumed) - 1]]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervise, "_BETWEEN_LAUNCHES", 0.0)
    (tmp_path / "hosts").write_text("localhost slots=2\n")

    def scripted(*programs: str) -> Scripted:
        return Scripted(tmp_path / "hosts", ["toy"], tmp_path / "out", programs=programs)

    return scripted


def alive(launch: Launch) -> list[int]:
    return list(launched.processes(launch.name))


SAVES = "import pathlib; p = pathlib.Path({out!r}); p.mkdir(exist_ok=True); (p / 'latest').write_text('step-{n}')\n"


def test_a_failed_launch_is_started_again_with_resume_and_what_failed_is_said(
    scripted, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    launch = scripted(
        f"{WORKER}import os; print('aurora-ds (rank 1): the disk is full', flush=True)\nos._exit(3)", "pass"
    )
    assert supervise.supervise(launch, 2, grace=5) == 0
    assert launch.resumed == [False, True]
    said = capfd.readouterr()
    assert "the disk is full" in said.out  # passed on
    assert "launch 1 ended with status 3" in said.err and "  aurora-ds (rank 1): the disk is full" in said.err
    assert "restart 1 of 2, from its last checkpoint, if any" in said.err
    assert alive(launch) == []  # the data workers of the first launch


def test_a_host_that_does_not_answer_is_waited_for_and_uses_up_no_restart(
    scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    answers = [["host2"], ["host2"], []]
    launch = scripted("raise SystemExit(3)", "pass")
    monkeypatch.setattr(launch, "silent_hosts", lambda: answers.pop(0))
    assert supervise.supervise(launch, 1, grace=5) == 0
    assert launch.resumed == [False, True] and answers == []
    assert capsys.readouterr().err.count("waiting up to 15 min for host2 to answer on ssh") == 1


def test_restarts_are_counted(scripted) -> None:
    launch = scripted(*["import sys; sys.exit(9)"] * 3)
    assert supervise.supervise(launch, 2, grace=5) == 9
    assert len(launch.resumed) == 3
    with pytest.raises(AuroraError, match="at least 0"):
        supervise.supervise(launch, -1, grace=5)


def test_without_pdsh_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    with pytest.raises(AuroraError, match="apt-get install pdsh"):
        supervise.supervise(Launch(tmp_path / "hosts", ["toy"], tmp_path / "out"), 0, grace=1)


def test_the_same_mistake_twice_is_not_repeated_but_progress_is(scripted, tmp_path: Path) -> None:
    wrong = "import sys; sys.exit(2)"
    launch = scripted(*[wrong] * 5)
    assert supervise.supervise(launch, 4, grace=5) == 2
    assert len(launch.resumed) == 2
    (tmp_path / "out" / "checkpoints").mkdir(parents=True, exist_ok=True)
    saving = [SAVES.format(out=str(tmp_path / "out" / "checkpoints"), n=n) + wrong for n in range(3)]
    launch = scripted(*saving, "pass")
    assert supervise.supervise(launch, 4, grace=5) == 0
    assert launch.resumed == [False, True, True, True]


@pytest.mark.parametrize("ends_well", [True, False], ids=["ends well", "does not end"])
def test_a_signal_goes_to_the_ranks_alone_and_who_does_not_end_is_killed(
    scripted, tmp_path: Path, ends_well: bool
) -> None:
    answer = "sys.exit(0)" if ends_well else "None"
    program = (
        f"{WORKER}import signal, pathlib, os, time\n"
        f"signal.signal(signal.SIGUSR1, lambda *_: {answer})\n"
        f"pathlib.Path({str(tmp_path)!r}, 'up' + os.environ['RANK']).touch()\n"
        "[time.sleep(0.1) for _ in range(6000)]"
    )
    launch = scripted(program)
    sender = f"""import os, pathlib, time
while len(list(pathlib.Path({str(tmp_path)!r}).glob("up*"))) < 2:
    time.sleep(0.05)
os.kill({os.getpid()}, {int(signal.SIGUSR1)})"""
    watcher = subprocess.Popen([sys.executable, "-c", sender])
    began = time.monotonic()
    status = supervise.supervise(launch, 3, grace=2)
    assert watcher.wait(60) == 0 and time.monotonic() - began < 200
    assert status == (0 if ends_well else 128 + signal.SIGUSR1)
    assert launch.resumed == [False]
    assert alive(launch) == []


def test_only_processes_of_the_launch_are_found_and_ranks_among_them() -> None:
    name = uuid.uuid4().hex
    mine = os.environ | {launched.VARIABLE: name}
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    rank = subprocess.Popen([sys.executable, "-c", f"{WORKER}worker.wait()"], env=mine | {"RANK": "0"})
    launcher = subprocess.Popen(sleep, env=mine)
    other = subprocess.Popen(sleep, env=os.environ | {launched.VARIABLE: "two", "RANK": "0"})
    try:
        end = time.monotonic() + 30
        while len(launched.processes(name)) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        found = launched.processes(name)
        assert {rank.pid, launcher.pid} < set(found) and other.pid not in found
        assert launched.ranks(found) == [rank.pid]
        launched.main(name, "SIGKILL", "all")
        assert rank.wait(10) == -signal.SIGKILL and launcher.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (rank, launcher, other):
            process.kill()


def test_resume_takes_the_place_of_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=1\n")
    given = ["toy", "--resume", "never", "--output", "o", "train.lr=1", "--resume=PATH"]
    command = Launch(tmp_path / "hosts", given, tmp_path).command(resume=True)
    assert command[command.index("toy") :] == ["toy", "--output", "o", "train.lr=1", "--resume", "auto"]
    assert Launch(tmp_path / "hosts", given, tmp_path).command(resume=False)[-7:] == given

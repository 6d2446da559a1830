"""scripts/slurm.sbatch under a real SLURM: a controller and two nodes on hosts of their own (separate_hosts.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import separate_hosts
from separate_hosts import Hosts
from small_run import environment
from test_resume import NO_DROPOUT, adapter, assert_close_losses, assert_equal, losses

from aurora_ds.runtime.metrics_log import FILE, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a requeued job waits before it starts
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
SETTINGS = (*NO_DROPOUT, "train.epochs=10")  # seconds, so that it can be told to end


class Slurm:
    """A cluster of two nodes with 4 CPUs each."""

    def __init__(self, hosts: Hosts, folder: Path, repository: Path) -> None:
        self.hosts, self.folder, self.repository = hosts, folder, repository
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(self._settings())
        for node in range(2):
            self.on(node, "mkdir", "-p", "/run/munge")
            own = [f"--{name}-file={folder}/munge-{node}.{name}" for name in ("log", "seed")]
            self.on(node, "munged", "--force", f"--key-file={key}", "--pid-file=/run/munge/pid", *own)
        self.on(0, "slurmctld", "-f", folder / "slurm.conf")
        for node in range(2):
            self.on(node, "slurmd", "-f", folder / "slurm.conf", "-N", self.hosts[node].name)
        self.wait_until(lambda: self.on(0, "sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 60)

    def _settings(self) -> str:
        own, first, second = self.folder, self.hosts[0], self.hosts[1]
        nodes = "".join(f"NodeName={host.name} NodeAddr={host.address} CPUs=4\n" for host in (first, second))
        return (
            f"ClusterName=toy\nSlurmctldHost={first.name}({first.address})\nSlurmUser=root\nSlurmdUser=root\n"
            # a requeued job may start when its old credential has expired
            "AuthType=auth/munge\nAuthInfo=cred_expire=10\nCredType=cred/munge\nMpiDefault=none\n"
            f"StateSaveLocation={own}/state\nSlurmdSpoolDir={own}/spool-%n\nSlurmctldPidFile={own}/ctld.pid\n"
            f"SlurmdPidFile={own}/slurmd-%n.pid\nSlurmctldLogFile={own}/ctld.log\nSlurmdLogFile={own}/slurmd-%n.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_CPU\nSlurmdParameters=config_overrides\nSchedulerType=sched/builtin\n"
            f"ReturnToService=2\nJobRequeue=1\n{nodes}"
            "PartitionName=all Nodes=host1,host2 Default=YES MaxTime=60 State=UP\n"
        )

    def on(self, node: int, *command: object) -> str:
        """Run a command on a node, in the repository."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        variables = environment(self.repository) | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}
        ended = subprocess.run(
            self.hosts[node].inside(command, self.repository),
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def submit(self, recipe: Path, output: Path, log: Path, *arguments: str) -> str:
        """sbatch; returns the job's number."""
        options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=30"]
        script = [
            self.repository / "scripts" / "slurm.sbatch",
            recipe,
            "--output",
            output,
            *SETTINGS,
            *arguments,
        ]
        said = self.on(0, "sbatch", "--parsable", *options, f"--output={log}", *script)
        return said.strip()

    def state(self, job: str) -> str:
        shown = self.on(0, "scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait_until(self, condition, seconds: float, log: Path | None = None) -> None:
        end = time.monotonic() + seconds
        while not condition():
            said = log.read_text()[-6000:] if log is not None and log.exists() else ""
            assert time.monotonic() < end, f"waited in vain for {seconds} s\n{said}\n{self.on(0, 'squeue')}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Slurm]:
    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: apt-get install slurmctld slurmd slurm-client munge")
    folder = tmp_path_factory.mktemp("slurm")
    hosts = separate_hosts.start(folder / "net")
    try:
        yield Slurm(hosts, folder / "slurm", repository)
    finally:
        hosts.close()


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, on this machine."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(output, *SETTINGS)
    return output


def test_a_job_that_is_told_to_end_queues_again_and_its_run_is_the_one_of_one_process(
    slurm: Slurm, whole: Path, recipe: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "job.log"
    job = slurm.submit(recipe, output, log, "train.save_every=1", "train.zero_stage=1")

    def steps() -> int:
        return max((line["step"] for line in read(output / FILE) if "train/loss" in line), default=0)

    slurm.wait_until(lambda: steps() >= 2, 120, log)
    # what comes before preemption and before the end of the time, to every rank
    slurm.on(0, "scancel", "--signal=USR1", job)
    slurm.wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 280, log)
    said = log.read_text()
    assert slurm.state(job) == "COMPLETED", said[-6000:]
    assert said.count("slurm.sbatch: requeued") == 1 and "resumed after step" in said
    assert_close_losses(losses(output), losses(whole))
    assert_equal(adapter(output), adapter(whole), 1e-5)


def test_a_mistake_ends_the_job_after_the_second_launch(slurm: Slurm, recipe: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "job.log"
    job = slurm.submit(recipe, output, log, "train.optimiser=sgd")
    slurm.wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 240, log)
    assert slurm.state(job) == "FAILED"
    assert "unknown key train.optimiser" in log.read_text()
    assert log.read_text().count("slurm.sbatch: requeued; it goes on from the beginning") == 1
    assert "two launches without a new checkpoint" in log.read_text()

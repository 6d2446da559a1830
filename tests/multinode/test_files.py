"""What a launch reads and writes: the host file, and the environment file of the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.multinode import ssh, variables
from aurora_ds.multinode.hostfile import read_hostfile


def test_hosts_in_order_with_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\nworker-2 slots=8\n\n10.0.0.7   slots=4  # borrowed\n")
    assert read_hostfile(path) == [("worker-2", 8), ("10.0.0.7", 4)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a slots=8\nb\n", "Line 2 .* 'b'"),
        ("a slots=0\n", "Line 1 .* at least 1"),
        ("a slots=2\nb slots=2\na slots=4\n", "Line 3 .* a second time"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_wrong_host_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(AuroraError, match=says):
        read_hostfile(path)
    with pytest.raises(AuroraError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_the_users_own_environment_file_wins_and_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nOMP_NUM_THREADS=4\n\n")
    mine = "# mine\nOMP_NUM_THREADS=8\nNCCL_SOCKET_IFNAME=ib0=x\n"
    (tmp_path / ".deepspeed_env").write_text(mine)
    here = {"OMP_NUM_THREADS": "2", "TORCH_NCCL_TRACE": "1", "PATH": "/bin"}
    found = variables.for_ranks(here, variables.users_own())
    assert found == {
        "HF_HUB_OFFLINE": "1",
        "NCCL_DEBUG": "INFO",
        "NCCL_SOCKET_IFNAME": "ib0=x",
        "OMP_NUM_THREADS": "8",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_NCCL_TRACE": "1",
    }
    variables.write(tmp_path / "out" / ".deepspeed_env", found)
    lines = (tmp_path / "out" / ".deepspeed_env").read_text().splitlines()
    assert all("=" in line and not line.startswith("#") for line in lines)  # DeepSpeed takes nothing else
    assert (tmp_path / ".deepspeed_env").read_text() == mine


def test_secrets_and_what_the_launcher_sets_are_not_passed_on() -> None:
    here = {"HF_HUB_TOKEN": "t", "AURORA_DS_S3_KEY": "k", "CUDA_VISIBLE_DEVICES": "3", "HF_HOME": "/hf"}
    assert variables.for_ranks(here, {}) == variables.DEFAULTS | {"HF_HOME": "/hf"}


def test_connections_outlast_a_network_that_is_cut_for_as_long_as_a_run_bears() -> None:
    assert ssh.lasting(25)[:2] == ["-o", "ServerAliveCountMax=4"]  # of ten seconds each
    assert ssh.lasting(300)[:2] == ["-o", "ServerAliveCountMax=31"]
    assert ssh.lasting(1)[:2] == ["-o", "ServerAliveCountMax=3"]

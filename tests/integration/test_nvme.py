"""ds_configs/zero3_nvme.json: weights and Adam on a disk train as in memory, and go into a checkpoint and out of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment
from test_hierarchical import ranks

pytestmark = pytest.mark.slow
RANKS = 2
COMPATIBLE = """
import sys
from deepspeed.ops.op_builder import AsyncIOBuilder
sys.exit(not AsyncIOBuilder().is_compatible())
"""


@pytest.fixture(scope="module")
def async_io(repository: Path) -> None:
    """DeepSpeed's module for disks, compiled (two minutes of computing the first time on a machine)."""
    asked = subprocess.run([sys.executable, "-c", COMPATIBLE], env=environment(repository), timeout=300)
    if asked.returncode:
        pytest.skip("libaio's header is not installed (Debian: libaio-dev), which DeepSpeed compiles against")
    one = Path(__file__).with_name("one_compilation.py")
    subprocess.run([sys.executable, str(one)], env=environment(repository), check=True, timeout=1700)


@pytest.mark.timeout(2700)
def test_weights_and_adam_on_a_disk_train_as_in_memory(
    repository: Path, tmp_path: Path, async_io: None
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    worker = Path(__file__).with_name("nvme_worker.py")
    command = [str(worker), str(repository / "ds_configs"), str(disk), str(tmp_path / "{rank}.json")]
    ended = ranks(repository, RANKS, command, tmp_path, 900)
    assert [status for status, _ in ended] == [0] * RANKS, ended
    for rank in range(RANKS):
        record = json.loads((tmp_path / f"{rank}.json").read_text())
        for precision, close in (("bf16", 1e-2), ("fp32", 1e-5)):
            found = record[precision]
            for run in ("nvme", "again", "resumed"):
                plain = found["zero1"][-len(found[run]) :]
                for expected, figures in zip(plain, found[run], strict=True):
                    assert figures == pytest.approx(expected, rel=close), (rank, precision, run, found)
            assert found["loaded"] == 0.0, "a checkpoint of ZeRO 1, given to NVMe and read back from it"
            # in bf16 a first moment near nothing is another one
            assert precision == "bf16" or found["state"] < 1e-3, found["state"]
            for part in (f"/optimizer/rank{rank}/exp_avg-", "_gradient_"):
                assert any(part in name for name in found["files"]), (part, found["files"])
        assert any("params/" in name for name in record["bf16"]["files"]), record["bf16"]["files"]

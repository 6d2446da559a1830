"""When one rank fails or dies, the others say so in a paragraph instead of a stack trace, and the run comes back."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from aurora_ds.runtime import checkpoint

# The training command, in which rank 1 is gone from one moment to the next in its third step.
KILLED = """
import os, signal, sys
from aurora_ds import train
from aurora_ds.runtime.heartbeat import Heartbeat
at = Heartbeat.at

def killed(self, phase, step=None):
    at(self, phase, step)
    if os.environ["RANK"] == "1" and self._step == 3 and phase == "forward":
        os.kill(os.getpid(), signal.SIGKILL)

Heartbeat.at = killed
sys.exit(train.main(sys.argv[1:]))
"""


def one_paragraph(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("aurora-ds")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_a_rank_that_is_killed_in_training(launch, train_command, recipe: Path, tmp_path: Path) -> None:
    script, output = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED)
    run = launch([script, recipe, "--output", output], ranks=2)
    assert run.wait() == [2, -signal.SIGKILL]
    said = one_paragraph(run.logs[0].read_text())
    assert "lost its connection to another rank" in said and "--resume auto" in said
    assert checkpoint.find(output, "required").name == "step-00000002"
    train_command(output, "train.max_steps=6")


def test_an_image_that_only_one_rank_reads_in_evaluation(
    launch, shards: Path, recipe: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    # images 4 to 7 are rank 1's first batch
    content = bytearray((damaged / "test-000000.tar").read_bytes())
    place = content.index(b"\x89PNG", content.index(b"test-0000005"))
    content[place : place + 2048] = bytes(2048)
    (damaged / "test-000000.tar").write_bytes(content)
    command = ["-m", "aurora_ds.evaluate", recipe, f"data.shards={damaged}", "--output", tmp_path / "out"]
    run = launch(command, ranks=2)
    assert run.wait() == [2, 2], run.output()
    said = one_paragraph(run.logs[1].read_text())
    assert "test-0000005" in said
    assert "lost its connection to another rank" in one_paragraph(run.logs[0].read_text())


def test_other_errors_keep_their_stack_trace() -> None:
    from aurora_ds.runtime.process_group import explaining_lost_ranks

    with pytest.raises(RuntimeError, match="a defect of ours"), explaining_lost_ranks():
        raise RuntimeError("a defect of ours")

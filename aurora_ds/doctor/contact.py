"""A program of ours on a host, over ssh or here: its text and its arguments go in, JSON comes back, clocks compared."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aurora_ds
from aurora_ds.multinode import ssh

_PINGS = 5
# `from aurora_ds.x import y` finds in sys.modules what was sent, also where the package is not installed
_BOOTSTRAP = """import json, sys, types
sent = json.loads(sys.stdin.readline())
for name, text in sent["modules"].items():
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules[sent["run"]].main(sent["wanted"])
"""
PROBE = ("aurora_ds.runtime.interface", "aurora_ds.doctor.probe")
MEET = ("aurora_ds.runtime.interface", "aurora_ds.doctor.meet")


@dataclass(frozen=True)
class Reply:
    """What a host said. `facts` is None where it could not; `failure` and `status` then say why.
    `ahead`: its clock minus ours in seconds, known to within `uncertainty`."""

    facts: dict[str, Any] | None
    failure: str = ""
    status: int = 0
    ahead: float | None = None
    uncertainty: float | None = None


def ask(host: str | None, modules: tuple[str, ...], wanted: dict[str, Any], seconds: float) -> Reply:
    """Run the last of `modules` on a host (None: here), with the others at hand."""
    process = subprocess.Popen(
        ssh.command(host, [sys.executable, "-c", _BOOTSTRAP]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    drain.start()
    facts, clock = None, (None, None)
    try:
        sent = {"modules": {name: _text(name) for name in modules}, "run": modules[-1], "wanted": wanted}
        process.stdin.write(json.dumps(sent) + "\n")
        for line in process.stdout:
            if line.startswith("READY"):
                clock = _compare_clocks(process)
                process.stdin.write("facts\n")
            elif line.startswith("FACTS "):
                facts = json.loads(line[6:])
    except (BrokenPipeError, ValueError) as error:  # it ended: its own words are on stderr
        errors.append(f"{error}\n")
    finally:
        timer.cancel()
        with contextlib.suppress(BrokenPipeError):  # what was still to be sent is no longer wanted
            process.stdin.close()
        status = process.wait()
        drain.join(5)
    failure = f"no answer within {seconds:.0f} s" if late.is_set() else _reason(errors, status)
    return Reply(facts, "" if facts is not None else failure, status, *clock)


def _compare_clocks(process: subprocess.Popen) -> tuple[float, float]:
    """(how far the host's clock is ahead, to within), from the quickest of a few questions."""
    best = (0.0, float("inf"))
    for _ in range(_PINGS):
        asked = time.time()
        process.stdin.write("time\n")
        theirs = float(process.stdout.readline().split()[1])
        answered = time.time()
        best = min(best, (theirs - (asked + answered) / 2, (answered - asked) / 2), key=lambda pair: pair[1])
    return best


def _text(module: str) -> str:
    path = Path(aurora_ds.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path.read_text(encoding="utf-8")


def _reason(errors: list[str], status: int) -> str:
    lines = [line.strip() for line in errors if line.strip() and not line.startswith("Warning:")]
    return lines[-1] if lines else f"it ended with status {status} and said nothing"

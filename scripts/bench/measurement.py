"""What the benchmarks share: fresh processes in turn, peak memory, machine facts, and results as JSON and Markdown.

Every contender runs in its own process, contenders take turns (A B A B …), and what counts are medians and the
ratio of medians: a busy machine slows both alike.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULTS = HERE / "results"
sys.path.insert(0, str(REPOSITORY))  # the benchmarks measure the checkout they are in, installed or not


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MiB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def processor_seconds() -> float:
    """User and system time of this process, all threads; on a busy machine steadier than the clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def fresh_process(script: str, arguments: list[str], threads: int) -> dict[str, Any]:
    """Run `script` with `arguments` in a new interpreter; its last output line is JSON.

    Raises CalledProcessError when it fails; what it said on stderr is shown."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # spinning threads would take the cores from whoever else runs, and count as processor time
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def machine_facts(threads: int) -> dict[str, Any]:
    """Processor, cores, versions and commit; nothing that names the machine."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # no such file outside Linux; the platform's own name stands
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short=12", "HEAD")
        + ("+changes" if git("status", "--porcelain", "aurora_ds") else ""),
    }


def git(*arguments: str) -> str:
    """Output of a git command in this repository, or an empty string where there is none."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def write_results(name: str, record: dict[str, Any], text: str, quick: bool) -> None:
    """results/NAME.json and results/NAME.md; a quick run only prints."""
    print(text)
    if quick:
        print("(quick run: nothing written)")
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def sharing_note(seconds: float, processor: float, threads: int) -> str:
    """A sentence for runs during which others used the cores: then processor time is the figure to read."""
    if seconds * threads < 1.3 * processor:
        return ""
    return (
        "Other work ran on these cores at the same time: the clock shows it, so read the ratio of processor time "
        "(user and system, all threads) rather than that of seconds.\n\n"
    )


def facts_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, {facts['vector_instructions']}; "
        f"torch {facts['torch']}, Python {facts['python']}; commit {facts['commit']}."
    )

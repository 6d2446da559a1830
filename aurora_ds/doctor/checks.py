"""What the hosts said, judged: one finding per check and host, and for each that failed what to do about it.

Pure functions of the replies. What could not be looked at is `skipped` with the reason, never `passed`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from aurora_ds.doctor import network
from aurora_ds.doctor.contact import Reply
from aurora_ds.doctor.finding import FAILED, NOT_REACHED, PASSED, SKIPPED, Asked, Facts, Finding, all_same

LEAST_DISK = 2 * 10**9  # bytes: checkpoints of prompts are a few MB, logs and galleries are larger
LEAST_SHARED_MEMORY = 10**9  # bytes: data workers hand batches over through /dev/shm
SAME = ("torch", "deepspeed", "triton")


def all_findings(asked: Asked, replies: Mapping[str, Reply]) -> list[Finding]:
    """Every check but the all-reduce, by check and then by host."""
    findings = [network.reached(asked, host, replies[host]) for host in asked.hosts]
    facts = {host: replies[host].facts for host in asked.hosts if replies[host].facts is not None}
    for check, judge in _CHECKS.items():
        judged = judge(asked, facts)
        findings += [
            judged[host] if host in facts else Finding(check, host, SKIPPED, NOT_REACHED)
            for host in asked.hosts
        ]
    return findings + [network.clock(asked, host, replies[host]) for host in asked.hosts]


def _python(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    versions = {host: each["python"] for host, each in facts.items()}
    return all_same("python", versions, "none", "Use the same environment on every host.")


def _package(name: str) -> Callable[[Asked, Mapping[str, Facts]], dict[str, Finding]]:
    def judge(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
        versions = {host: each["packages"][name] or "" for host, each in facts.items()}
        if name == "triton" and not any(versions.values()):
            return {
                host: Finding(name, host, SKIPPED, "not installed on any host; CPU runs need none")
                for host in facts
            }
        advice = f"Install the same on every host: {sys.executable} -m pip install {name}==VERSION, or constraints.txt."
        return all_same(name, versions, "not installed", advice)

    return judge


def _project(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    said = {
        host: each["project"].get("error")
        or f"{each['project']['version']}, sources {each['project']['sources'][:12]}"
        for host, each in facts.items()
    }
    broken = [host for host, each in facts.items() if "error" in each["project"]]
    advice = (
        "Ranks with different code give wrong numbers or hang. Bring this folder to the same commit on every host, "
        "without local changes."
    )
    judged = all_same(
        "aurora_ds", {host: value for host, value in said.items() if host not in broken}, "", advice
    )
    missing = "Install it there, or put the repository on a shared file system."
    return judged | {host: Finding("aurora_ds", host, FAILED, said[host], missing) for host in broken}


def _gpus(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    if asked.cpu:
        return {
            host: Finding("gpu", host, SKIPPED, "DS_ACCELERATOR=cpu: the run uses no GPU") for host in facts
        }
    if not any(each["gpus"].get("names") or "error" in each["gpus"] for each in facts.values()):
        return {
            host: Finding("gpu", host, SKIPPED, f"no GPU on any host: {each['gpus']['reason']}")
            for host, each in facts.items()
        }
    judged, said = {}, {}
    for host, each in facts.items():
        gpus, wanted = each["gpus"], asked.slots[host]
        count = len(gpus.get("names", []))
        if "error" in gpus:
            judged[host] = Finding(
                "gpu", host, FAILED, gpus["error"], "Repair the driver there until nvidia-smi lists the GPUs."
            )
        elif count < wanted:
            judged[host] = Finding(
                "gpu",
                host,
                FAILED,
                f"{count} GPUs for {wanted} slots",
                "Lower the host's slots in the host file, or take it out.",
            )
        elif gpus["seen_by_torch"] < wanted:
            judged[host] = Finding(
                "gpu",
                host,
                FAILED,
                f"driver {gpus['driver']} lists {count}, torch (CUDA {gpus['cuda']}) sees {gpus['seen_by_torch']}",
                "Install a driver that is new enough for torch's CUDA, or a torch built for an older CUDA; and look "
                "at CUDA_VISIBLE_DEVICES there.",
            )
        else:
            said[host] = (
                f"{wanted} x {', '.join(sorted(set(gpus['names'][:wanted])))}, driver {gpus['driver']}"
            )
    advice = "Different GPUs run at the slowest one's speed, and different drivers break NCCL: use one kind."
    kinds = {host: value.partition(" x ")[2] for host, value in said.items()}
    return judged | all_same("gpu", kinds, "", advice)


def _shards(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    if not asked.shards:
        reason = asked.no_recipe or "the recipe names no data.shards"
        return {host: Finding("shards", host, SKIPPED, reason) for host in facts}
    said, judged = {}, {}
    for host, each in facts.items():
        wrong = [
            f"{place}: {found.get('error') or found['problems'][0]}"
            for place, found in each["shards"].items()
            if "error" in found or found["problems"]
        ]
        if wrong:
            judged[host] = Finding(
                "shards",
                host,
                FAILED,
                "; ".join(wrong),
                "Copy the folder there again, or mount it; `aurora-ds shards verify DIR` on that host finds all that "
                "is wrong.",
            )
            continue
        said[host] = "; ".join(
            f"manifest {found['manifest'][:12]}, {found['shards']} files of the right size, {found['hashed']} hashed"
            for found in each["shards"].values()
        )
    advice = (
        "The hosts have different shards under the same path: copy one and the same folder to all of them."
    )
    return judged | all_same("shards", said, "", advice)


def _checkpoint(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    if asked.checkpoint is None:
        reason = asked.no_recipe or "the recipe names no backbone.checkpoint"
        return {host: Finding("checkpoint", host, SKIPPED, reason) for host in facts}
    advice = f"Copy {asked.checkpoint} there from a host where it is right."
    judged, said = {}, {}
    for host, each in facts.items():
        if "error" in each["checkpoint"]:
            judged[host] = Finding("checkpoint", host, FAILED, each["checkpoint"]["error"], advice)
        else:
            said[host] = f"sha256 {each['checkpoint']['sha256'][:12]}, {each['checkpoint']['bytes']:,} bytes"
    return judged | all_same("checkpoint", said, "", advice)


def _disk(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    if asked.output is None:
        return {host: Finding("disk", host, SKIPPED, "no --output was given") for host in facts}
    judged = {}
    for host, each in facts.items():
        disk = each["disk"]
        if "error" in disk:
            advice = "Give an --output that can be written to there."
            judged[host] = Finding("disk", host, FAILED, f"{asked.output}: {disk['error']}", advice)
        elif disk["free"] < LEAST_DISK:
            judged[host] = Finding(
                "disk",
                host,
                FAILED,
                f"{disk['free'] / 1e9:.1f} GB free at {disk['folder']}",
                f"Make room for at least {LEAST_DISK / 1e9:.0f} GB, or give an --output on another disk.",
            )
        else:
            judged[host] = Finding("disk", host, PASSED, f"{LEAST_DISK / 1e9:.0f} GB and more free, writable")
    return judged


def _shared_memory(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    judged = {}
    for host, each in facts.items():
        free = each["shared_memory"].get("free", 0)
        if free < LEAST_SHARED_MEMORY:
            judged[host] = Finding(
                "shared memory",
                host,
                FAILED,
                each["shared_memory"].get("error") or f"{free / 1e6:.0f} MB free in /dev/shm",
                "Data workers end with a bus error when it is full. In a container: --shm-size=16g, or --ipc=host; "
                "or data.workers=0.",
            )
        else:
            judged[host] = Finding(
                "shared memory", host, PASSED, f"{LEAST_SHARED_MEMORY / 1e9:.0f} GB and more free"
            )
    return judged


_CHECKS: dict[str, Callable[[Asked, Mapping[str, Facts]], dict[str, Finding]]] = {
    "python": _python,
    **{name: _package(name) for name in SAME},
    "aurora_ds": _project,
    "gpu": _gpus,
    "shards": _shards,
    "checkpoint": _checkpoint,
    "disk": _disk,
    "shared memory": _shared_memory,
    "port": network.port,
    "interface": network.interface,
}

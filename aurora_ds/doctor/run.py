"""`aurora-ds doctor`: ask every host, let the ranks meet once, print the table, say what to do."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aurora_ds.doctor import network
from aurora_ds.doctor.checks import all_findings
from aurora_ds.doctor.contact import MEET, PROBE, Reply, ask
from aurora_ds.doctor.finding import FAILED, NOT_REACHED, PASSED, SKIPPED, Asked, Finding
from aurora_ds.multinode import ssh, variables
from aurora_ds.multinode.hostfile import read_hostfile

RESULTS = "doctor.json"  # results.json of the same folder is the training run's
_GPU_LESS_RANKS = 2


def run(
    hostfile: Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    port: int = 29500,
    address: str | None = None,
    seconds: float = 60.0,
) -> int:
    """Check the hosts of a file, or this machine, for a run of `recipe` into `output`.

    Args:
        address: the first host's, as ranks will be told it; without it the first of `hostname -I`, as the launcher
        takes it. seconds: for the ranks to meet. Returns 0, or 1 when something is wrong; the findings are also in
        OUTPUT/doctor.json. Raises AuroraError for a wrong host file or recipe.
    """
    hosts = read_hostfile(hostfile) if hostfile is not None else []
    slots = {host.name: host.count for host in hosts} or {socket.gethostname(): 1}
    asked = Asked(
        slots,
        bool(hosts),
        output=str(output.absolute()) if output else None,
        port=port,
        **_data(recipe, overrides),
    )
    replies = _ask_all(asked)
    findings = [*_launcher(asked), *all_findings(asked, replies)]
    findings += _meet(asked, replies, findings, address, seconds)
    _print(findings, asked.hosts)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        record = {"results": _counts(findings), "findings": [asdict(each) for each in findings]}
        (output / RESULTS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(each.result == FAILED for each in findings))


def _data(recipe: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The files that the recipe reads."""
    cpu = _environment().get("DS_ACCELERATOR", "").lower() == "cpu"
    if recipe is None:
        return {"cpu": cpu, "no_recipe": "no RECIPE was given"}
    from aurora_ds.recipe import load_config

    config = load_config(recipe, list(overrides))
    checkpoint = config.backbone.checkpoint
    if checkpoint is not None and checkpoint.startswith("builtin:"):
        from aurora_ds.backbones.checkpoint import resolve_checkpoint

        checkpoint = str(resolve_checkpoint(checkpoint))
    places = [config.data.shards, *(entry.shards for entry in config.data.mix)]
    # ranks are started in this folder, so a relative path means the same there
    return {
        "cpu": cpu,
        "shards": tuple(dict.fromkeys(place for place in places if place)),
        "checkpoint": checkpoint,
    }


def _environment() -> dict[str, str]:
    """What ranks on the hosts will find in their environment, as the launcher passes it on."""
    wanted = variables.for_ranks(os.environ, variables.users_own())
    return wanted | {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}


def _ask_all(asked: Asked) -> dict[str, Reply]:
    def wanted(host: str) -> dict[str, Any]:
        others = [other for other in asked.hosts if other != host]
        return {
            "folder": os.getcwd(),
            "environment": _environment(),
            "shards": asked.shards,
            "checkpoint": asked.checkpoint,
            "output": asked.output,
            "port": asked.port,
            "first": host == asked.hosts[0],
            "peers": others,
        }

    # files are hashed at disk speed: 10 minutes are some hundred GB
    return ssh.on_all(
        asked.hosts, lambda host: ask(host if asked.remote else None, PROBE, wanted(host), seconds=600)
    )


def _launcher(asked: Asked) -> list[Finding]:
    """pdsh, with which DeepSpeed starts the hosts; needed on this machine alone."""
    if len(asked.hosts) == 1:
        return []
    from shutil import which

    here = socket.gethostname()
    if which("pdsh"):
        return [Finding("launcher", here, PASSED, "pdsh is installed")]
    advice = (
        "DeepSpeed starts hosts with it: apt-get install pdsh. Or start with torchrun or srun on every host."
    )
    return [Finding("launcher", here, FAILED, "pdsh is not installed on this machine", advice)]


def _meet(
    asked: Asked, replies: dict[str, Reply], findings: list[Finding], address: str | None, seconds: float
) -> list[Finding]:
    """The all-reduce over all hosts, unless something that was found makes it pointless."""

    def skipped(reason: str) -> list[Finding]:
        return [Finding("all-reduce", host, SKIPPED, reason) for host in asked.hosts]

    for each in findings:
        if each.result == FAILED and each.check in ("ssh", "interpreter", "torch", "port"):
            return skipped(f"{each.check} of {each.host} failed")
    facts = {host: replies[host].facts for host in asked.hosts}
    gpus = [len(each["gpus"].get("names", [])) for each in facts.values()]
    nccl = not asked.cpu and all(gpus)
    if not asked.remote:
        asked = Asked({asked.hosts[0]: gpus[0] if nccl else _GPU_LESS_RANKS}, remote=False, port=asked.port)
    if address is None and asked.remote:
        known = facts[asked.hosts[0]]["addresses"]
        if not known.get("own"):
            return skipped("the first host does not know its address (hostname -I); give --master-addr")
        address = known["own"][0]
    slots = list(asked.slots.values())
    wanted = {
        host: {
            "environment": _environment(),
            "backend": "nccl" if nccl else "gloo",
            "address": address or "127.0.0.1",
            "port": asked.port,
            "world": sum(slots),
            "first_rank": sum(slots[:number]),
            "ranks": slots[number],
            "seconds": seconds,
        }
        for number, host in enumerate(asked.hosts)
    }
    from aurora_ds.doctor.meet import NUMBERS

    met = ssh.on_all(
        asked.hosts,
        lambda host: ask(host if asked.remote else None, MEET, wanted[host], seconds=seconds + 120),
    )
    return network.all_reduce(asked, met, "nccl" if nccl else "gloo", NUMBERS)


def _counts(findings: list[Finding]) -> dict[str, int]:
    return {result: sum(each.result == result for each in findings) for result in (PASSED, FAILED, SKIPPED)}


def _print(findings: list[Finding], hosts: list[str]) -> None:
    """Hosts with the same finding share a line; below the table, what to do."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(hosts)} host{'s' * (len(hosts) > 1)}", title_justify="left", title_style="")
    table.add_column("check", no_wrap=True)
    table.add_column("hosts", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("found", overflow="fold")
    lines: dict[tuple[str, str, str], list[str]] = {}
    for each in findings:
        check = "all the rest" if each.found == NOT_REACHED else each.check
        members = lines.setdefault((check, each.result, each.found), [])
        members += [] if each.host in members else [each.host]
    for (check, result, found), members in lines.items():
        named = "all" if set(members) == set(hosts) and len(hosts) > 1 else ", ".join(members)
        style = {FAILED: "bold red", SKIPPED: "dim"}.get(result, "")
        table.add_row(check, named, f"[{style}]{result}[/]" if style else result, found)
    console = Console()
    console.print(table)
    for advice, members in _grouped(findings).items():
        console.print(f"{', '.join(members)}: {advice}", markup=False, highlight=False, soft_wrap=True)
    print(", ".join(f"{count} {result}" for result, count in _counts(findings).items()))


def _grouped(findings: list[Finding]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for each in findings:
        if each.result == FAILED:
            grouped.setdefault(each.advice, []).append(f"{each.check} of {each.host}")
    return grouped

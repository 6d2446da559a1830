"""What the hosts said about the way to them and between them, judged: ssh, clock, port, interface, all-reduce."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from aurora_ds.doctor.contact import Reply
from aurora_ds.doctor.finding import FAILED, NOT_REACHED, PASSED, SKIPPED, Asked, Facts, Finding, all_same
from aurora_ds.multinode import ssh

MOST_SKEW = 1.0  # seconds; logs and heartbeats of hosts are put in order by their clocks


def reached(asked: Asked, host: str, reply: Reply) -> Finding:
    """ssh and the interpreter."""
    check = "ssh" if asked.remote else "interpreter"
    if reply.facts is not None:
        if reply.facts["folder_error"]:
            return Finding(
                check,
                host,
                FAILED,
                f"this folder: {reply.facts['folder_error']}",
                "Ranks are started in the folder that the launcher was called in. Make it there too (a shared file "
                "system, or a copy under the same path).",
            )
        return Finding(check, host, PASSED, "answers")
    advice = "Run the same by hand and look: " + " ".join(["ssh", host, sys.executable, "-V"])
    if reply.status in ssh.NO_PROGRAM:
        advice = (
            f"The launcher starts {sys.executable} on every host. Install the environment there under the same path, "
            "or put it on a shared file system."
        )
    elif reply.status == ssh.NOT_CONNECTED:
        advice = next(
            (advice for sign, advice in _SSH_ADVICE.items() if sign in reply.failure.lower()), advice
        ).format(host=host)
    return Finding(check, host, FAILED, reply.failure, advice)


_SSH_ADVICE = {
    "permission denied": "Give this machine's key to the host: ssh-copy-id {host}",
    "host key verification": "Confirm the host's key once (ssh {host}), or add it: ssh-keyscan {host} >> "
    "~/.ssh/known_hosts",
    "could not resolve": "Check the name in the host file; put it into DNS or /etc/hosts of every host.",
    "timed out": "The host does not answer: is it on, and is port 22 open in its firewall? (ping {host})",
    "no route": "There is no network path: is the host on, and on the same network? (ping {host})",
    "refused": "The host runs no sshd: start it there (systemctl start ssh).",
}


def clock(asked: Asked, host: str, reply: Reply) -> Finding:
    """The host's clock against this machine's."""
    if not asked.remote:
        return Finding("clock", host, SKIPPED, "one machine has one clock")
    if reply.ahead is None:
        return Finding("clock", host, SKIPPED, NOT_REACHED)
    beyond = abs(reply.ahead) - reply.uncertainty
    if beyond > MOST_SKEW:
        return Finding(
            "clock",
            host,
            FAILED,
            f"{reply.ahead:+.1f} s",
            f"More than {MOST_SKEW:.0f} s from this machine's. Set the clock by NTP: timedatectl set-ntp true, or "
            "start chronyd.",
        )
    return Finding("clock", host, PASSED, f"within {MOST_SKEW:.0f} s")


def port(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    judged = {
        host: Finding("port", host, SKIPPED, "only the first host listens on it")
        for host in facts
        if host != asked.hosts[0]
    }
    first = asked.hosts[0]
    if first not in facts:
        return judged
    error = facts[first]["port"].get("error")
    if error:
        judged[first] = Finding(
            "port",
            first,
            FAILED,
            f"{asked.port}: {error}",
            f"Something listens there, perhaps another run (ss -ltnp | grep {asked.port}). End it, or choose another "
            "with --master-port here and in the launcher.",
        )
    else:
        judged[first] = Finding("port", first, PASSED, f"{asked.port} is free")
    return judged


def interface(asked: Asked, facts: Mapping[str, Facts]) -> dict[str, Finding]:
    if len(asked.hosts) == 1:
        return {host: Finding("interface", host, SKIPPED, "one host needs none") for host in facts}
    judged, units = {}, {}
    for host, each in facts.items():
        found = each["interface"]
        if "error" in found or found["name"] is None:
            judged[host] = Finding(
                "interface",
                host,
                FAILED,
                found.get("error") or "the way to the other hosts is the loopback",
                "The other host's name must resolve to its address in the network between the hosts: see "
                "/etc/hosts, where Debian maps a host's own name to 127.0.1.1.",
            )
        elif found["absent"]:
            judged[host] = Finding(
                "interface",
                host,
                FAILED,
                f"GLOO_SOCKET_IFNAME names {', '.join(found['absent'])}; it has {', '.join(found['have'])}",
                "Unset GLOO_SOCKET_IFNAME (each host then finds its own), or name one that all hosts have; see also "
                ".deepspeed_env.",
            )
        else:
            units[host] = f"MTU {found['transfer_unit']}"
            judged[host] = Finding("interface", host, PASSED, f"{found['name']}, {units[host]}")
    different = all_same(
        "interface",
        units,
        "",
        "Set the same MTU on every host (ip link set NAME mtu N): large messages hang where it differs.",
    )
    return judged | {host: finding for host, finding in different.items() if finding.result == FAILED}


def all_reduce(asked: Asked, replies: Mapping[str, Reply], backend: str, numbers: int) -> list[Finding]:
    """What the ranks of each host said about the all-reduce of `numbers` float32."""
    findings = []
    every = [each for reply in replies.values() if reply.facts for each in reply.facts["ranks"]]
    slowest = max((each["seconds"] for each in every if "seconds" in each), default=0.0)
    for host in asked.hosts:
        reply = replies[host]
        ranks = reply.facts["ranks"] if reply.facts else []
        wrong = [each for each in ranks if each.get("phase") != "done" or not each["right"]]
        if not ranks or wrong:
            first = wrong[0] if wrong else {}
            stopped = (
                f"rank {first.get('rank', '?')} while {first.get('phase', 'starting')}: " if first else ""
            )
            said = first.get("error") or reply.failure or "the sum is wrong"
            findings.append(
                Finding(
                    "all-reduce", host, FAILED, f"{backend}, {stopped}{said}", _meeting_advice(first, backend)
                )
            )
            continue
        world = sum(asked.slots.values())
        # each rank sends and receives 2 (n - 1) / n of the tensor
        rate = 2 * (world - 1) / world * numbers * 4 / slowest / 1e9
        versions = sorted({f" {each['nccl']}" for each in ranks if "nccl" in each})
        findings.append(
            Finding(
                "all-reduce",
                host,
                PASSED,
                f"{backend}{''.join(versions)}, {world} ranks, {numbers * 4 >> 20} MiB in {slowest * 1e3:.1f} ms, "
                f"{rate:.2f} GB/s a rank",
            )
        )
    return findings


def _meeting_advice(said: Mapping[str, Any], backend: str) -> str:
    if str(said.get("phase", "")).startswith("joining"):
        return (
            "Not every rank reached the first host's port. Open the hosts' firewalls to each other, all TCP ports "
            "(ranks also connect on ports that the system chooses); or name the right address: --master-addr."
        )
    variable = "NCCL_DEBUG=INFO" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    return (
        "The ranks found each other, but not a way to exchange data: compare the interface lines above, open all TCP "
        f"ports between the hosts, and look at {variable}."
    )

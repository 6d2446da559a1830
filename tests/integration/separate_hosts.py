"""Separate hosts on one machine: each has network, hostname, processes and mounts of its own, an address, and an sshd.

A host is one `unshare` process tree on a veth pair; a further one holds the bridge between them. When the test process
ends, however it ends, the pipes it holds close, every host's first process ends, and the kernel removes the rest:
processes, links and mounts. The machine's own network and files are not touched. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
NETWORK = "10.213.57"
_ALONE = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# bash as a host's first process also collects the orphans that end up with it
_SWITCH = (
    "ip link add bridge type bridge && ip link set bridge up && echo ready && while read -r _; do :; done"
)
_HOST = """set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
for pair in "${@:3}"; do mount --bind "${pair%%=*}" "${pair#*=}"; done
"$(command -v sshd)" -D -f "$2/$1.sshd" -E "$2/$1.log" &
echo ready
while read -r _; do :; done
"""


def missing() -> str:
    """Why hosts cannot be made on this machine; empty where they can."""
    if os.geteuid() != 0:
        return "separate hosts need root (network namespaces, mounts)"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None]
    if absent:
        return f"separate hosts need {' '.join(absent)}: apt-get install {' '.join(absent)}"
    tried = subprocess.run(
        [*_ALONE, "ip", "link", "add", "bridge", "type", "bridge"], capture_output=True, text=True, timeout=30
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Host:
    """One host. `home`: its home folder, which no other host has."""

    name: str
    address: str
    home: Path
    tree: subprocess.Popen

    def inside(self, command: Sequence[object], folder: Path | None = None) -> list[str]:
        """The command line that runs `command` on this host."""
        first = psutil.Process(self.tree.pid).children()[0].pid
        place = [f"--wd={folder}"] if folder else []
        return [
            *("nsenter", f"--target={first}", "--net", "--uts", "--mount", "--pid", *place, "--"),
            *map(str, command),
        ]

    def kill(self) -> None:
        """End the host and everything on it at once, as a power cut does."""
        self.tree.kill()
        self.tree.wait(30)


@dataclass
class Hosts:
    """Hosts that reach each other by name and ssh."""

    folder: Path
    switch: subprocess.Popen
    scratch: tempfile.TemporaryDirectory
    hosts: list[Host] = field(default_factory=list)

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def hostfile(self, slots: int, names: Sequence[str] | None = None) -> Path:
        """What `deepspeed --hostfile` reads."""
        path = self.folder / f"hostfile-{slots}-{len(names or self.hosts)}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in names or [h.name for h in self.hosts]))
        return path

    def link(self, number: int, state: str) -> None:
        """Pull a host's cable (`down`), or put it back (`up`)."""
        _in_network(self.switch, "ip", "link", "set", f"port{number}", state)

    def close(self) -> None:
        """End every host, and remove what they left in their folders for temporary files."""
        for host in self.hosts:
            host.kill()
        self.switch.kill()
        self.switch.wait(30)
        self.scratch.cleanup()


def start(
    folder: Path,
    count: int = 2,
    variables: Mapping[int, Mapping[str, str]] | None = None,
    mounts: Mapping[int, Mapping[Path, Path]] | None = None,
) -> Hosts:
    """Start `host1`, `host2`, …; returns when each answers on ssh.

    Args:
        variables: by the host's number, the environment of its ssh sessions. mounts: by the host's number, what it
        finds in the place of a path: {1: {mine: theirs}} puts `mine` over `theirs` on the second host.
    """
    folder.mkdir(parents=True)
    names = [f"host{number + 1}" for number in range(count)]
    _write_keys(folder, names)
    # not in `folder`, which may be long: a socket's path has 107 bytes
    scratch = tempfile.TemporaryDirectory(prefix="hosts-", dir="/tmp", ignore_cleanup_errors=True)
    hosts = Hosts(folder, _started([*_ALONE, "bash", "-c", _SWITCH]), scratch)
    try:
        for number, name in enumerate(names):
            address, home = f"{NETWORK}.{number + 1}", folder / name
            temporary = Path(scratch.name) / name
            home.mkdir()
            temporary.mkdir()
            own = {"HOME": str(home), "TMPDIR": str(temporary), **(variables or {}).get(number, {})}
            (folder / f"{name}.sshd").write_text(_sshd(folder, own))
            pairs = [f"{mine}={theirs}" for mine, theirs in (mounts or {}).get(number, {}).items()]
            path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
            tree = _started([*_ALONE, "bash", "-c", _HOST, "host", name, str(folder), *pairs], path)
            hosts.hosts.append(Host(name, address, home, tree))
            _connect(hosts.switch, tree, number, address)
        for host in hosts.hosts:
            _wait_for_ssh(hosts, host)
    except BaseException:
        hosts.close()
        raise
    return hosts


def _started(command: list[str], path: str | None = None) -> subprocess.Popen:
    environment = {"PATH": path or os.environ["PATH"]}
    tree = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    said = tree.stdout.readline().strip()
    if said != "ready":
        tree.kill()
        raise RuntimeError(f"a host did not start: {said} {tree.stdout.read()}")
    return tree


def _in_network(tree: subprocess.Popen, *command: str) -> None:
    first = psutil.Process(tree.pid).children()[0].pid
    subprocess.run(["nsenter", f"--target={first}", "--net", *command], check=True, timeout=30)


def _connect(switch: subprocess.Popen, tree: subprocess.Popen, number: int, address: str) -> None:
    first = psutil.Process(tree.pid).children()[0].pid
    port = f"port{number}"
    peer = ("peer", "name", "cable0", "netns", str(first))
    _in_network(switch, "ip", "link", "add", port, "type", "veth", *peer)
    _in_network(switch, "ip", "link", "set", port, "master", "bridge", "up")
    _in_network(tree, "ip", "address", "add", f"{address}/24", "dev", "cable0")
    _in_network(tree, "ip", "link", "set", "cable0", "up")


def _write_keys(folder: Path, names: list[str]) -> None:
    for key in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True, timeout=30
        )
    public = " ".join((folder / "host_key.pub").read_text().split()[:2])
    lines = [f"{NETWORK}.{number + 1} {name}" for number, name in enumerate(names)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in lines))
    (folder / "known_hosts").write_text("".join(f"{line.replace(' ', ',')} {public}\n" for line in lines))
    # the system's ssh_config: ssh looks for the user's own in the password file's home folder, not in $HOME
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
    )


def _sshd(folder: Path, variables: Mapping[str, str]) -> str:
    own = " ".join(f'"{name}={value}"' for name, value in variables.items())
    return (
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPasswordAuthentication no\nPidFile none\nMaxStartups 100\nSetEnv {own}\n"
    )


def _wait_for_ssh(hosts: Hosts, host: Host, seconds: float = 30) -> None:
    end, said = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        command = hosts[0].inside(
            ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", host.name, "hostname"]
        )
        tried = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if tried.stdout.strip() == host.name:
            return
        said = tried.stderr.strip()
        time.sleep(0.1)
    log = ""
    with contextlib.suppress(OSError):
        log = (hosts.folder / f"{host.name}.log").read_text()
    raise RuntimeError(f"{host.name} does not answer on ssh: {said}\n{log}")

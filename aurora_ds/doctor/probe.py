"""The facts of one host, gathered on it. Standard library only: the text of this file is sent to hosts where the
package may be missing or another version. Judges nothing; what fails stands under `error`.

Lines on standard input are requests: `time` prints this host's clock, `facts` the facts as JSON, and ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from aurora_ds.runtime.interface import interface_towards, transfer_unit

PACKAGES = ("torch", "deepspeed", "triton")
_PART = 1 << 22


def main(wanted: dict[str, Any]) -> None:
    """Answer the requests on standard input."""
    os.environ.update(wanted["environment"])
    folder_error = ""
    try:
        os.chdir(wanted["folder"])
    except OSError as error:
        folder_error = error.strerror or repr(error)
    sys.path[:0] = [wanted["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    print("READY", flush=True)
    for line in sys.stdin:
        if line.strip() == "time":
            print(f"TIME {time.time()!r}", flush=True)
        else:
            print(f"FACTS {json.dumps(facts(wanted) | {'folder_error': folder_error})}", flush=True)
            return


def facts(wanted: dict[str, Any]) -> dict[str, Any]:
    """Everything about this host. `wanted`: folder, environment, shards, checkpoint, output, port, first (whether this
    is the first host), peers (the other hosts)."""
    return {
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "project": _tried(project),
        "gpus": _tried(graphics),
        "shards": {place: _tried(shards, place) for place in wanted["shards"]},
        "checkpoint": _tried(checkpoint, wanted["checkpoint"]) if wanted["checkpoint"] else None,
        "disk": _tried(disk, wanted["output"]) if wanted["output"] else None,
        "shared_memory": _tried(lambda: {"free": shutil.disk_usage("/dev/shm").free}),
        "port": _tried(port, wanted["port"]) if wanted["first"] else None,
        "addresses": _tried(addresses),
        "interface": _tried(interface, wanted["peers"]) if wanted["peers"] else None,
    }


def _tried(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return work(*arguments)
    except Exception as error:  # noqa: BLE001 - one fact that cannot be had must not hide the others; it is reported
        return {"error": f"{getattr(error, 'strerror', None) or error or type(error).__name__}"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def project() -> dict[str, Any]:
    """Where aurora_ds is, its version, and one sha256 over its source files."""
    found = importlib.util.find_spec("aurora_ds")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("aurora_ds is not installed")
    folder, digest = Path(found.origin).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    version = [line for line in Path(found.origin).read_text().splitlines() if line.startswith("__version__")]
    return {
        "folder": str(folder),
        "version": version[0].partition("=")[2].strip(" \"'") if version else None,
        "sources": digest.hexdigest(),
    }


def graphics() -> dict[str, Any]:
    """GPUs and their driver by nvidia-smi; whether torch sees them too."""
    if shutil.which("nvidia-smi") is None:
        return {"names": [], "driver": None, "reason": "nvidia-smi is not installed"}
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if asked.returncode:
        raise RuntimeError((asked.stdout + asked.stderr).strip().partition("\n")[0])
    rows = [line.rsplit(", ", 1) for line in asked.stdout.splitlines() if line.strip()]
    import torch

    return {
        "names": [row[0] for row in rows],
        "driver": rows[0][1] if rows else None,
        "seen_by_torch": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
    }


def shards(place: str) -> dict[str, Any]:
    """A folder of shards, or its URL: the manifest's sha256, every file's size, the first shard of each split whole."""
    if "://" in place:
        return _remote_shards(place)
    folder, problems, hashed, count = Path(place), [], 0, 0
    content = (folder / "manifest.json").read_bytes()
    for split in json.loads(content)["splits"].values():
        for number, entry in enumerate(split["shards"]):
            path, count = folder / entry["file"], count + 1
            try:
                size = path.stat().st_size
                if size != entry["bytes"]:
                    problems.append(f"{entry['file']} has {size} bytes, the manifest says {entry['bytes']}")
                elif number == 0:
                    hashed += 1
                    if whole_file(str(path))["sha256"] != entry["sha256"]:
                        problems.append(f"{entry['file']} has another sha256 than the manifest says")
            except OSError as error:
                problems.append(f"{entry['file']}: {error.strerror}")
    return {
        "manifest": hashlib.sha256(content).hexdigest(),
        "shards": count,
        "hashed": hashed,
        "problems": problems,
    }


def _remote_shards(place: str) -> dict[str, Any]:
    import fsspec

    with fsspec.open(f"{place.rstrip('/')}/manifest.json") as file:
        content = file.read()
    entries = [entry for split in json.loads(content)["splits"].values() for entry in split["shards"]]
    problems = []
    for entry in entries[:1]:
        with fsspec.open(f"{place.rstrip('/')}/{entry['file']}") as file:
            if not file.read(512):
                problems.append(f"{entry['file']} is empty")
    return {
        "manifest": hashlib.sha256(content).hexdigest(),
        "shards": len(entries),
        "hashed": 0,
        "problems": problems,
    }


def whole_file(place: str) -> dict[str, Any]:
    """A file read from end to end."""
    digest, size = hashlib.sha256(), 0
    with open(place, "rb") as file:
        while part := file.read(_PART):
            digest.update(part)
            size += len(part)
    return {"sha256": digest.hexdigest(), "bytes": size}


def checkpoint(place: str) -> dict[str, Any]:
    """A file, or the files of a folder in transformers' format by name, read from end to end."""
    path = Path(place).expanduser()
    if not path.is_dir():
        return whole_file(str(path))
    digest, size = hashlib.sha256(), 0
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        found = whole_file(str(file))
        digest.update(f"{file.name}\0{found['sha256']}\0".encode())
        size += found["bytes"]
    return {"sha256": digest.hexdigest(), "bytes": size}


def disk(output: str) -> dict[str, Any]:
    """Free bytes where the output folder is or would be made, and whether a file can be written there."""
    folder = Path(output).absolute()
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
    return {"folder": str(folder), "free": shutil.disk_usage(folder).free}


def port(number: int) -> dict[str, Any]:
    """Whether something listens there already."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", number))
        listener.listen(1)
    return {"number": number}


def addresses() -> dict[str, Any]:
    """This host's addresses, in the order in which the launcher takes the first; and what its name resolves to."""
    asked = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=30, check=True)
    try:
        by_name = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        by_name = f"nothing ({error.strerror})"
    return {"own": asked.stdout.split(), "by_name": by_name}


def interface(peers: list[str]) -> dict[str, Any]:
    """The interface towards the other hosts, and those that the environment names but this host does not have."""
    name = interface_towards(_first_known(peers))
    have = [each for _, each in socket.if_nameindex()]
    named = {
        variable: os.environ[variable]
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        if variable in os.environ
    }
    wanted = [each for each in named.get("GLOO_SOCKET_IFNAME", "").split(",") if each]
    return {
        "name": name,
        "transfer_unit": transfer_unit(name) if name else None,
        "set": named,
        "absent": [each for each in wanted if each not in have],
        "have": have,
    }


def _first_known(names: list[str]) -> str:
    """The address of the first of these hosts whose name resolves; one that does not is another check's matter."""
    for name in names[:-1]:
        try:
            return socket.gethostbyname(name)
        except OSError:
            continue
    return socket.gethostbyname(names[-1])

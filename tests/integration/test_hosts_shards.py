"""Shards from a web server, on two hosts: each fetches only the shards of its own lanes, into a cache of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import separate_hosts
from separate_hosts import Hosts
from small_run import environment

pytestmark = pytest.mark.slow
TRAIN, TEST = 256, 8  # one medium a shard; a lane keeps shards whole from 128 chunks on
PORT = 8080
NGINX = """daemon off; master_process off; pid {run}/pid; error_log {run}/error.log;
events {{ worker_connections 256; }}
http {{ log_format who '$remote_addr $uri'; access_log {run}/access.log who; client_body_temp_path {run}/a;
proxy_temp_path {run}/b; fastcgi_temp_path {run}/c; uwsgi_temp_path {run}/d; scgi_temp_path {run}/e;
server {{ listen {port}; root {root}; }} }}
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    started = separate_hosts.start(tmp_path_factory.mktemp("hosts") / "net")
    yield started
    started.close()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Shards of one medium each."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    folder = tmp_path_factory.mktemp("single")
    world.write(folder / "raw", counts={"train": TRAIN, "test": TEST}, captions=1)
    text = (repository / "shards" / "folder.yaml").read_text()
    (folder / "single.yaml").write_text(text.replace("samples_per_shard: 500", "samples_per_shard: 1"))
    convert(str(folder / "single.yaml"), folder / "raw", folder / "web" / "shards")
    return folder / "web"


@pytest.fixture
def server(hosts: Hosts, single: Path, tmp_path: Path) -> Iterator[Path]:
    """nginx on host1; its log: the address that asked, and for what."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    run = tmp_path / "nginx"
    run.mkdir()
    (run / "nginx.conf").write_text(NGINX.format(run=run, root=single, port=PORT))
    command = [program, "-p", run, "-e", run / "error.log", "-c", run / "nginx.conf"]
    process = subprocess.Popen(hosts[0].inside(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield run / "access.log"
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.wait(20)


def test_each_host_fetches_its_own_lanes_into_its_own_cache(
    hosts: Hosts, server: Path, single: Path, recipe: Path, repository: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [repository / "scripts" / "train_multinode.sh", "--hostfile", hosts.hostfile(1), recipe]
    command += ["--output", output, f"data.shards=http://host1:{PORT}/shards", "train.epochs=1"]
    command += ["data.lanes=2", "data.window=16", "train.save_every=1000"]
    ended = subprocess.run(
        hosts[0].inside(command, repository),
        env=environment(repository) | {"HOME": str(hosts[0].home)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    manifest = json.loads((single / "shards" / "manifest.json").read_text())
    train = {shard["file"]: shard for shard in manifest["splits"]["train"]["shards"]}
    asked = [line.split() for line in server.read_text().splitlines()]
    fetched, bytes_fetched = {}, {}
    for host in hosts.hosts:
        names = [uri.rpartition("/")[2] for address, uri in asked if address == host.address]
        shards = [name for name in names if name in train]
        assert len(shards) == len(set(shards))  # nothing twice
        fetched[host.name] = set(shards)
        bytes_fetched[host.name] = sum(train[name]["bytes"] for name in shards)
        kept = {path.stem for path in (host.home / ".cache" / "aurora_ds" / "shards").glob("*.tar")}
        assert {train[name]["sha256"] for name in shards} <= kept
        assert not kept & {train[name]["sha256"] for name in set(train) - set(shards)}
    assert fetched["host1"] | fetched["host2"] == set(train)
    assert not fetched["host1"] & fetched["host2"]
    assert len(fetched["host1"]) == len(fetched["host2"]) == TRAIN // 2
    assert sum(bytes_fetched.values()) == sum(shard["bytes"] for shard in train.values())

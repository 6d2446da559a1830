"""Servers on loopback for shards: a real nginx, a real S3 server (moto), and a proxy that injures answers."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NGINX = """
daemon off; master_process off; pid {run}/pid; error_log {run}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {run}/access.log; default_type application/octet-stream;
    client_body_temp_path {run}/a; proxy_temp_path {run}/b; fastcgi_temp_path {run}/c; uwsgi_temp_path {run}/d;
    scgi_temp_path {run}/e;
    server {{ listen 127.0.0.1:{port}; root {root}; location /private/ {{ return 403; }} }}
}}
"""


LATE = 0.5  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command: list[str], port: int) -> Iterator[str]:
    """The address of a server that `command` starts; it is ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def nginx(root: Path, run: Path) -> Iterator[str]:
    """An nginx that serves `root`; skips the test where there is none."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    port = free_port()
    run.mkdir()
    (run / "nginx.conf").write_text(NGINX.format(run=run, root=root, port=port))
    with served(
        [program, "-p", str(run), "-e", str(run / "error.log"), "-c", str(run / "nginx.conf")], port
    ) as url:
        yield url


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server, empty; skips the test where moto is not installed."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    port = free_port()
    with served([sys.executable, "-m", "moto.server", "-p", str(port)], port) as url:
        yield url


def upload(folder: Path, endpoint: str, bucket: str, prefix: str) -> None:
    """Puts the files of a folder into a bucket that anybody may read."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket=bucket, ACL="public-read")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}", ExtraArgs={"ACL": "public-read"})


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on to `upstream`, and injures the answers to paths that end in a name of `faults`.

    Each entry of faults[name] is used for one request: a status number, or drop (no answer), cut (half of the body),
    hang (no answer for a long time), late (LATE seconds), trickle (a byte in a while), whole (the Range is ignored),
    flip (another bit), or pass. The last one stays when `forever` is set.
    """

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults: dict[str, list[str | int]] = {}
        self.forever = False
        self.rewrite: Callable[[str], str] = str
        self.requests: Counter[str] = Counter()
        self.late, self.most_late_at_once = 0, 0
        self.ended = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, path: str) -> str | int | None:
        """What to do to this request, which is counted."""
        name = path.rpartition("/")[2]
        with self.lock:
            self.requests[name] += 1
            waiting = self.faults.get(name, [])
            return waiting[0] if self.forever and len(waiting) == 1 else waiting.pop(0) if waiting else None

    def wait_late(self) -> None:
        """LATE seconds; `most_late_at_once` counts the requests that wait together."""
        with self.lock:
            self.late += 1
            self.most_late_at_once = max(self.most_late_at_once, self.late)
        self.ended.wait(LATE)
        with self.lock:
            self.late -= 1

    def handle_error(self, *_: object) -> None:
        """Clients that went away are part of the tests."""

    @contextmanager
    def running(self) -> Iterator[FaultProxy]:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield self
        finally:
            self.ended.set()
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = self.server.rewrite(self.path)
        fault = self.server.fault(path)
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "hang":
            self.server.ended.wait(60)
            self.close_connection = True
            return
        if fault == "late":
            self.server.wait_late()
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        if fault == "whole":
            headers.pop("Range", None)
        connection = http.client.HTTPConnection(self.server.upstream.removeprefix("http://"))
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        if fault == "trickle":
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                self.wfile.flush()
                if self.server.ended.wait(0.5):
                    return
        self.wfile.write(body)

    do_HEAD = do_GET

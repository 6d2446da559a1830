"""Shards behind a URL: reading through the cache against reading the folder, and filling it against plain downloads.

    warm   every sample of every shard in a shuffled order, from the cache, against the same from the folder itself
    cold   an empty cache filled with every shard, checked by sha256 on the way, against `curl` of the same files,
           against curl and then `sha256sum` of them, and against fsspec's own `get`

An nginx on loopback serves the shards; network and disk are therefore as fast as this machine, and what is measured is
what the cache costs. Contenders take turns in fresh processes; interpreter start, imports, and for `folder` and
`warm` the opening of the manifest (told beside the table) are not counted.

    python scripts/bench/remote.py [--quick] [--repeats 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from measurement import facts_line, fresh_process, machine_facts, markdown_table, median, write_results

SHARDS, SAMPLES, SAMPLE_BYTES = 24, 200, 100_000
WARM_BAR, COLD_BAR = 0.95, 0.8
NGINX = """
daemon off; master_process off; pid {run}/pid; error_log {run}/error.log;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; client_body_temp_path {run}/a; proxy_temp_path {run}/b; fastcgi_temp_path {run}/c;
    uwsgi_temp_path {run}/d; scgi_temp_path {run}/e; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


def make_shards(folder: Path, shards: int) -> None:
    """Shards of records with random bytes in place of photos: nothing is decoded here."""
    import numpy as np

    from aurora_ds.data.manifest import Manifest, ShardEntry, SplitEntry

    random, entries, offsets, whole, records = np.random.default_rng(0), [], [], [], []
    folder.mkdir()
    for number in range(shards):
        buffer, ends = io.BytesIO(), [0]
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(SAMPLES):
                record = json.dumps(
                    {"schema": 1, "media_id": f"{number}/{sample}", "captions": ["a picture"]}
                )
                for name, content in (("json", record.encode()), ("jpg", random.bytes(SAMPLE_BYTES))):
                    member = tarfile.TarInfo(f"sample-{number}-{sample}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    if name == "json":
                        records.append(zlib.crc32(buffer.getbuffer()[ends[-1] : buffer.tell()]))
                whole.append(zlib.crc32(buffer.getbuffer()[ends[-1] : buffer.tell()]))
                ends.append(buffer.tell())
        content, file = buffer.getvalue(), f"train-{number:06d}.tar"
        (folder / file).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        sizes = {"samples": SAMPLES, "pairs": SAMPLES, "bytes": len(content), "counts": {"captions": SAMPLES}}
        entries.append(ShardEntry(file=file, sha256=sha256, **sizes))
        offsets += ends
    arrays = {
        "train/offsets": np.array(offsets, np.int64),
        "train/counts/captions": np.ones(shards * SAMPLES, np.int32),
        "train/crc32": np.array(whole, np.uint32),
        "train/crc32/record": np.array(records, np.uint32),
    }
    manifest = Manifest(schema=1, dataset="random", splits={"train": SplitEntry.of(entries)})
    manifest.with_arrays(arrays).save(folder)


@contextmanager
def nginx(root: Path, run: Path) -> Iterator[str]:
    """The address of an nginx that serves `root`."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SystemExit("nginx is not installed (apt-get install nginx-light).")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run.mkdir()
    (run / "nginx.conf").write_text(NGINX.format(run=run, root=root, port=port))
    process = subprocess.Popen(
        [program, "-p", str(run), "-e", str(run / "error.log"), "-c", str(run / "nginx.conf")]
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def read_all(place: str, cache: Path | None) -> float:
    """Reads all samples, shuffled within windows of four shards as training does. Seconds until it could begin."""
    import numpy as np

    from aurora_ds.data.reader import ShardReader
    from aurora_ds.data.remote import open_shards

    start = time.perf_counter()
    manifest = open_shards(place, cache)
    opened = time.perf_counter() - start
    reader, order = ShardReader(manifest), np.arange(manifest.media("train"))
    for first in range(0, len(order), 4 * SAMPLES):
        np.random.default_rng(first).shuffle(order[first : first + 4 * SAMPLES])
    for medium in order.tolist():
        reader.read("train", medium)
    reader.close()
    return opened


def fill(url: str, cache: Path) -> None:
    """Every shard into an empty cache."""
    from aurora_ds.data.remote import open_shards

    manifest = open_shards(url, cache)
    for shard in manifest.split("train").shards:
        os.close(manifest.store.open(shard.file))


def curl(urls: list[str], folder: Path) -> None:
    """Plain downloads, one after the other over one connection."""
    folder.mkdir()
    subprocess.run(["curl", "-s", "-f", "--remote-name-all", *urls], cwd=folder, check=True)


def curl_and_check(urls: list[str], folder: Path) -> None:
    """The same, then their checksums."""
    curl(urls, folder)
    names = [path.name for path in folder.iterdir()]
    subprocess.run(["sha256sum", *names], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def fsspec_get(urls: list[str], folder: Path) -> None:
    """fsspec's own download to files, one after the other."""
    import fsspec

    folder.mkdir()
    filesystem = fsspec.filesystem("http")
    for url in urls:
        filesystem.get_file(url, str(folder / url.rpartition("/")[2]))


def measure(what: str, url: str, place: Path) -> dict[str, float]:
    """One contender, in this process; what it writes is removed afterwards."""
    import fsspec

    import aurora_ds.data.reader
    import aurora_ds.data.remote  # noqa: F401

    fsspec.get_filesystem_class("http")  # imports what it needs; none of that is counted
    urls = [f"{url}/{path.name}" for path in sorted((place / "shards").glob("*.tar"))]
    target = place / "target"
    contenders: dict[str, Callable[[], float | None]] = {
        "folder": lambda: read_all(str(place / "shards"), None),
        "warm": lambda: read_all(url, place / "warm"),
        "cold": lambda: fill(url, target),
        "curl": lambda: curl(urls, target),
        "curl, sha256sum": lambda: curl_and_check(urls, target),
        "fsspec get": lambda: fsspec_get(urls, target),
    }
    os.sync()  # what the one before has written is not to be paid for here
    start = time.perf_counter()
    opened = contenders[what]() or 0.0
    seconds = time.perf_counter() - start - opened
    shutil.rmtree(target, ignore_errors=True)
    return {"seconds": seconds, "opened": opened}


CONTENDERS = ["folder", "warm", "cold", "curl", "curl, sha256sum", "fsspec get"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 shards, one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the files go: 1 GB (default: the temporary folder)"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        what, url, place = chosen.child
        print(json.dumps(measure(what, url, Path(place))))
        return
    shards, repeats = (3, 1) if chosen.quick else (SHARDS, chosen.repeats)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        place = Path(temporary)
        make_shards(place / "shards", shards)
        size = sum(path.stat().st_size for path in (place / "shards").glob("*.tar"))
        with nginx(place / "shards", place / "run") as url:
            fill(url, place / "warm")
            for turn in range(repeats):
                for name in CONTENDERS[turn:] + CONTENDERS[:turn]:
                    found = fresh_process("remote.py", ["--child", name, url, temporary], threads=1)
                    runs[name].append(found)
    seconds = {name: median([run["seconds"] for run in found]) for name, found in runs.items()}
    opened = median([run["opened"] for run in runs["warm"]])
    against = {"warm": "folder", "cold": "curl, sha256sum"}
    bars = {"warm": WARM_BAR, "cold": COLD_BAR}
    rows = []
    for name in CONTENDERS:
        ratio = f"{seconds[against[name]] / seconds[name]:.2f} of {against[name]}" if name in against else ""
        bar = f">= {bars[name]}" if name in bars else ""
        rows.append([name, f"{seconds[name]:.2f}", f"{size / seconds[name] / 1e6:,.0f}", ratio, bar])
    facts = machine_facts(threads=1)
    text = (
        f"# Shards from nginx on loopback: {shards} shards, {size / 1e6:,.0f} MB\n\n"
        f"{markdown_table(['', 'seconds', 'MB/s', 'rate', 'aim'], rows)}\n\n"
        f"Medians of {repeats} fresh processes each, in turn. cold is {seconds['curl'] / seconds['cold']:.2f} of curl "
        f"alone and {seconds['fsspec get'] / seconds['cold']:.2f} of fsspec get, which check nothing. "
        f"Opening the URL took {opened:.3f} s before the first sample of warm.\n\n"
        f"{facts_line(facts)}"
    )
    write_results("remote", {"facts": facts, "bytes": size, "runs": runs}, text, chosen.quick)


if __name__ == "__main__":
    main()

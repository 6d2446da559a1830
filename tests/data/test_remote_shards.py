"""Shards read from real servers: nginx, and S3 by moto; gs:// by the real client, hf:// by a stand-in for its own."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry as REGISTRY
from shard_servers import FaultProxy, nginx, s3_server, upload

from aurora_ds.data.inspect import inspect_shards
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import BadSample, ShardReader
from aurora_ds.data.remote import open_shards, transfer
from aurora_ds.data.remote.transfer import Patience
from aurora_ds.data.shardcheck import verify_shards
from aurora_ds.errors import AuroraError

IMPATIENT = Patience(attempts=2, first_wait=0.01, part_seconds=1.0, total_seconds=10.0)


@pytest.fixture(scope="module")
def web(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx that serves the folder of the shards."""
    with nginx(shards, tmp_path_factory.mktemp("nginx") / "run") as url:
        yield url


@pytest.fixture(scope="module")
def endpoint(shards: Path) -> Iterator[str]:
    """An S3 server that has the shards as s3://bucket/some/shards."""
    with s3_server() as url:
        upload(shards, url, "bucket", "some/shards")
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the shards on the S3 server, which the environment leads to."""
    monkeypatch.setattr(transfer, "_filesystems", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return "s3://bucket/some/shards"


def all_samples(manifest: Manifest) -> list[tuple[str, bytes]]:
    reader = ShardReader(manifest)
    samples = [
        reader.read(split, medium) for split in manifest.splits for medium in range(manifest.media(split))
    ]
    reader.close()
    return [(sample.key, sample.media) for sample in samples]


def test_nginx_gives_the_same_samples(web: str, manifest: Manifest, tmp_path: Path) -> None:
    remote = open_shards(web, tmp_path)
    assert all_samples(remote) == all_samples(manifest)
    assert remote.fingerprint("train") == manifest.fingerprint("train")
    assert ShardReader(remote).record("train", 3) == ShardReader(manifest).record("train", 3)


def test_s3_gives_the_same_samples(s3: str, manifest: Manifest, tmp_path: Path) -> None:
    assert all_samples(open_shards(s3, tmp_path)) == all_samples(manifest)


def test_what_is_cached_is_not_asked_for_again(web: str, shards: Path, tmp_path: Path) -> None:
    with FaultProxy(web).running() as proxy:
        all_samples(open_shards(proxy.url, tmp_path))
        tars = {path.name for path in shards.glob("*.tar")}
        assert set(proxy.requests) == tars | {"manifest.json", "index.safetensors"}
        assert set(proxy.requests.values()) == {1}
        proxy.requests.clear()
        all_samples(open_shards(proxy.url, tmp_path))
        assert proxy.requests == {"manifest.json": 1}


def test_the_cache_stays_within_its_bound(web: str, manifest: Manifest, tmp_path: Path) -> None:
    sizes = [shard.bytes for split in manifest.splits.values() for shard in split.shards]
    bound = sum(sizes) // 3
    remote = open_shards(web, tmp_path, cache_gb=bound / 1e9)
    for _ in range(2):
        assert all_samples(remote) == all_samples(manifest)
        assert 0 < sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= bound


def test_files_that_the_manifest_lists_come_along(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "test_gt.json").write_text("[1, 2]")
    manifest = Manifest.load(folder)
    manifest.files = {"test_gt.json": hashlib.sha256(b"[1, 2]").hexdigest()}
    manifest.save(folder)
    with nginx(folder, tmp_path / "run") as url:
        remote = open_shards(url, tmp_path / "cache")
        assert (remote.folder / "test_gt.json").read_text() == "[1, 2]"
        (folder / "test_gt.json").write_text("[1, 3]")
        with pytest.raises(AuroraError, match="test_gt.json has other bytes than manifest.json says"):
            open_shards(url, tmp_path / "other")


def test_listed_names_cannot_leave_the_cache(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = Manifest.load(folder)
    manifest.files = {"../../outside": "0" * 64}
    manifest.save(folder)
    with nginx(folder, tmp_path / "run") as url:
        with pytest.raises(AuroraError, match="'../../outside', which is no file name"):
            open_shards(url, tmp_path / "cache")


def test_no_shards_behind_a_url(web: str, s3: str, tmp_path: Path) -> None:
    for url in (f"{web}/nowhere", f"{s3}/nowhere", "s3://nobucket/shards"):
        with pytest.raises(AuroraError, match="has no manifest.json, so it holds no finished shards"):
            open_shards(url, tmp_path)
    began, patience = time.monotonic(), Patience(attempts=2, first_wait=200.0, longest_wait=200.0)
    with pytest.raises(
        AuroraError, match=r"/private/manifest.json cannot be read: status 403. Give this machine"
    ):
        open_shards(f"{web}/private", tmp_path, patience=patience)
    assert time.monotonic() - began < 50  # what is not allowed is not tried again


def test_a_missing_shard_is_named(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "train-000001.tar").unlink()
    with nginx(folder, tmp_path / "run") as url:
        reader = ShardReader(open_shards(url, tmp_path / "cache"))
        assert reader.read("train", 0).key.startswith("train-0000000")
        with pytest.raises(
            BadSample, match=r"Shard train-000001.tar: .*/train-000001.tar.* status 404"
        ) as caught:
            reader.read("train", 7)
        assert caught.value.reason == "shard_missing"


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"x", lambda content: content[:-512]])
def test_a_shard_that_changes_under_the_reader_is_an_error(
    change: Callable[[bytes], bytes], shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    with nginx(folder, tmp_path / "run") as url:
        reader = ShardReader(open_shards(url, tmp_path / "cache", patience=IMPATIENT))
        before = reader.read("train", 0)
        for name in ("train-000000.tar", "train-000001.tar"):
            path = folder / name
            path.write_bytes(change(path.read_bytes()))
        # What is here already is still what the manifest describes; the other is not taken.
        assert reader.read("train", 1).key != before.key
        for _ in range(2):
            with pytest.raises(
                BadSample, match="Shard train-000001.tar: .*the manifest|manifest.json says"
            ) as caught:
                reader.read("train", 7)
            assert caught.value.reason == "checksum"
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_a_cached_shard_that_was_damaged_is_fetched_again(
    web: str, manifest: Manifest, tmp_path: Path
) -> None:
    with FaultProxy(web).running() as proxy:
        remote = open_shards(proxy.url, tmp_path)
        readers = [ShardReader(remote) for _ in range(3)]
        for reader in readers[:2]:
            reader.read("train", 8)
        cached = tmp_path / f"{manifest.split('train').shards[1].sha256}.tar"
        size = cached.stat().st_size
        with open(cached, "r+b") as file:  # as after a power cut: the size is there, the bytes are not
            file.write(bytes(size))
        plain = ShardReader(manifest)
        assert [reader.read("train", 9) for reader in readers] == [plain.read("train", 9)] * 3
        assert readers[0].record("train", 10) == plain.record("train", 10)
        assert proxy.requests["train-000001.tar"] == 2


def test_a_sample_that_is_bad_at_its_origin_is_not_fetched_again_and_again(
    shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = Manifest.load(folder)
    arrays = {name: np.array(values) for name, values in manifest._arrays.items()}
    arrays["train/crc32"][8:10] += 1
    manifest.with_arrays(arrays).save(folder)
    with nginx(folder, tmp_path / "run") as url, FaultProxy(url).running() as proxy:
        reader = ShardReader(open_shards(proxy.url, tmp_path / "cache"))
        for medium in (8, 9, 8):
            with pytest.raises(BadSample, match="train-000001.tar") as caught:
                reader.read("train", medium)
            assert caught.value.reason == "checksum"
        assert proxy.requests["train-000001.tar"] == 1


def test_inspect_and_verify_take_urls(
    web: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AURORA_DS_CACHE", str(tmp_path / "cache"))
    assert inspect_shards(web)["splits"]["train"]["samples"] == 45
    assert verify_shards(web, workers=2)["pairs"] == manifest.pairs("train") + manifest.pairs("test")
    sha256 = manifest.split("train").shards[1].sha256
    with open(tmp_path / "cache" / f"{sha256}.tar", "r+b") as file:
        file.write(b"damaged")
    with pytest.raises(AuroraError, match="train-000001.tar"):
        verify_shards(web, workers=2)


def test_gs_urls_go_through_the_real_client(
    endpoint: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    with FaultProxy(endpoint).running() as proxy:
        # Google's addresses of objects, answered by the S3 server.
        proxy.rewrite = lambda path: (
            path.partition("?")[0]
            .replace("/download/storage/v1/b/", "/")
            .replace("/o/", "/")
            .replace("%2F", "/")
        )
        monkeypatch.setattr(transfer, "_filesystems", {})
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        assert all_samples(open_shards("gs://bucket/some/shards", tmp_path)) == all_samples(manifest)
        proxy.faults["train-000000.tar"] = [503]
        assert all_samples(open_shards("gs://bucket/some/shards", tmp_path / "2")) == all_samples(manifest)
        with pytest.raises(AuroraError, match="gs://bucket/other has no manifest.json"):
            open_shards("gs://bucket/other", tmp_path)


class HubStandIn(LocalFileSystem):
    """As huggingface_hub's filesystem it is not asynchronous; it reads hf://datasets/… from `root`."""

    protocol = "hf"
    root: Path
    seconds = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("hf://")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        time.sleep(self.seconds)
        return super().cat_file(str(self.root / path), start=start, end=end)


@pytest.fixture
def hub(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[HubStandIn]:
    monkeypatch.setattr(transfer, "_filesystems", {})
    monkeypatch.setattr(HubStandIn, "root", tmp_path, raising=False)
    shutil.copytree(shards, tmp_path / "datasets/org/name")
    monkeypatch.setitem(REGISTRY, "hf", HubStandIn)
    return HubStandIn


def test_hf_urls_go_through_its_filesystem(hub: type[HubStandIn], manifest: Manifest, tmp_path: Path) -> None:
    assert all_samples(open_shards("hf://datasets/org/name", tmp_path / "cache")) == all_samples(manifest)
    with pytest.raises(AuroraError, match="hf://datasets/org/other has no manifest.json"):
        open_shards("hf://datasets/org/other", tmp_path / "cache")


def test_a_filesystem_that_blocks_is_given_up(
    hub: type[HubStandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "seconds", 30.0)
    began = time.monotonic()
    with pytest.raises(AuroraError, match="no answer within 1 s, after 2 attempt"):
        open_shards("hf://datasets/org/name", tmp_path / "cache", patience=IMPATIENT)
    assert time.monotonic() - began < 10


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str, **_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(transfer, "_filesystems", {})
    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(AuroraError, match=r"s3:// needs the package s3fs: pip install 'aurora_ds\[remote\]'"):
        open_shards("s3://bucket/shards", tmp_path)

"""Reading samples by number, and refusing what is not a sample."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from aurora_ds.data.manifest import INDEX_NAME, Manifest, SampleAddress
from aurora_ds.data.reader import BLOCK, BadSample, ShardReader, parse_sample
from aurora_ds.data.store import LocalStore
from aurora_ds.errors import AuroraError

HERE = SampleAddress("train-000000.tar", 0, 0)


def members(*entries: tuple[str, bytes]) -> bytes:
    """Tar bytes of these members, without the end of the archive."""
    blocks = []
    for name, content in entries:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        blocks += [header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % 512)]
    return b"".join(blocks)


RECORD = json.dumps({"schema": 1, "captions": ["a"]}).encode()


def test_every_sample_is_where_the_manifest_says(manifest: Manifest) -> None:
    reader = ShardReader(manifest, most_open=2)
    for medium in [*range(44, -1, -1), 0, 44]:
        sample = reader.read("train", medium)
        assert sample.key == f"train-{medium:07d}-{medium:03d}"
        assert sample.record["media_id"] == f"train/{medium:03d}.{'png' if medium % 5 == 4 else 'jpg'}"
        assert sample.extension == ("png" if medium % 5 == 4 else "jpg")
        assert reader.record("train", medium) == (sample.key, sample.record)


def test_few_files_stay_open(manifest: Manifest) -> None:
    reader = ShardReader(manifest, most_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for medium in range(45):
        reader.read("train", medium)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_media_are_stored_as_they_came(manifest: Manifest) -> None:
    sample = ShardReader(manifest).read("test", 4)
    raw = manifest.folder.parent / "source/images/test/004.png"
    assert sample.media == raw.read_bytes()


def test_a_long_record_is_read_in_full(tmp_path: Path) -> None:
    record = json.dumps({"schema": 1, "captions": ["word " * 4000]}).encode()
    block = members(("a.json", record), ("a.jpg", b"x"))
    (tmp_path / "s.tar").write_bytes(block)

    class OneSample:
        store = LocalStore(tmp_path)

        def address(self, split: str, medium: int) -> SampleAddress:
            return SampleAddress("s.tar", 0, len(block))

        def kinds(self, split: str) -> tuple[str, ...]:
            return ()

        def checksums(self, split: str, of: str) -> list[int]:
            return [zlib.crc32(block[: -2 * BLOCK])]  # the medium is a header and one block

    key, found = ShardReader(OneSample()).record("train", 0)
    assert key == "a" and len(found["captions"][0]) == 20_000


@pytest.mark.parametrize(("member", "told_by_record"), [("record", True), ("medium", False)])
def test_one_changed_bit_is_noticed_by_whatever_reads_it(
    shards: Path, tmp_path: Path, member: str, told_by_record: bool
) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    reader = ShardReader(Manifest.load(folder))
    address = reader.manifest.address("test", 1)
    content = bytearray((folder / address.shard).read_bytes())
    # a letter of a caption, or a pixel of a picture that still decodes
    place = content.index(b"picture", address.start) if member == "record" else address.end - BLOCK
    content[place] ^= 1
    (folder / address.shard).write_bytes(content)
    with pytest.raises(BadSample, match="the sample at byte .* its checksum differs") as bad:
        reader.read("test", 1)
    assert bad.value.reason == "checksum"
    if told_by_record:
        with pytest.raises(BadSample, match="its checksum differs"):
            reader.record("test", 1)
    else:
        assert reader.record("test", 1)[0] == "test-0000001-001"
    assert (
        reader.read("test", 0).key == "test-0000000-000" and reader.read("test", 2).key == "test-0000002-002"
    )


def test_an_index_with_other_counts_is_noticed(shards: Path, tmp_path: Path) -> None:
    tensors = load_file(shards / INDEX_NAME)
    counts = tensors["test/counts/captions"]
    counts[[0, 1]] = counts[[1, 0]]  # the same sum
    manifest = Manifest.load(shards).with_arrays(tensors)
    manifest.index = None  # so that it does not refuse the counts itself
    reader = ShardReader(manifest)
    for read in (reader.read, reader.record):
        with pytest.raises(BadSample, match="does not have the 2 captions that the index says") as bad:
            read("test", 0)
        assert bad.value.reason == "record"
        read("test", 2)


def test_plain_webdataset_reads_a_shard(manifest: Manifest) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = manifest.folder / manifest.split("train").shards[0].file
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [f"train-{n:07d}-{n:03d}" for n in range(7)]
    assert samples[2]["json"]["captions"][0] == "train picture 2 told in words."
    assert samples[0]["jpg"].size == (40, 32) and samples[4]["png"].size == (40, 32)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (members(("../a.json", RECORD), ("a.jpg", b"x")), "not a file with a plain name"),
        (members(("/etc/a.json", RECORD), ("a.jpg", b"x")), "not a file with a plain name"),
        (members(("a.json", RECORD), ("a.pickle", b"x")), "type that samples do not have"),
        (members(("a.json", RECORD), ("b.jpg", b"x")), "stands among those of sample a"),
        (members(("a.json", RECORD)), "hold 0 media"),
        (members(("a.json", b"{"), ("a.jpg", b"x")), "is not JSON"),
        (members(("a.json", b'{"schema": 2}'), ("a.jpg", b"x")), "not a record of schema 1"),
        (members(("a.json", RECORD), ("a.jpg", b"x" * 600))[:-600], "reaches beyond its sample"),
        (b"no tar header" * 100, "no tar header at byte 0"),
    ],
)
def test_what_is_no_sample_is_refused(block: bytes, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        parse_sample(block, HERE)


def test_links_are_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("a.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(BadSample, match="not a file with a plain name"):
        parse_sample(buffer.getvalue()[:512], HERE)


def test_missing_and_cut_shards(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    (folder / "train-000001.tar").unlink()
    os.truncate(folder / "train-000002.tar", 6000)
    reader = ShardReader(Manifest.load(folder))
    with pytest.raises(AuroraError, match="train-000001.tar is in the manifest but not in the folder"):
        reader.read("train", 7)
    with pytest.raises(BadSample, match="train-000002.tar ends inside the sample"):
        reader.read("train", 20)

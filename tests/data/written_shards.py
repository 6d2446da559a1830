"""Shards of every kind of sample, written by a tar writer that is not the converter's."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawn_clips import make_clip
from PIL import Image

from aurora_ds.data.manifest import Manifest, ShardEntry, SplitEntry

KINDS = ("captions", "questions", "statements", "phrases", "moments")


class Written(NamedTuple):
    """A sample to write: media are what follows the key in the member's name, and the bytes."""

    key: str
    record: dict[str, Any]
    media: list[tuple[str, bytes]]


def write_shards(folder: Path, splits: dict[str, list[list[Written]]], **fields: Any) -> Manifest:
    """Writes the shards of every split, the index and manifest.json (`fields` go into it)."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, arrays = {}, {}
    for name, shards in splits.items():
        entries[name], parts = [], []
        for number, samples in enumerate(shards):
            content, part = _tar(samples)
            file = f"{name}-{number:06d}.tar"
            (folder / file).write_bytes(content)
            totals = {kind: sum(numbers) for kind, numbers in part["counts"].items() if sum(numbers)}
            entries[name].append(
                ShardEntry(
                    file=file,
                    samples=len(samples),
                    pairs=sum(totals.values()),
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    counts=totals,
                )
            )
            parts.append(part)
        arrays[f"{name}/offsets"] = np.concatenate([part["offsets"] for part in parts]).astype(np.int64)
        arrays[f"{name}/crc32"] = np.concatenate([part["whole"] for part in parts]).astype(np.uint32)
        arrays[f"{name}/crc32/record"] = np.concatenate([part["record"] for part in parts]).astype(np.uint32)
        for kind in KINDS:
            counts = np.concatenate([part["counts"][kind] for part in parts]).astype(np.int32)
            if counts.any():
                arrays[f"{name}/counts/{kind}"] = counts
    splits_of = {name: SplitEntry.of(shards) for name, shards in entries.items()}
    manifest = Manifest(schema=1, dataset="written", licence="none", splits=splits_of, **fields)
    manifest.with_arrays(arrays).save(folder)
    return Manifest.load(folder)


def _tar(samples: list[Written]) -> tuple[bytes, dict[str, Any]]:
    buffer = io.BytesIO()
    part: dict[str, Any] = {"offsets": [0], "whole": [], "record": [], "counts": {kind: [] for kind in KINDS}}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            record = json.dumps({"schema": 1, "media_id": sample.key, **sample.record}).encode()
            for name, content in [("json", record), *sample.media]:
                member = tarfile.TarInfo(f"{sample.key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if name == "json":
                    record_end = buffer.tell()
            start = part["offsets"][-1]
            whole = buffer.getvalue()[start:]
            part["offsets"].append(buffer.tell())
            part["whole"].append(zlib.crc32(whole))
            part["record"].append(zlib.crc32(whole[: record_end - start]))
            for kind in KINDS:
                part["counts"][kind].append(len(sample.record.get(kind, [])))
    return buffer.getvalue(), part


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (120, 90)) -> bytes:
    """An encoded picture of coloured blocks that tells its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def image_sample(number: int, **record: Any) -> Written:
    """An image with captions, or with the annotations of `record`."""
    record = record or {"captions": [f"picture {number} in colour", "many blocks"]}
    return Written(f"image-{number}", {"width": 120, "height": 90, **record}, [("jpg", picture(number))])


def pair_sample(number: int) -> Written:
    """Two images with a statement."""
    statements = [{"sentence": "both pictures show blocks", "label": "True", "identifier": f"{number}-0"}]
    media = [("0.jpg", picture(number)), ("1.png", picture(number + 1, "PNG", (60, 80)))]
    return Written(
        f"pair-{number}",
        {"kind": "images", "sizes": [[120, 90], [60, 80]], "statements": statements},
        media,
    )


def clip_sample(number: int, **record: Any) -> Written:
    """A clip of one second with captions, or with the annotations of `record`."""
    record = record or {"captions": ["blocks move to the left"]}
    clip = {"kind": "video", "width": 64, "height": 48, "seconds": 1.0, "frames": 25, "fps": 25.0}
    return Written(f"clip-{number}", {**clip, **record}, [("mp4", make_clip(count=25 + number))])


def frames_sample(number: int) -> Written:
    """Four stored frames of a clip with captions."""
    record = {
        "kind": "frames",
        "width": 120,
        "height": 90,
        "frame_seconds": [0.0, 0.5, 1.0, 1.5],
        "source": {"seconds": 2.0, "frames": 50, "fps": 25.0, "width": 120, "height": 90},
        "captions": ["blocks change their colour"],
    }
    return Written(f"frames-{number}", record, [(f"{n:03d}.jpg", picture(10 * number + n)) for n in range(4)])


QUESTIONS = [
    {
        "question": "What is moving?",
        "question_id": 7,
        "answers": [{"answer": "blocks", "weight": 0.7}, {"answer": "colours", "weight": 0.3}],
    }
]
PHRASES = [
    {"phrase": "the block on the left", "box": [10, 20, 40, 50], "ref_id": 1, "ann_id": 2, "sent_id": 3}
]
MOMENTS = [{"caption": "the blocks stop", "times": [[0, 0], [0, 1]], "annotation_id": 5}]


def write_all_kinds(folder: Path) -> Manifest:
    """One split per kind of sample or annotation, two samples each (captions: five in two shards)."""
    return write_shards(
        folder,
        {
            "captions": [[image_sample(n) for n in range(3)], [image_sample(n) for n in (3, 4)]],
            "pairs": [[pair_sample(20), pair_sample(30)]],
            "clips": [[clip_sample(0), clip_sample(1, questions=QUESTIONS)]],
            "frames": [[frames_sample(4), frames_sample(5)]],
            "phrases": [[image_sample(60, phrases=PHRASES), image_sample(61, questions=QUESTIONS)]],
            "moments": [[clip_sample(2, moments=MOMENTS)]],
        },
    )

"""Converted shards in the hands of other readers: plain webdataset, and megatron-energon after its prepare step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from drawn_clips import CLIP_RECIPE, make_clip
from drawn_data import write_recipe, write_source

from aurora_ds.data.convert import convert
from aurora_ds.data.decode import open_image
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import Sample, ShardReader
from aurora_ds.data.shardcheck import verify_shards

NLVR2 = {"label": "True", "sentence": "Both show blocks.", "directory": 1, "synset": "block"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A converted folder for every kind of sample."""
    root = tmp_path_factory.mktemp("interoperation")
    write_source(root / "photos", 9, 3)
    convert(write_recipe(root / "photos.yaml", 4), root / "photos", root / "image")
    shutil.copytree(root / "photos/images/train", root / "pairs/dev")
    rows = []
    for pair in range(4):
        rows.append({**NLVR2, "identifier": f"dev-{pair}-0-0"})
        for side in (0, 1):
            shutil.copy(
                root / f"pairs/dev/{2 * pair + side:03d}.{'png' if 2 * pair + side == 4 else 'jpg'}",
                root / f"pairs/dev/dev-{pair}-0-img{side}.png",
            )
    (root / "pairs/dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert("nlvr2", root / "pairs", root / "images")
    (root / "films.yaml").write_text(yaml.safe_dump(CLIP_RECIPE))
    for kind, frames in (("video", None), ("frames", 3)):
        films = root / f"{kind}_source"
        (films / "clips").mkdir(parents=True)
        for number in range(3):
            (films / f"clips/{kind}{number}.mp4").write_bytes(make_clip(count=20 + number))
        rows = [{"image": f"{kind}{n}.mp4", "caption": f"clip {n}", "split": "train"} for n in range(3)]
        (films / "annotations.json").write_text(json.dumps(rows))
        convert(root / "films.yaml", films, root / kind, video_frames=frames, size=24 if frames else None)
    return {kind: root / kind for kind in ("image", "images", "video", "frames")}


def own(folder: Path) -> dict[str, Sample]:
    """All samples by key, as our reader gives them."""
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    samples = [reader.read(split, n) for split in manifest.splits for n in range(manifest.media(split))]
    return {sample.key: sample for sample in samples}


def names(sample: Sample) -> list[str]:
    """What other readers call the parts."""
    width = 3 if sample.kind == "frames" else 1
    numbered = sample.kind in ("images", "frames")
    return [
        f"{number:0{width}d}.{part.extension}" if numbered else part.extension
        for number, part in enumerate(sample.parts)
    ]


@pytest.mark.parametrize("kind", ["image", "images", "video", "frames"])
def test_plain_webdataset_reads_every_kind(kind: str, converted: dict[str, Path]) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = sorted(str(path) for path in converted[kind].glob("*.tar"))
    expected = own(converted[kind])
    assert expected and {sample.kind for sample in expected.values()} == {kind}
    raw = {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert raw.keys() == expected.keys()
    for key, sample in expected.items():
        found = {name: value for name, value in raw[key].items() if not name.startswith("__")}
        assert json.loads(found.pop("json")) == sample.record
        assert found == {name: part.content for name, part in zip(names(sample), sample.parts, strict=True)}


@pytest.mark.parametrize("kind", ["image", "images", "frames"])
def test_webdataset_decodes_them_itself(kind: str, converted: dict[str, Path]) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = sorted(str(path) for path in converted[kind].glob("*.tar"))
    expected, count = own(converted[kind]), 0
    for found in webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb"):
        sample = expected[found["__key__"]]
        assert found["json"] == sample.record
        for name, part in zip(names(sample), sample.parts, strict=True):
            assert np.array_equal(found[name], open_image(part.content, 10_000, name))
        count += 1
    assert count == len(expected)


@pytest.fixture(scope="module")
def energon() -> Any:
    return pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")


@pytest.fixture(scope="module")
def prepared(energon: Any, converted: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of every kind in one folder, as splits image, images, video and frames, prepared by its own command."""
    folder = tmp_path_factory.mktemp("energon") / "shards"
    folder.mkdir()
    for kind, source in converted.items():
        for path in sorted(source.glob("*.tar")):
            shutil.copy(path, folder / f"{kind}-{path.name}")
    prepare(folder, *(f"{kind}:{kind}-.*" for kind in converted))
    return folder


def prepare(folder: Path, *splits: str) -> None:
    """`energon prepare` without questions."""
    options = [word for split in splits for word in ("--split-parts", split)]
    command = "import sys; from megatron.energon.cli.main import main; sys.exit(main())"
    subprocess.run(
        [sys.executable, "-c", command, "prepare", "--non-interactive", "--no-progress", "--num-workers", "1"]
        + [*options, "--sample-type", "CrudeWebdataset", str(folder)],
        check=True,
        capture_output=True,
        timeout=120,
    )


def energon_samples(energon: Any, folder: Path, split: str) -> dict[str, dict[str, Any]]:
    """All samples of a split by key, as energon's loader gives them, decoded by energon."""

    @dataclass
    class Read(energon.Sample):
        parts: dict[str, Any]

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Read:
        parts = {name: value for name, value in sample.items() if not name.startswith("__")}
        return Read(**energon.basic_sample_keys(sample), parts=parts)

    class Plain(energon.DefaultTaskEncoder):
        decoder = energon.SampleDecoder(image_decode="pilrgb", av_decode="AVDecoder")
        cookers = [energon.Cooker(cook)]

        def batch(self, samples: list[Read]) -> list[Read]:
            return samples

    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = energon.get_val_dataset(
        folder, split_part=split, worker_config=workers, batch_size=2, task_encoder=Plain()
    )
    return {sample.__key__: sample.parts for batch in energon.get_loader(dataset) for sample in batch}


@pytest.mark.parametrize("kind", ["image", "images", "frames"])
def test_energon_reads_pictures_after_its_prepare(
    kind: str, energon: Any, prepared: Path, converted: dict[str, Path]
) -> None:
    found, expected = energon_samples(energon, prepared, kind), own(converted[kind])
    assert found.keys() == expected.keys()
    for key, sample in expected.items():
        assert found[key].pop("json") == sample.record
        assert list(found[key]) == names(sample)
        for name, part in zip(names(sample), sample.parts, strict=True):
            assert np.array_equal(np.asarray(found[key][name]), open_image(part.content, 10_000, name))


def test_energon_reads_clips_after_its_prepare(
    energon: Any, prepared: Path, converted: dict[str, Path]
) -> None:
    found, expected = energon_samples(energon, prepared, "video"), own(converted["video"])
    assert found.keys() == expected.keys() and len(found) == 3
    for key, sample in expected.items():
        assert found[key]["json"] == sample.record
        decoder = found[key][sample.extension]
        assert decoder.stream.getvalue() == sample.media
        clips, _ = decoder.get_video_clips([(0, sample.record["frames"] - 1)], video_unit="frames")
        shape = (sample.record["frames"], 3, sample.record["height"], sample.record["width"])
        assert tuple(clips[0].shape) == shape


def test_a_prepared_folder_stays_what_its_manifest_says(
    energon: Any, converted: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(converted["image"], tmp_path / "shards")
    prepare(folder, "train:train-.*", "test:test-.*")
    assert verify_shards(folder)["problems"] == 0
    assert energon_samples(energon, folder, "test").keys() == {
        key for key in own(folder) if key.startswith("test-")
    }

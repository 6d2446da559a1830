"""Resuming deep inside a large epoch: from opening the shards to the first batch at sample one million.

10,000 shards of 1,000 samples with one caption each. All shard files are links to one small tar, so ten million
samples are there to be read at the cost of a thousand; manifest and index have their full size. The run resumes at the
optimizer step that begins with sample one million (global batch 64, 64 lanes, one rank, no worker processes).

Counted, in fresh processes: reading manifest and index, making the plan, finding the samples, reading and decoding
them, until the first whole batch of 64 is there; "first sample" is until the first of them is decoded. Not counted: the
interpreter's start and the imports (torch takes seconds). Peak memory is of the whole process.

    python scripts/bench/resume_plan.py [--quick] [--repeats 5]
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    peak_memory_mb,
    write_results,
)

SHARDS, SAMPLES, FIRST, BATCH = 10_000, 1_000, 1_000_000, 64
BAR_SECONDS = 1.0


def make_shards(folder: Path, shards: int) -> None:
    """One tar of SAMPLES little pictures, `shards` links to it, and the manifest of all."""
    import numpy as np
    from PIL import Image

    from aurora_ds.data.convert import convert
    from aurora_ds.data.manifest import Manifest, ShardEntry, SplitEntry

    raw, one = folder / "raw", folder / "one"
    (raw / "images").mkdir(parents=True)
    listed = []
    for number in range(SAMPLES):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=90)
        (raw / "images" / f"{number}.jpg").write_bytes(content.getvalue())
        listed.append({"image": f"{number}.jpg", "caption": [f"picture {number}"], "split": "train"})
    (raw / "annotations.json").write_text(json.dumps(listed))
    recipe = folder / "one.yaml"
    from aurora_ds.data.convert.recipe import RECIPE_FOLDERS

    text = (RECIPE_FOLDERS[0] / "folder.yaml").read_text()
    recipe.write_text(text.replace("samples_per_shard: 500", f"samples_per_shard: {SAMPLES}"))
    convert(recipe, raw, one, workers=1)
    small = Manifest.load(one)
    entry = small.split("train").shards[0]
    entries, many = [], folder / "shards"
    many.mkdir()
    for number in range(shards):
        name = f"train-{number:06d}.tar"
        (many / name).symlink_to(one / entry.file)
        entries.append(ShardEntry(**{**entry.model_dump(), "file": name}))
    arrays = {name: np.tile(small._arrays[name], shards) for name in small._arrays}
    whole = Manifest(schema=1, dataset="large", splits={"train": SplitEntry.of(entries)})
    whole.with_arrays(arrays).save(many)


class NoWords:
    """Texts are not what is measured."""

    def encode(self, texts, max_tokens, single=False):
        import torch

        ids = torch.ones(len(texts), 2, dtype=torch.long)
        return ids, ids


def measure(folder: Path) -> dict[str, float]:
    """One opening, in this process."""
    from aurora_ds.config import RunConfig
    from aurora_ds.data import loader, media

    config = RunConfig()
    config.backbone.vision.image_size = 32
    config.data.shards, config.data.workers = str(folder / "shards"), 0
    config.train.global_batch_size = BATCH
    imported = peak_memory_mb()
    first: list[float] = []
    decode = media.MediaReader.read

    def read(*arguments, **named):
        found = decode(*arguments, **named)
        first.append(time.perf_counter())
        return found

    media.MediaReader.read = read
    total = int(json.loads((folder / "shards.json").read_text()))
    start = time.perf_counter()
    batches = loader.train_loader(
        config, NoWords(), 1, 0, epoch=3, start_step=min(FIRST, total // 2) // BATCH
    )
    opened = time.perf_counter()
    batch = next(iter(batches))
    end = time.perf_counter()
    assert len(batch["keys"]) == BATCH and batch["skipped"] == 0
    return {
        "plan_s": opened - start,
        "first_sample_s": first[0] - start,
        "first_batch_s": end - start,
        "imported_mb": imported,
        "peak_mb": peak_memory_mb(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 shards, one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.child)))
        return
    shards, repeats = (200, 1) if chosen.quick else (SHARDS, chosen.repeats)
    with tempfile.TemporaryDirectory() as place:
        make_shards(Path(place), shards)
        (Path(place) / "shards.json").write_text(str(shards * SAMPLES))
        files = [Path(place) / "shards" / name for name in ("manifest.json", "index.safetensors")]
        sizes = {path.name: path.stat().st_size for path in files}
        runs = [fresh_process("resume_plan.py", ["--child", place], threads=1) for _ in range(repeats)]
    middle = {name: median([run[name] for run in runs]) for name in runs[0]}
    worst = max(run["first_sample_s"] for run in runs)
    facts = machine_facts(threads=1)
    head = ["", "median of processes", "bar"]
    rows = [
        ["plan ready (manifest, index, chunks) (s)", f"{middle['plan_s']:.3f}", ""],
        [
            "first sample decoded (s)",
            f"{middle['first_sample_s']:.3f} (worst {worst:.3f})",
            f"<= {BAR_SECONDS:g}",
        ],
        ["first batch of 64 (s)", f"{middle['first_batch_s']:.3f}", ""],
        ["memory after imports (MiB)", f"{middle['imported_mb']:.0f}", ""],
        ["peak memory (MiB)", f"{middle['peak_mb']:.0f}", ""],
    ]
    text = (
        f"# Resume at sample {min(FIRST, shards * SAMPLES // 2):,} of {shards:,} shards of {SAMPLES:,}\n\n"
        f"{markdown_table(head, rows)}\n\n{repeats} fresh processes; interpreter start and imports are not counted. "
        f"manifest.json {sizes['manifest.json'] / 1e6:.1f} MB, index {sizes['index.safetensors'] / 1e6:.1f} MB.\n\n"
        f"{facts_line(facts)}"
    )
    write_results(
        "resume_plan", {"facts": facts, "files": sizes, "runs": runs, "median": middle}, text, chosen.quick
    )


if __name__ == "__main__":
    main()

"""The training loader on 2,000 photographs of 640 x 480, against its parts alone and a plain webdataset pipeline.

The photographs are crops of those in tests/data/photos, each another one, resized to 640 x 480, JPEG quality 90, in
shards of 250. Work per image: read, decode, resize to 224 (bicubic), normalise; batches of 64, float32; 2 workers; no
augmentation. Contenders take turns in fresh processes:

loader: `train_loader` as training uses it, captions included.
bare: two processes that decode and resize the same bytes, from memory, in a plain loop with Pillow: no reading, no
    normalising, no batches. bare_same: the same with the loader's own function to decode.
webdataset: shards through `webdataset.WebDataset`, shuffle(1000), decode("pil"), the same transform, batched(64), and a
    DataLoader with 2 workers.
loader_pillow: the loader with data.image_decoder=pillow, as others decode.

Every contender goes through the images four times without a break (the loader by a weight of 4 in data.mix); the clock
runs from before the first worker starts to the last batch. Worker memory is that of the same two workers near the end
of the first, second and third time through the images: resident pages without those of files and shared batches.

    python scripts/bench/loader.py [--quick] [--repeats 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from measurement import (
    REPOSITORY,
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    sharing_note,
    write_results,
)

PHOTOS, SIZE, BATCH, WORKERS, PASSES, MEMORY_EPOCHS = 2000, 224, 64, 2, 4, 3
BAR_BARE, BAR_WEBDATASET = 0.92, 1.0
CONTENDERS = ("loader", "bare", "bare_same", "loader_pillow", "webdataset")


def make_shards(folder: Path, photos: int) -> None:
    """`photos` crops of the photographs of the tests, converted."""
    import numpy as np
    from PIL import Image

    from aurora_ds.data.convert import convert
    from aurora_ds.data.convert.recipe import RECIPE_FOLDERS

    sources = sorted((REPOSITORY / "tests" / "data" / "photos" / "images").iterdir())
    opened = [Image.open(path).convert("RGB") for path in sources]
    (folder / "raw" / "images").mkdir(parents=True)
    random, listed = np.random.default_rng(0), []
    for number in range(photos):
        image = opened[number % len(opened)]
        scale = random.uniform(0.5, 1.0) * min(image.width / 640, image.height / 480)
        width, height = scale * 640, scale * 480
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        crop = image.resize((640, 480), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        content = io.BytesIO()
        crop.save(content, "JPEG", quality=90)
        (folder / "raw" / "images" / f"{number}.jpg").write_bytes(content.getvalue())
        listed.append(
            {"image": f"{number}.jpg", "caption": [f"photograph number {number}"], "split": "train"}
        )
    (folder / "raw" / "annotations.json").write_text(json.dumps(listed))
    text = (RECIPE_FOLDERS[0] / "folder.yaml").read_text()
    (folder / "photos.yaml").write_text(text.replace("samples_per_shard: 500", "samples_per_shard: 250"))
    convert(folder / "photos.yaml", folder / "raw", folder / "shards", workers=2)


class Words:
    """A tokenizer that costs nothing: the pipelines beside it have none."""

    def encode(self, texts: list[str], max_tokens: int, single: bool = False) -> tuple[Any, Any]:
        import torch

        ids = torch.ones(len(texts), 4, dtype=torch.long)
        return ids, ids


def run_config(folder: Path, decoder: str) -> Any:
    from aurora_ds.config import RunConfig

    config = RunConfig()
    config.backbone.vision.image_size = SIZE
    config.data.shards, config.data.workers = str(folder / "shards"), WORKERS
    config.data.augment, config.data.image_decoder = "none", decoder
    config.train.global_batch_size = BATCH
    return config


def loader(folder: Path, decoder: str = "auto") -> int:
    """Images of one epoch of PASSES passes."""
    from aurora_ds.config import MixEntry
    from aurora_ds.data.loader import train_loader

    config = run_config(folder, decoder)
    config.data.mix = [MixEntry(shards=config.data.shards, weight=PASSES)]
    return sum(len(batch["keys"]) for batch in train_loader(config, Words(), 1, 0, 0))


def worker_memory(folder: Path) -> list[list[float]]:
    """MiB of each worker near the end of each of MEMORY_EPOCHS times through the images."""
    import psutil

    from aurora_ds.config import MixEntry
    from aurora_ds.data.loader import train_loader

    config = run_config(folder, "auto")
    config.data.mix = [MixEntry(shards=config.data.shards, weight=MEMORY_EPOCHS)]
    batches, memory = train_loader(config, Words(), 1, 0, 0), []
    part = (len(batches) - 3 * WORKERS) // MEMORY_EPOCHS
    for number, _ in enumerate(batches, 1):
        if number % part == 0 and len(memory) < MEMORY_EPOCHS:
            children = psutil.Process().children()
            memory.append(
                [(info.rss - info.shared) / 2**20 for info in (each.memory_info() for each in children)]
            )
    return memory


def bare(folder: Path, own: bool = False) -> int:
    """Decode and resize in two processes, nothing else. `own`: by the loader's function."""
    from aurora_ds.data.manifest import Manifest
    from aurora_ds.data.reader import ShardReader

    manifest = Manifest.load(folder / "shards")
    reader = ShardReader(manifest)
    contents = [reader.read("train", number).media for number in range(manifest.media("train"))]
    global start
    start = began()
    context = multiprocessing.get_context("fork")
    shares = [contents[place::WORKERS] * PASSES for place in range(WORKERS)]
    workers = [context.Process(target=_decode, args=(share, own)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return len(contents) * PASSES


def _decode(contents: list[bytes], own: bool) -> None:
    from PIL import Image

    from aurora_ds.data.decode import open_image

    for content in contents:
        image = open_image(content, 10**8, "it") if own else Image.open(io.BytesIO(content)).convert("RGB")
        image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def webdataset(folder: Path) -> int:
    """The usual pipeline."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    from aurora_ds.data.image import test_transform

    shards = sorted(str(path) for path in (folder / "shards").glob("train-*.tar"))

    def transform(image: Any) -> Any:
        return test_transform(image, SIZE)

    pipeline = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .repeat(PASSES)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "json")
        .map_tuple(transform, lambda record: record["captions"][0])
        .batched(BATCH, partial=False)
    )
    batches = DataLoader(pipeline, batch_size=None, num_workers=WORKERS, prefetch_factor=2)
    return sum(len(pictures) for pictures, _ in batches)


def began() -> tuple[float, float]:
    """(clock, processor seconds of this process and of its finished children)"""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(contender: str, folder: Path) -> dict[str, Any]:
    """One run in this process."""
    import torch

    torch.set_num_threads(1)
    # imports are not what is measured
    from aurora_ds.data import loader as imported  # noqa: F401

    if contender == "memory":
        return {"memory": worker_memory(folder)}
    if contender == "webdataset":
        import webdataset as also_imported  # noqa: F401
    global start
    start = began()
    images = {
        "loader": lambda: loader(folder),
        "bare": lambda: bare(folder),
        "bare_same": lambda: bare(folder, own=True),
        "loader_pillow": lambda: loader(folder, "pillow"),
        "webdataset": lambda: webdataset(folder),
    }[contender]()
    clock, processor = began()
    seconds, used = clock - start[0], processor - start[1]
    return {
        "images": images,
        "seconds": seconds,
        "per_second": images / seconds,
        "processor_ms_per_image": 1000 * used / images,
    }


start = (0.0, 0.0)


def report(runs: dict[str, list[dict]], memory: list[list[float]], facts: dict, repeats: int) -> str:
    middle = {name: median([run["per_second"] for run in each]) for name, each in runs.items()}
    work = {name: median([run["processor_ms_per_image"] for run in each]) for name, each in runs.items()}
    rows = [[name, f"{middle[name]:.0f}", f"{work[name]:.2f}"] for name in CONTENDERS]
    lines = [markdown_table(["contender", "images/s (median)", "processor ms/image"], rows), ""]
    ratios = [
        ["loader / bare", "loader", "bare", f">= {BAR_BARE}"],
        ["loader / bare_same", "loader", "bare_same", ""],
        ["loader_pillow / bare", "loader_pillow", "bare", ""],
        ["loader / webdataset", "loader", "webdataset", f">= {BAR_WEBDATASET}"],
        ["loader_pillow / webdataset", "loader_pillow", "webdataset", ""],
    ]
    table = [
        [name, f"{middle[ours] / middle[theirs]:.3f}", f"{work[theirs] / work[ours]:.3f}", bar]
        for name, ours, theirs, bar in ratios
    ]
    lines.append(markdown_table(["ratio", "rate", "processor time, inverse", "bar"], table))
    epochs = "; ".join("/".join(f"{each:.0f}" for each in epoch) for epoch in memory)
    seconds = median([run["seconds"] for run in runs["loader"]])
    used = median([run["processor_ms_per_image"] * run["images"] / 1000 for run in runs["loader"]])
    return (
        f"# The loader on {PHOTOS:,} photographs of 640 x 480\n\n" + "\n".join(lines) + "\n\n"
        f"Memory of the {WORKERS} workers near the end of each of {MEMORY_EPOCHS} times through, MiB: {epochs}.\n\n"
        f"Medians of {repeats} runs in turn. {sharing_note(seconds, used, WORKERS)}{facts_line(facts)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 photographs, one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the shards are kept; default: a temporary folder")
    parser.add_argument("--child", choices=(*CONTENDERS, "memory"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.child, chosen.folder)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.folder or Path(place)
        if not (folder / "shards" / "manifest.json").is_file():
            make_shards(folder, 256 if chosen.quick else PHOTOS)
        repeats = 1 if chosen.quick else chosen.repeats
        runs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
        for _ in range(repeats):
            for name in CONTENDERS:
                arguments = ["--child", name, "--folder", str(folder)]
                runs[name].append(fresh_process("loader.py", arguments, threads=1))
        memory = fresh_process("loader.py", ["--child", "memory", "--folder", str(folder)], threads=1)[
            "memory"
        ]
    facts = machine_facts(threads=1)
    text = report(runs, memory, facts, repeats)
    write_results("loader", {"facts": facts, "runs": runs, "worker_memory_mib": memory}, text, chosen.quick)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

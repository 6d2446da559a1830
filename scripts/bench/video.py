"""Eight frames of a clip: through the training loader, by other ways of seeking, and from other ways of storage.

The clips are walks over the photographs of tests/data/photos with noise, as large and long as those of MSR-VTT:
320 x 240, 30 frames a second, 15 s, H.264 by x264 at 300 kbit/s with a key frame every 250 frames, as most clips from
the web, 30 or 12. Contenders take turns in fresh processes, and every one reads all clips several times.

loader: `train_loader`, 2 workers, batches of 8 clips, 8 uniform frames, 224 x 224, normalised, no augmentation.
bare: two processes that call `sample_frames` on the same bytes in memory: frames as decoded, not resized, no batches.
bare_resized: the same with frames of 224 x 224.
hybrid, sequential, seek: one process; ours, ours decoding every packet, and a seek to the key frame before every frame.
torchcodec: one process, `sample_frames(decoder="torchcodec")`, where it is installed.
original, reencoded, frames: one process, from a stored sample to the tensor of 8 x 3 x 224 x 224.
memory: 1,000 clips opened, sampled and closed in one process, every tenth one damaged.

    python scripts/bench/video.py [--quick] [--repeats 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import gc
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

CLIPS, FRAMES_PER_CLIP, RATE, WIDTH, HEIGHT, BITS = 16, 450, 30, 320, 240, 300_000
GROUPS, COUNT, SIZE, BATCH, WORKERS = (250, 30, 12), 8, 224, 8, 2
COPIES, PASSES = 8, 3  # of each clip in the loader's shards and for the bare sampler; of all clips otherwise
STORED_SIDE, OPENS, BAR = 224, 1000, 0.9
WAYS = ("hybrid", "sequential", "seek")
STORAGES = ("original", "reencoded", "frames")
CONTENDERS = [
    "loader",
    "bare",
    "bare_resized",
    *(f"{way}-{group}" for group in GROUPS for way in WAYS),
    "torchcodec-250",
    *STORAGES,
]
start = (0.0, 0.0)


def make_clip(number: int, group: int) -> bytes:
    """A walk over one of the photographs."""
    import av
    import numpy as np
    from PIL import Image

    sources = sorted((REPOSITORY / "tests" / "data" / "photos" / "images").iterdir())
    random = np.random.default_rng(number)
    image = Image.open(sources[number % len(sources)]).convert("RGB")
    scale = 1.6 * max(WIDTH / image.width, HEIGHT / image.height)
    photograph = np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))
    room = np.array([photograph.shape[0] - HEIGHT, photograph.shape[1] - WIDTH])
    path = np.linspace(random.uniform(0, room), random.uniform(0, room), FRAMES_PER_CLIP).astype(int)
    noise = random.integers(-4, 5, (8, HEIGHT, WIDTH, 1))
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        options = {"preset": "fast", "g": str(group), "sc_threshold": "0", "threads": "1"}
        stream = output.add_stream("libx264", rate=RATE, options=options)
        stream.bit_rate = BITS
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame, (top, left) in enumerate(path):
            part = photograph[top : top + HEIGHT, left : left + WIDTH].astype(np.int16) + noise[frame % 8]
            picture = av.VideoFrame.from_ndarray(part.clip(0, 255).astype(np.uint8), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return target.getvalue()


def make_shards(folder: Path, clips: int) -> None:
    """Clips with every distance of key frames in clips-N/, and shards of those with the longest, stored three ways."""
    from aurora_ds.data.convert import convert
    from aurora_ds.data.convert.recipe import RECIPE_FOLDERS

    listed, raw = [], folder / "raw"
    raw.mkdir(parents=True)
    for number in range(clips):
        for group in GROUPS:
            path = folder / f"clips-{group}" / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(make_clip(number, group))
    for number in range(clips * COPIES):
        os.link(folder / f"clips-{GROUPS[0]}" / f"{number % clips}.mp4", raw / f"{number}.mp4")
        listed.append({"image": f"{number}.mp4", "caption": f"clip number {number}", "split": "train"})
    (raw / "annotations.json").write_text(json.dumps(listed))
    text = (RECIPE_FOLDERS[0] / "folder.yaml").read_text()
    recipe = folder / "clips.yaml"
    recipe.write_text(text.replace("samples_per_shard: 500", f"samples_per_shard: {BATCH}\nmedia: video"))
    convert(recipe, raw, folder / "repeated", workers=2)
    convert(recipe, raw, folder / "original", workers=2, limit=clips)
    convert(recipe, raw, folder / "reencoded", workers=2, limit=clips, video_reencode=True)
    convert(recipe, raw, folder / "frames", workers=2, limit=clips, video_frames=COUNT, size=STORED_SIDE)


class Words:
    """A tokenizer that costs nothing: what is beside the loader has none."""

    def encode(self, texts: list[str], max_tokens: int, single: bool = False) -> tuple[Any, Any]:
        import torch

        ids = torch.ones(len(texts), 4, dtype=torch.long)
        return ids, ids


def contents_of(folder: Path, group: int = GROUPS[0]) -> list[bytes]:
    paths = sorted((folder / f"clips-{group}").glob("*.mp4"), key=lambda path: int(path.stem))
    return [path.read_bytes() for path in paths]


def loader(folder: Path) -> int:
    from aurora_ds.config import RunConfig
    from aurora_ds.data.loader import train_loader

    config, clips = RunConfig(), 0
    config.backbone.vision.image_size = SIZE
    config.data.shards, config.data.workers, config.data.augment = str(folder / "repeated"), WORKERS, "none"
    config.data.video.frames, config.data.video.train_sampling = COUNT, "uniform"
    config.train.global_batch_size, config.data.lanes = BATCH, 8
    for batch in train_loader(config, Words(), 1, 0, 0):
        assert batch["image"].shape == (BATCH, COUNT, 3, SIZE, SIZE)
        clips += BATCH
    return clips


def bare(folder: Path, size: int | None = None) -> int:
    global start
    contents = contents_of(folder)
    start = began()
    context = multiprocessing.get_context("fork")
    parts = [contents[place::WORKERS] * COPIES for place in range(WORKERS)]
    workers = [context.Process(target=_sample_all, args=(part, "pyav", size)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return len(contents) * COPIES


def _sample_all(contents: list[bytes], decoder: str = "pyav", size: int | None = None) -> int:
    from aurora_ds.data.video import sample_frames

    for content in contents:
        sample_frames(content, COUNT, "uniform", name="clip", decoder=decoder, size=size)
    return len(contents)


def way(folder: Path, name: str, group: int) -> int:
    """One way of getting to the frames."""
    global start
    contents = contents_of(folder, group)
    if name == "torchcodec":
        _sample_all(contents[:1], name)
    start = began()
    if name in ("hybrid", "torchcodec"):
        return sum(_sample_all(contents, "pyav" if name == "hybrid" else name) for _ in range(PASSES))
    read = {"sequential": read_sequentially, "seek": read_by_seeking}[name]
    return sum(len(read(content)) > 0 for _ in range(PASSES) for content in contents)


def numbers_of(frames: int) -> list[int]:
    return [position * frames // COUNT for position in range(COUNT)]


def read_sequentially(content: bytes) -> list[Any]:
    from aurora_ds.data.video_pyav import open_clip

    with open_clip(content, "clip", jumps=False) as clip:
        return list(clip.each(numbers_of(len(clip))))


def read_by_seeking(content: bytes) -> list[Any]:
    """The simplest way that is exact: before each frame a seek to the key frame before it."""
    import av

    pictures = []
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        marks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        for number in numbers_of(len(marks)):
            container.seek(marks[number], stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= marks[number])
            pictures.append(frame.to_ndarray(format="rgb24"))
    return pictures


def storage(folder: Path, name: str) -> int:
    """From stored samples to tensors."""
    from aurora_ds.data.clip import clip_transform, sample_clip
    from aurora_ds.data.manifest import Manifest
    from aurora_ds.data.reader import ShardReader

    global start
    manifest = Manifest.load(folder / name)
    reader = ShardReader(manifest)
    samples = [reader.read("train", number) for number in range(manifest.media("train"))]
    start = began()
    for _ in range(PASSES):
        for sample in samples:
            frames, _ = sample_clip(sample, COUNT, "uniform", size=SIZE, max_pixels=10**8)
            clip_transform(frames, SIZE)
    return len(samples) * PASSES


def memory(folder: Path, opens: int) -> list[float]:
    """Resident MiB after every tenth part of `opens` opens. Collection is off: nothing may wait for it."""
    import psutil

    from aurora_ds.data.bad_sample import BadSample
    from aurora_ds.data.video import sample_frames

    contents, process, resident = contents_of(folder, GROUPS[-1])[:8], psutil.Process(), []
    gc.disable()
    for number in range(opens):
        content = contents[number % len(contents)]
        if number % 10 == 9:
            content = content[: len(content) // 2]
        try:
            sample_frames(content, COUNT, "uniform", name="clip")
            assert number % 10 != 9
        except BadSample:
            assert number % 10 == 9
        if (number + 1) % (opens // 10) == 0:
            resident.append(process.memory_info().rss / 2**20)
    return resident


def began() -> tuple[float, float]:
    """(clock, processor seconds of this process and of its finished children)"""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(contender: str, folder: Path) -> dict[str, Any]:
    """One run in this process."""
    import torch

    torch.set_num_threads(1)
    from aurora_ds.data import loader as imported  # noqa: F401 - imports are not what is measured
    from aurora_ds.data.video import probe

    probe(contents_of(folder)[0], "clip")  # nor is loading FFmpeg
    global start
    start = began()
    name, _, group = contender.partition("-")
    if group:
        clips = way(folder, name, int(group))
    elif name in STORAGES:
        clips = storage(folder, name)
    else:
        clips = loader(folder) if name == "loader" else bare(folder, SIZE if name == "bare_resized" else None)
    clock, processor = began()
    seconds, used = clock - start[0], processor - start[1]
    return {
        "clips": clips,
        "seconds": seconds,
        "ms": 1000 * seconds / clips,
        "processor_ms": 1000 * used / clips,
    }


def same_frames(folder: Path) -> int:
    """Clips whose frames are the same by all ways; raises where they are not."""
    import numpy as np

    from aurora_ds.data.video import read_frames

    clips = 0
    for group in GROUPS:
        for content in contents_of(folder, group)[:4]:
            expected = read_sequentially(content)
            assert np.array_equal(read_frames(content, numbers_of(FRAMES_PER_CLIP), "clip"), expected)
            assert np.array_equal(read_by_seeking(content), expected)
            clips += 1
    return clips


def has_torchcodec() -> bool:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def report(runs: dict[str, list[dict]], resident: list[float], sizes: dict[str, float], checked: int) -> str:
    clock = {name: median([run["ms"] for run in each]) for name, each in runs.items() if each}
    work = {name: median([run["processor_ms"] for run in each]) for name, each in runs.items() if each}
    rows = [
        ["loader, 2 workers", f"{1000 / clock['loader']:.1f}", f"{work['loader']:.1f}"],
        ["bare sampler, 2 processes", f"{1000 / clock['bare']:.1f}", f"{work['bare']:.1f}"],
        [
            "bare sampler, frames resized",
            f"{1000 / clock['bare_resized']:.1f}",
            f"{work['bare_resized']:.1f}",
        ],
    ]
    for name in ("bare", "bare_resized"):
        rate, inverse = clock[name] / clock["loader"], work[name] / work["loader"]
        rows.append([f"loader / {name}", f"**{rate:.3f}** (bar {BAR})", f"{inverse:.3f} (inverse)"])
    lines = [markdown_table(["", "clips/s", "processor ms a clip"], rows), ""]
    rows = [
        [str(group), *(f"{work[f'{each}-{group}']:.1f}" for each in WAYS)]
        + [f"{work[f'hybrid-{group}'] / min(work[f'{each}-{group}'] for each in WAYS[1:]):.2f}"]
        for group in GROUPS
    ]
    head = ["key frame every", *(f"{each}, ms" for each in WAYS), "hybrid / best other"]
    lines += [
        f"Processor ms a clip; the frames are the same ({checked} clips compared).\n",
        markdown_table(head, rows),
        "",
    ]
    rows = [
        [name, f"{work[name]:.1f}", f"{work[name] / work['original']:.2f}", f"{sizes[name]:.0f}"]
        for name in STORAGES
    ]
    lines += [
        markdown_table(["stored as", "processor ms a clip, to the tensor", "of original", "kB a clip"], rows),
        "",
    ]
    if "torchcodec-250" in work:
        ratio = work["torchcodec-250"] / work["hybrid-250"]
        lines.append(f"torchcodec / PyAV, processor time, key frame every 250: {ratio:.2f}.\n")
    growth = 1024 * (resident[-1] - resident[1]) / (0.8 * OPENS)
    lines.append(
        f"Resident MiB during {OPENS:,} opens: {', '.join(f'{each:.0f}' for each in resident)}; from the 200th on "
        f"{growth:.2f} KiB an open.\n"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 clips, one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the clips are kept; default: a temporary folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        by_memory = chosen.child == "memory"
        done = memory(chosen.folder, OPENS) if by_memory else measure(chosen.child, chosen.folder)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.folder or Path(place)
        if not (folder / "frames" / "manifest.json").is_file():
            make_shards(folder, BATCH if chosen.quick else CLIPS)
        checked, repeats = same_frames(folder), 1 if chosen.quick else chosen.repeats
        runs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
        for _ in range(repeats):
            for name in CONTENDERS:
                if name.startswith("torchcodec") and not has_torchcodec():
                    continue
                runs[name].append(
                    fresh_process("video.py", ["--child", name, "--folder", str(folder)], threads=1)
                )
        resident = fresh_process("video.py", ["--child", "memory", "--folder", str(folder)], threads=1)
        clips = len(contents_of(folder))
        sizes = {
            name: sum(path.stat().st_size for path in (folder / name).glob("*.tar")) / clips / 1000
            for name in STORAGES
        }
    facts = machine_facts(threads=1)
    seconds = median([run["seconds"] for run in runs["loader"]])
    used = median([run["processor_ms"] * run["clips"] / 1000 for run in runs["loader"]])
    tables = report(runs, resident, sizes, checked)
    text = (
        f"# Eight frames of a clip\n\n{clips} clips of {WIDTH} x {HEIGHT}, {FRAMES_PER_CLIP} frames, 300 kbit/s; "
        f"the loader and the bare sampler read them {COPIES} times, the others {PASSES} times.\n\n{tables}\n"
        f"Medians of {repeats} runs in turn. {sharing_note(seconds, used, WORKERS)}{facts_line(facts)}"
    )
    record = {"facts": facts, "runs": runs, "resident_mib": resident, "kilobytes_a_clip": sizes}
    write_results("video", record, text, chosen.quick)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

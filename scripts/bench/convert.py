"""Conversion of images to shards against `tar cf` of the same files on the same disk, and its memory.

About 2 GB of JPEG files (crops of the photographs in tests/data/photos at several qualities, 100 to 300 kB; each is
written several times with another comment inside, so no two files are equal) with five captions each. Contenders take
turns after all files were read once, so reading comes from the page cache for both; what an earlier run wrote is
removed and the disk is idle before each. `aurora_ds` is the whole command `aurora-ds shards convert folder --workers
2`, from the interpreter's start to its end: reading the annotations, looking at every image, a CRC-32 of every sample,
a sha256 of every shard, manifest and index. It always syncs every shard before renaming it, so the like-for-like rate
is against `tar cf` followed by a sync of the archive. Both are also given without any sync, which then leaves the data
in memory: ours with os.fsync replaced by nothing, for this comparison only.

Memory: the largest resident size of the command's own process and of its largest worker, for these images and for a
dataset with the annotation sizes of VQAv2 train (a JSON of more than 300 MB, tiny images).

    python scripts/bench/convert.py [--quick] [--repeat 5] [--folder DIR]

Aims: rate >= 0.7 of tar's; every process below 500 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measurement import (
    REPOSITORY,
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    write_results,
)

RATE_BAR, MEMORY_BAR = 0.7, 500  # share of tar's rate, MB
WORKERS = 2
CONTENDERS = {
    "tar_sync": "tar cf, then sync",
    "aurora_sync": "aurora_ds",
    "tar": "tar cf, no sync",
    "aurora": "aurora_ds, no sync",
}
PHOTOS = REPOSITORY / "tests" / "data" / "photos" / "images"


def make_images(folder: Path, megabytes: int) -> int:
    """Writes the files and annotations.json. Returns how many files."""
    from PIL import Image

    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.iterdir()) if path.suffix == ".jpg"]
    chance = random.Random(1)
    distinct = [_crop(photos[number % len(photos)], chance) for number in range(max(20, megabytes // 4))]
    (folder / "images").mkdir(parents=True)
    rows, written, number = [], 0, 0
    while written < megabytes * 1e6:
        content = distinct[number % len(distinct)]
        comment = f"copy {number}".encode()
        # a comment segment after the start marker: another file of the same picture
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        content = content[:2] + segment + content[2:]
        (folder / "images" / f"{number:06d}.jpg").write_bytes(content)
        words = [
            f"picture {number} told a {ordinal} time"
            for ordinal in ("first", "second", "third", "fourth", "fifth")
        ]
        rows.append({"image": f"{number:06d}.jpg", "caption": words, "split": "train"})
        written += len(content)
        number += 1
    (folder / "annotations.json").write_text(json.dumps(rows))
    return number


def _crop(photo: Any, chance: random.Random) -> bytes:
    """640x480 or so of a photograph, enlarged where it is smaller, as a JPEG of 100 to 300 kB."""
    width, height = chance.choice([(640, 480), (800, 600), (640, 640), (480, 640)])
    scale = max(1.0, 1.1 * width / photo.width, 1.1 * height / photo.height)
    photo = photo.resize((int(photo.width * scale), int(photo.height * scale)))
    left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
    crop = photo.crop((left, top, left + width, top + height))
    for quality in (chance.randint(88, 96), 98, 100):
        content = io.BytesIO()
        crop.save(content, "JPEG", quality=quality)
        if content.tell() >= 100_000:
            break
    return content.getvalue()


def make_questions(folder: Path, media: int) -> int:
    """A VQAv2 train set by size: five questions an image, ten answers each. Returns bytes of its largest file."""
    from PIL import Image

    (folder / "train2014").mkdir(parents=True)
    for number in range(media):
        if number % 50_000 == 0:  # a file system allows so many links to a file, ext4 for example 65,000
            any_image = folder / f"any_{number}.jpg"
            Image.new("RGB", (64, 48), "teal").save(any_image)
        os.link(any_image, folder / f"train2014/COCO_train2014_{number:012d}.jpg")
    chance = random.Random(2)
    words = ["yes", "no", "2", "red", "a dog", "on the table", "tennis", "left", "nothing", "surfing"]
    questions = open(folder / "v2_OpenEnded_mscoco_train2014_questions.json", "w", encoding="utf-8")
    annotations = open(folder / "v2_mscoco_train2014_annotations.json", "w", encoding="utf-8")
    with questions, annotations:
        questions.write('{"info": {}, "data_subtype": "train2014", "questions": [')
        annotations.write('{"info": {}, "data_subtype": "train2014", "annotations": [')
        for number in range(5 * media):
            image, separator = number // 5, ", " if number else ""
            row = {
                "image_id": image,
                "question": f"What is thing {number} on the left of it?",
                "question_id": number,
            }
            questions.write(separator + json.dumps(row))
            answers = [
                {"answer": chance.choice(words), "answer_confidence": "yes", "answer_id": place + 1}
                for place in range(10)
            ]
            row = {
                "question_type": "what is",
                "multiple_choice_answer": answers[0]["answer"],
                "answers": answers,
                "image_id": image,
                "answer_type": "other",
                "question_id": number,
            }
            annotations.write(separator + json.dumps(row))
        questions.write("]}")
        annotations.write("]}")
    return Path(annotations.name).stat().st_size


def questions_recipe(path: Path) -> Path:
    """The recipe vqav2 with its train split alone."""
    import yaml

    recipe = yaml.safe_load((REPOSITORY / "shards" / "vqav2.yaml").read_text(encoding="utf-8"))
    for way in recipe["annotations"]:
        way["optional"] = [key for key in way["files"] if not key.startswith("train")]
    recipe["expected"] = {}
    path.write_text(yaml.safe_dump(recipe))
    return path


def wait_until_quiet(most: float) -> None:
    """Until nobody else uses the cores for a moment, at most so many seconds."""
    end = time.monotonic() + most
    while psutil.cpu_percent(0.3) > 10 and time.monotonic() < end:
        pass


class Others:
    """How much of the cores other programs use from here on: it slows two workers more than one tar."""

    def __init__(self) -> None:
        self._busy, self._own, self._start = self._now(), self._mine(), time.perf_counter()

    def share(self) -> float:
        """Of all cores' time, 0 to 1."""
        used = self._now() - self._busy - (self._mine() - self._own)
        return max(0.0, used / (time.perf_counter() - self._start) / (os.cpu_count() or 1))

    def mine(self) -> float:
        """Processor time of this benchmark's own processes since then."""
        return self._mine() - self._own

    def _now(self) -> float:
        times = psutil.cpu_times()
        return times.user + times.nice + times.system

    def _mine(self) -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(contender: str, folder: Path, patience: float = 0.0) -> dict[str, Any]:
    """One run of a contender over folder/raw, in this process's child; its seconds and largest resident sizes."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    output.mkdir()
    wait_until_quiet(patience)
    others = Others()
    run = run_contender(contender, folder / "raw", output)
    return {**run, "others": others.share(), "processor_seconds": others.mine()}


def run_contender(contender: str, raw: Path, output: Path) -> dict[str, Any]:
    start = time.perf_counter()
    if contender.startswith("tar"):
        subprocess.run(
            ["tar", "cf", str(output / "all.tar"), "-C", str(raw), "images", "annotations.json"], check=True
        )
        if contender == "tar_sync":
            with open(output / "all.tar", "rb") as archive:
                os.fsync(archive.fileno())
        return {"seconds": time.perf_counter() - start}
    arguments = ["--recipe", "folder", "--source", str(raw), "--output", str(output)]
    sync = [] if contender == "aurora_sync" else ["--no-sync"]
    own = fresh_process("convert.py", ["--convert", *arguments, *sync], 1)
    return {"seconds": time.perf_counter() - start, **own}


def run_conversion(arguments: argparse.Namespace) -> dict[str, Any]:
    """The product's command in this process."""
    from aurora_ds.cli import main

    if arguments.no_sync:
        os.fsync = lambda handle: None
    command = ["shards", "convert", arguments.recipe, "--workers", str(WORKERS)]
    stdout, sys.stdout = sys.stdout, sys.stderr  # its table is not the measurement
    status = main([*command, "--source", str(arguments.source), "--output", str(arguments.output)])
    sys.stdout = stdout
    if status:
        raise SystemExit(status)
    largest = {
        name: resource.getrusage(who).ru_maxrss * 1024 / 1e6
        for name, who in (("parent_mb", resource.RUSAGE_SELF), ("worker_mb", resource.RUSAGE_CHILDREN))
    }
    return largest


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    megabytes = 40 if arguments.quick else 2100
    files = make_images(folder / "raw", megabytes)
    size = sum(path.stat().st_size for path in (folder / "raw/images").iterdir())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for path in (folder / "raw/images").iterdir():
        path.read_bytes()
    for number in range(arguments.repeat):
        for contender in CONTENDERS:
            runs[contender].append(measure(contender, folder, 0 if arguments.quick else 15))
            print(
                f"{number + 1}/{arguments.repeat} {contender}: {runs[contender][-1]['seconds']:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    shutil.rmtree(folder / "out")
    media = 400 if arguments.quick else 82_783
    largest_file = make_questions(folder / "questions", media)
    recipe = questions_recipe(folder / "vqav2.yaml")
    started = time.perf_counter()
    questions = fresh_process(
        "convert.py",
        [
            "--convert",
            "--recipe",
            str(recipe),
            "--source",
            str(folder / "questions"),
            "--output",
            str(folder / "out"),
        ],
        1,
    )
    seconds = {name: median([run["seconds"] for run in each]) for name, each in runs.items()}
    return {
        "what": "images to shards, against tar cf of the same files",
        "setting": {"files": files, "bytes": size, "workers": WORKERS, "repeat": arguments.repeat},
        "machine": machine_facts(1),
        "seconds": seconds,
        "megabytes_per_second": {name: size / 1e6 / each for name, each in seconds.items()},
        "rate_ratio": {
            "sync": seconds["tar_sync"] / seconds["aurora_sync"],
            "no_sync": seconds["tar"] / seconds["aurora"],
        },
        "memory_mb": {
            "images": {
                name: max(run[name] for run in runs["aurora_sync"]) for name in ("parent_mb", "worker_mb")
            },
            "questions": questions,
        },
        "questions": {
            "media": media,
            "questions": 5 * media,
            "annotation_bytes": largest_file,
            "seconds": time.perf_counter() - started,
        },
        "bars": {"rate_ratio": RATE_BAR, "memory_mb": MEMORY_BAR},
        "runs": runs,
    }


def report(record: dict[str, Any]) -> str:
    setting, memory, questions = record["setting"], record["memory_mb"], record["questions"]
    rows = []
    fastest = {name: min(run["seconds"] for run in runs) for name, runs in record["runs"].items()}
    for name, label in CONTENDERS.items():
        ratio = record["rate_ratio"]["sync" if name.endswith("_sync") else "no_sync"]
        rows.append(
            [
                label,
                f"{record['seconds'][name]:.2f}",
                f"{record['megabytes_per_second'][name]:.0f}",
                f"{ratio:.2f}" if name.startswith("aurora") else "",
                f"{fastest[name]:.2f}",
                f"{fastest[name.replace('aurora', 'tar')] / fastest[name]:.2f}"
                if name.startswith("aurora")
                else "",
                f"{median([run['processor_seconds'] for run in record['runs'][name]]):.2f}",
                f"{100 * median([run['others'] for run in record['runs'][name]]):.0f} %",
            ]
        )
    head = ["", "seconds", "MB/s", "rate / tar", "fastest", "rate / tar", "processor s", "others"]
    sizes = [
        [label, f"{each['parent_mb']:.0f}", f"{each['worker_mb']:.0f}"]
        for label, each in (
            (f"{setting['files']:,} images, {setting['bytes'] / 1e9:.1f} GB", memory["images"]),
            (
                f"{questions['questions']:,} questions on {questions['media']:,} images, annotations of "
                f"{questions['annotation_bytes'] / 1e6:.0f} MB",
                memory["questions"],
            ),
        )
    ]
    return (
        f"# Conversion of images, against tar\n\n"
        f"{setting['files']:,} JPEG files, {setting['bytes'] / 1e9:.2f} GB, {setting['workers']} workers, one disk. "
        f"Medians of {setting['repeat']} runs each, in turn, files in the page cache. Every run of ours looks at each "
        "image, writes a checksum of each sample and each shard, manifest and index, and includes the interpreter's "
        "start.\n\n"
        f"{markdown_table(head, rows)}\n\n"
        f"Aim: rate >= {RATE_BAR} of tar's. Ours always syncs each shard, so the first two rows are alike: both end "
        "with the data on the disk. In the last two nothing is waited for; ours runs with its syncs switched off, and "
        "the checksums of two workers on two cores take longer than tar's copying. `others`: median share of all cores "
        "that other programs used meanwhile; it costs two workers more than one tar, hence the fastest runs as well."
        "\n\n"
        f"{markdown_table(['largest resident size, MB', 'command', 'largest worker'], sizes)}\n\n"
        f"Aim: each below {MEMORY_BAR} MB. The questions took {questions['seconds']:.0f} s.\n\n"
        f"{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="40 MB, two repeats, nothing written")
    parser.add_argument("--repeat", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; needs 7 GB")
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-sync", action="store_true", help=argparse.SUPPRESS)
    for name in ("--recipe", "--source", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        print(json.dumps(run_conversion(arguments)))
        return
    arguments.repeat = arguments.repeat or (2 if arguments.quick else 5)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record = compare(arguments, Path(folder))
    write_results("convert", record, report(record), arguments.quick)


if __name__ == "__main__":
    main()

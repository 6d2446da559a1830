"""Damaged shards: is every damage reported, and does training ever use what is damaged, or hang?

A dataset of drawn pictures (48 to train on, 8 to test, JPEG and PNG, 8 a shard) is converted once. Each case copies it,
damages the copy at random in one of the ways below, and looks at three things, in a process that is killed after a
minute:

    verify   `shards verify` must report the damaged file, and each sample whose bytes differ, by its number
    skip     an epoch with data.bad_samples=skip must complete with every damaged sample counted and no other, or stop
             with the reason; every row of its batches must be, bit for bit, that of the undamaged run
    error    an epoch with data.bad_samples=error must stop with the reason if it meets a damaged sample, and else
             complete with the undamaged rows

    python scripts/bench/damage.py [--quick] [--cases 500] [--seed 0]

Aim: no damage unreported, no row changed, no hang, no error but the package's own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from damage_ways import WAYS
from measurement import facts_line, machine_facts, markdown_table, write_results

TIME_LIMIT = 60.0  # seconds a case
TRAIN, TEST, SAMPLES_PER_SHARD = 48, 8, 8
# Every so many cases read with two worker processes; starting them costs more than the reading.
WITH_WORKERS_EVERY = 20


# the dataset ----------------------------------------------------------------------------------------------------------


def make_shards(folder: Path) -> Path:
    """Draws pictures, converts them, and returns the folder of shards."""
    import numpy as np
    from PIL import Image

    from aurora_ds.data.convert import convert
    from aurora_ds.data.convert.recipe import RECIPE_FOLDERS

    source, entries = folder / "source", []
    (source / "images").mkdir(parents=True)
    for number in range(TRAIN + TEST):
        name = f"{number:03d}.{'png' if number % 4 == 3 else 'jpg'}"
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC).save(source / "images" / name)
        captions = [f"picture {number} {'told ' * which}again" for which in range(1 + number % 3)]
        split = "train" if number < TRAIN else "test"
        entries.append({"image": name, "caption": captions, "split": split})
    (source / "annotations.json").write_text(json.dumps(entries))
    recipe = (RECIPE_FOLDERS[0] / "folder.yaml").read_text()
    small = recipe.replace("samples_per_shard: 500", f"samples_per_shard: {SAMPLES_PER_SHARD}")
    (folder / "small.yaml").write_text(small)
    convert(folder / "small.yaml", source, folder / "shards")
    shutil.rmtree(folder / "shards/.progress", ignore_errors=True)
    return folder / "shards"


# one case -------------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer without a vocabulary: a word is its length, and its sum of letters."""

    def encode(self, texts: list[str], max_tokens: int, single: bool = False) -> tuple[Any, Any]:
        import torch

        rows = [[n for word in text.split() for n in (len(word), sum(map(ord, word)))] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (ids != 0).long()


@dataclass
class Clean:
    """The undamaged run: by (medium, annotation) its row, and the bytes of every sample by (file, number)."""

    rows: dict[int, tuple[str, Any, list[int]]]
    media: dict[str, int]
    samples: dict[tuple[str, int], bytes]
    numbers: dict[tuple[str, int], int]


@dataclass
class Judgement:
    """What a case showed. `wrong`: everything that must not happen."""

    way: str
    reported: int = 0
    damaged: int = 0
    skip: str = ""
    error: str = ""
    counted: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """All of it for the record."""
        verify = f"{self.damaged} damaged, {self.reported} reported"
        reads = f"skip {self.skip}, {self.counted} counted; error {self.error}"
        return f"{self.way}: {verify}; {reads}; {self.seconds:.2f} s {self.wrong or ''}"


def _batches(folder: Path, bad_samples: str, workers: int) -> list[dict[str, Any]]:
    from aurora_ds.config import RunConfig
    from aurora_ds.data.loader import train_loader

    config = RunConfig()
    config.backbone.vision.image_size, config.train.global_batch_size = 32, 8
    data = config.data
    data.shards, data.workers, data.augment, data.lanes = str(folder), workers, "none", 8
    data.bad_samples, data.max_bad_share = bad_samples, 1.0
    return list(train_loader(config, Words(), 1, 0, epoch=0))


def _rows(batches: list[dict[str, Any]]) -> list[tuple[int, str, Any, list[int]]]:
    """(number of the pair, key, image, tokens) of every row."""
    return [
        (int(pair), key, image, ids[mask.bool()].tolist())
        for batch in batches
        for pair, key, image, ids, mask in zip(
            batch["sample_index"], batch["keys"], batch["image"], batch["input_ids"], batch["attention_mask"],
            strict=True,
        )
    ]  # fmt: skip


def clean_run(folder: Path) -> Clean:
    """Reads the undamaged shards."""
    from aurora_ds.data.manifest import Manifest

    manifest, samples, numbers = Manifest.load(folder), {}, {}
    for name, split in manifest.splits.items():
        for shard, entry in enumerate(split.shards):
            content, offsets = (folder / entry.file).read_bytes(), manifest.offsets(name, shard)
            for number in range(entry.samples):
                samples[entry.file, number] = content[int(offsets[number]) : int(offsets[number + 1])]
                numbers[entry.file, number] = int(split.first_media[shard]) + number
    batches = _batches(folder, "error", 0)
    rows = {pair: rest for pair, *rest in _rows(batches)}
    media = {
        key: int(m) for batch in batches for key, m in zip(batch["keys"], batch["media_index"], strict=True)
    }
    return Clean(rows, media, samples, numbers)


def _damaged_samples(folder: Path, clean: Clean) -> set[tuple[str, int]]:
    """Samples whose bytes are not where and what they were."""
    damaged, place = set(), Counter()
    for (file, number), block in clean.samples.items():
        path = folder / file
        content = path.read_bytes() if path.is_file() else b""
        start = place[file]
        place[file] += len(block)
        if content[start : start + len(block)] != block:
            damaged.add((file, number))
    return damaged


def judge(name: str, undamaged: Path, folder: Path, clean: Clean, workers: int) -> Judgement:
    """Verifies and reads the damaged copy."""
    result = Judgement(name)
    damaged = _damaged_samples(folder, clean)
    touched = {path.name for path in undamaged.iterdir() if not _same(path, folder / path.name)}
    touched |= {path.name for path in folder.glob("*.tar") if not (undamaged / path.name).exists()}
    result.damaged = len(damaged)
    _verify(folder, touched, damaged, result)
    planned = {n for place, n in clean.numbers.items() if place in damaged and n in clean.media.values()}
    planned = {clean.numbers[place] for place in damaged if place[0].startswith("train")} & planned
    for mode in ("skip", "error"):
        _read(folder, mode, workers, clean, planned, touched, result)
    return result


def _same(one: Path, two: Path) -> bool:
    return not one.is_file() or (two.is_file() and one.read_bytes() == two.read_bytes())


def _verify(folder: Path, touched: set[str], damaged: set[tuple[str, int]], result: Judgement) -> None:
    from aurora_ds.data.shardcheck import verify_shards
    from aurora_ds.errors import AuroraError

    report = folder / "report.jsonl"
    try:
        verify_shards(folder, report=report)
    except AuroraError as error:
        problems = [json.loads(line) for line in report.read_text().splitlines()]
        result.reported = len(problems)
        told = " ".join(p["file"] + " " + p["message"] for p in problems)
        result.wrong += [f"verify does not name {name}" for name in sorted(touched) if name not in told]
        whole = {p["file"] for p in problems if p["reason"] in ("shard_missing", "manifest")}
        named = {(p["file"], p["number"]) for p in problems}
        if "manifest.json" not in whole:
            missing = {place for place in damaged if place not in named and place[0] not in whole}
            result.wrong += [f"verify does not name sample {place}" for place in sorted(missing)]
        if not str(error):
            result.wrong.append("verify stops without a reason")
    else:
        result.wrong.append("verify finds nothing")


def _read(
    folder: Path,
    mode: str,
    workers: int,
    clean: Clean,
    planned: set[int],
    touched: set[str],
    result: Judgement,
) -> None:
    from aurora_ds.errors import AuroraError

    try:
        batches = _batches(folder, mode, workers)
    except AuroraError as error:
        setattr(result, mode, "stopped")
        if len(str(error)) < 40:
            result.wrong.append(f"{mode} stops without a reason: {error}")
        return
    setattr(result, mode, "completed")
    bad = {entry["medium"] for batch in batches for entry in batch["bad"]}
    if mode == "skip":
        result.counted = len(bad)
    shards_only = all(name.endswith(".tar") for name in touched)
    if not planned <= bad or (shards_only and not bad <= planned):
        result.wrong.append(f"{mode} completes, counts media {sorted(bad)}, damaged are {sorted(planned)}")
    for pair, key, image, ids in _rows(batches):
        expected = clean.rows.get(pair)
        if expected is None or expected[0] != key or expected[2] != ids or not expected[1].equal(image):
            result.wrong.append(f"{mode}: pair {pair} ({key}) is another")


def run_case(name: str, seed: int, undamaged: Path, clean: Clean, scratch: Path, workers: int) -> Judgement:
    """One damaged copy in a process of its own, which is killed when it takes too long."""
    folder = scratch / "case"
    shutil.copytree(undamaged, folder)
    WAYS[name](folder, random.Random(seed))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    said = scratch / "stderr"

    def work() -> None:
        sys.stdout = sys.stderr = open(said, "w")
        sender.send(judge(name, undamaged, folder, clean, workers))

    started = time.perf_counter()
    process = context.Process(target=work)
    process.start()
    sender.close()
    result = Judgement(name, wrong=[f"no end within {TIME_LIMIT:.0f} s"])
    try:
        if receiver.poll(TIME_LIMIT):
            result = receiver.recv()
    except EOFError:
        result = Judgement(name, wrong=[f"the process died: {said.read_text()[-2000:]}"])
    process.kill()
    process.join()
    shutil.rmtree(folder)
    result.seconds = time.perf_counter() - started
    return result


def run_cases(
    cases: int, seed: int, scratch: Path, workers_every: int = WITH_WORKERS_EVERY
) -> list[Judgement]:
    """`cases` damaged copies, the ways of damage in turn."""
    import torch

    torch.set_num_threads(1)
    undamaged = make_shards(scratch / "dataset")
    clean, names, results = clean_run(undamaged), list(WAYS), []
    for number in range(cases):
        workers = 2 if workers_every and number % workers_every == workers_every - 1 else 0
        name = names[number % len(names)]
        results.append(run_case(name, seed * 10**6 + number, undamaged, clean, scratch, workers))
    return results


def table(results: list[Judgement]) -> str:
    rows = []
    for name in WAYS:
        own = [result for result in results if result.way == name]
        if not own:
            continue
        outcomes = [
            " + ".join(
                f"{count} {what}" for what, count in sorted(Counter(getattr(r, mode) for r in own).items())
            )
            for mode in ("skip", "error")
        ]
        counts = [str(sum(getattr(result, what) for result in own)) for what in ("damaged", "counted")]
        reported = f"{sum(result.reported > 0 for result in own)} of {len(own)}"
        rows.append([name, reported, *counts, *outcomes, str(sum(bool(result.wrong) for result in own))])
    head = ["damage", "reported by verify", "samples damaged", "counted by skip", "skip", "error", "failures"]
    return markdown_table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one case of each way; nothing is written")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = len(WAYS) if arguments.quick else arguments.cases
    with tempfile.TemporaryDirectory() as scratch:
        results = run_cases(cases, arguments.seed, Path(scratch))
    failed = [result for result in results if result.wrong]
    slowest = max(result.seconds for result in results)
    facts = machine_facts(threads=1)
    text = (
        f"# {cases} damaged datasets\n\n{table(results)}\n\n{len(failed)} failures: damage unreported, a row changed, "
        f"a hang, or an error that is not the package's. The slowest case took {slowest:.1f} s of {TIME_LIMIT:.0f}; "
        f"every {WITH_WORKERS_EVERY}th read with 2 worker processes. `skip` counts samples that an epoch meets: not "
        f"those of the test split, nor those left out with the last step.\n\n{facts_line(facts)}\n"
    )
    record = {"facts": facts, "seed": arguments.seed, "cases": [result.line() for result in results]}
    write_results("damage", record, text, arguments.quick)
    for result in failed:
        print(f"\n{result.way}:\n  " + "\n  ".join(result.wrong), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

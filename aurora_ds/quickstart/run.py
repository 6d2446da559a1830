"""The main job on the built-in toy world: photos and captions to tar shards, fine-tuning under the
DeepSpeed launcher, R@K.

Everything a real run does, with the commands a real run uses; each is printed before it starts. `--fresh`
starts clean, otherwise what is there is used: finished shards are kept and training resumes from its last
checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aurora_ds import arguments, evaluate
from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart import world
from aurora_ds.recipe import load_config
from aurora_ds.wiring import of as wiring_of

RECIPE = "retrieval_world"
SEED = 0
MARKER = "quickstart.json"


def run(output: Path, ranks: int | None = None, fresh: bool = False) -> dict[str, Any]:
    """Make the world, convert, train on `ranks` processes, evaluate before and after; results in
    `output`/results.json."""
    begun = time.perf_counter()
    _prepare(output, fresh)
    gpus = torch.cuda.device_count()
    ranks = ranks or gpus or 2

    _say(f"1. the toy world's target domain -> {output / 'raw'}")
    make_world(output)
    _say(f"2. aurora-ds shards convert folder --source {output / 'raw'} --output {output / 'shards'}")
    convert("folder", output / "raw", output / "shards", workers=os.cpu_count() or 1)

    settings = [f"data.shards={output / 'shards'}"]
    _say(f"3. aurora-ds evaluate {RECIPE} {settings[0]} --output {output / 'frozen'}")
    frozen = evaluate.run(load_config(RECIPE, settings), None, output / "frozen")

    _train(output, ranks, settings)
    trained = json.loads((output / "run" / evaluate.RESULTS_FILE).read_text(encoding="utf-8"))
    record = {
        "frozen": frozen,
        "aurora": trained,
        "ranks": ranks,
        "device": "cuda" if gpus else "cpu",
        "seconds": round(time.perf_counter() - begun, 1),
    }
    (output / evaluate.RESULTS_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    _report(output, record)
    return record


def make_world(output: Path) -> None:
    """The toy world's photos and captions in `output`/raw, unless they are there; whole or not at all."""
    done, writing = output / "raw", output / "raw.writing"
    if done.is_dir():
        return
    if writing.exists():  # an earlier run was cut off while it rendered
        shutil.rmtree(writing)
    world.write(writing, "target", seed=SEED)
    os.replace(writing, done)


def _prepare(output: Path, fresh: bool) -> None:
    """An empty folder, or one that an earlier quickstart made; nothing else is ever removed or written
    into."""
    if output.exists() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise AuroraError(
            f"{output} holds something that quickstart did not make. Give another --output, or remove it yourself."
        )
    if fresh and output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text(json.dumps({"recipe": RECIPE, "seed": SEED}), encoding="utf-8")


def _train(output: Path, ranks: int, settings: list[str]) -> None:
    """The training command, through the launcher that real runs use. Raises AuroraError when it fails."""
    launcher = Path(sys.executable).parent / "deepspeed"
    found = str(launcher) if launcher.is_file() else shutil.which("deepspeed")
    if found is None:
        raise AuroraError(
            "The `deepspeed` launcher is not installed. Install this package with its dependencies: pip install -e ."
        )
    command = [
        found,
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(_free_port()),
        "--module",
        "aurora_ds.train",
    ]
    command += [RECIPE, *settings, "--output", str(output / "run")]
    _say("4. " + " ".join(["deepspeed", *command[1:]]))
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise AuroraError(
            f"Training ended with status {status}; what went wrong is above. Run again to continue "
            "from its last checkpoint."
        )
    if not (output / "run" / evaluate.RESULTS_FILE).is_file():
        raise AuroraError("Training was asked to end early, and what it did is saved. Run again to go on.")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _report(output: Path, record: dict[str, Any]) -> None:
    from rich.console import Console

    trained = record["aurora"]
    rows = {"frozen backbone": record["frozen"]["metrics"], "with Aurora prompts": trained["metrics"]}
    images, texts = trained["images"], trained["texts"]
    console, wiring = Console(), wiring_of(load_config(RECIPE))
    title = f"Toy world, target domain, test: {images} images, {texts} captions"
    console.print(evaluate.metrics_table(wiring, rows, title))
    console.print(evaluate.conditions(wiring, trained), soft_wrap=True)
    seconds = trained["train_seconds"]
    when = f"in {seconds:.0f} s on {record['ranks']} ranks" if seconds >= 1 else "in an earlier run"
    console.print(f"trained {trained['trainable']:,} numbers {when}")
    console.print(f"results     {output / evaluate.RESULTS_FILE}", soft_wrap=True)
    console.print(f"adapter     {output / 'run' / 'adapter'}", soft_wrap=True)
    console.print(f"TensorBoard tensorboard --logdir {output / 'run' / 'tensorboard'}", soft_wrap=True)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`aurora-ds quickstart`."""
    parser = arguments.module_parser("aurora_ds.quickstart.run", "The main job on the built-in toy world.")
    arguments.add_quickstart(parser)
    chosen = arguments.parse(parser, list(sys.argv[1:] if argv is None else argv))
    return arguments.finish(
        lambda: run(chosen.output, chosen.ranks, chosen.fresh) and 0, debug=getattr(chosen, "debug", False)
    )


if __name__ == "__main__":
    sys.exit(main())

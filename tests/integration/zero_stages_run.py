"""Run by test_zero_stages.py under a launcher: every DeepSpeed setting trains, saves and resumes inside one group.

Arguments: the folder of the exchange (holds the checkpoint to start from, receives results), the ds_configs folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from toy_task import ToyTask, rank_batch

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import checkpoint, process_group
from aurora_ds.runtime.engine import Engine, build
from aurora_ds.runtime.guards import Guards
from aurora_ds.runtime.run_folder import claim_output

STAGE_FILES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def make(setting: str, settings_folder: Path, precision: str) -> Engine:
    """An engine under one file of ds_configs, or at stage 3 with every tensor cut, however small."""
    config = TrainConfig(global_batch_size=8, lr=1e-2, clip_norm=1.0, precision=precision)
    given = settings_folder / f"{setting}.json"
    if setting == "zero3_cut_all":
        given = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    return build(ToyTask(), config, given, total_steps=20, steps_per_epoch=5)


def train(engine: Engine, first: int, last: int) -> None:
    guards = Guards(engine, moved_after=2)
    for step in range(first, last):
        batch = rank_batch(step, process_group.rank(), process_group.world_size())
        losses = engine.forward(batch)
        guards.check_losses(losses, [f"sample-{step}"], step)
        guards.after_step(engine.backward_and_step(losses["loss"], measure_update=True))


def through_a_checkpoint(setting: str, precision: str, exchange: Path, settings_folder: Path) -> bool:
    """Steps 2-6 from the 1-rank checkpoint, saved at 4; whether a second engine repeats 4-6 from there bit for bit."""
    name = f"{setting}-{precision}"
    engine = make(setting, settings_folder, precision)
    checkpoint.load(exchange / "start", engine)
    train(engine, 2, 4)
    saved = checkpoint.save(exchange / name, 4, engine, lambda values: (values, {}), {"epoch": 0})
    train(engine, 4, 6)
    state = engine.optimizer_state()
    engine.close()
    again = make(setting, settings_folder, precision)
    checkpoint.load(saved, again)
    train(again, 4, 6)
    repeated = again.optimizer_state()
    again.close()
    if process_group.rank() == 0:
        save_file(state, exchange / name / "after6.safetensors")
    return state.keys() == repeated.keys() and all(torch.equal(state[key], repeated[key]) for key in state)


def raised(action, *arguments) -> str:
    """The message of the AuroraError that the action must raise on this rank."""
    try:
        action(*arguments)
    except AuroraError as error:
        return str(error)
    return "nothing was raised"


def together(exchange: Path, settings_folder: Path) -> dict:
    """What ranks decide together, as this rank saw it."""
    rank = process_group.rank()
    engine = make("zero1", settings_folder, "fp32")
    guards = Guards(engine, moved_after=2)
    loss = torch.tensor(float("nan") if rank == 1 else 1.0)
    found = checkpoint.find(exchange / "zero1-fp32", "auto")
    report = {
        "agree": raised(process_group.agree, rank != 1, "the tar of rank 1 is torn"),
        "loss": raised(guards.check_losses, {"loss": loss}, [f"sample-of-rank-{rank}"], 3),
        "save": raised(
            checkpoint.save, exchange / "start" / "state.json", 1, engine, lambda values: (values, {}), {}
        ),
        "load": raised(checkpoint.load, exchange / "nowhere", engine),
        "claim": raised(claim_output, exchange / "start" / "state.json", {"seed": 1}, "auto"),
        "found": None if found is None else found.name,
        "object": process_group.broadcast_object({"from": rank}),
        "tensor": process_group.broadcast_tensors({"a": torch.tensor([1.5, 2.5])} if rank == 0 else None)[
            "a"
        ].tolist(),
        "numbers": process_group.gather_numbers([float(rank), 0.1 + rank]),
    }
    engine.close()
    return report


def main() -> None:
    exchange, settings_folder = (Path(text) for text in sys.argv[-2:])
    process_group.start()
    settings = [(name, "fp32") for name in (*STAGE_FILES, "zero3_cut_all")]
    settings += [(name, "bf16") for name in ("zero0", "zero1", "zero2", "zero3", "zero1_bf16")]
    repeats = {
        f"{setting}-{precision}": through_a_checkpoint(setting, precision, exchange, settings_folder)
        for setting, precision in settings
    }
    report = {"repeats": repeats, "together": together(exchange, settings_folder)}
    (exchange / f"rank{process_group.rank()}.json").write_text(json.dumps(report))
    process_group.stop()


if __name__ == "__main__":
    main()

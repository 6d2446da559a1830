"""Run by test_expert_parallel.py on each rank: a few steps of a small EVE under many settings, on one global batch.

Usage: python experts_worker.py FOLDER  with the usual RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. FOLDER/jobs.json
lists [name, {settings}]: method, zero_stage, expert_parallel, precision, and `start`, a file whose state is
loaded. Rank 0 writes what every job found into FOLDER/NAME.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aurora_ds.backbones.eve_heads import EveVqa
from aurora_ds.backbones.experts import Gate
from aurora_ds.config import BackboneConfig, PromptConfig, TrainConfig
from aurora_ds.prompts import attach
from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import Engine, build
from aurora_ds.runtime.guards import Guards

STEPS, ROWS, CHUNKS, ANSWERS = 4, 8, 4, 5
BACKBONE = {
    "name": "eve",
    "head": "vqa",
    "eve": {
        "top_layers": [1],
        "moe": {"experts": 4},
        "lower": "moe",
        "lower_moe": {"experts": 4, "topk": 1, "capacity_factor": 1.0},
        "answers": ANSWERS,
        "expert_sites": True,
        "balance_weight": 0.1,
        "layer_scale": 0.5,
    },
    "vision": {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "drop_path": 0.0},
    "text": {"vocab_size": 40, "width": 32, "depth": 2, "heads": 2, "max_positions": 12, "dropout": 0.0},
}


def recorded(logits: Tensor) -> Tensor:
    """The same noise wherever it is drawn, in the place of Gumbel's."""
    return torch.rand(logits.shape, generator=torch.Generator().manual_seed(5)) * 2


class SmallVqa(nn.Module):
    """EVE's question answering without the task around it."""

    def __init__(self, method: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = EveVqa(BackboneConfig.model_validate(BACKBONE))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in self.model.modules():
            if isinstance(module, Gate):
                module.noise = recorded
        self.prompts = None
        if method == "aurora":
            config = PromptConfig(rank=4, dropout=0.0)
            self.prompts = attach(self.model, self.model.sites(), config, heads=self.model.heads())
            with torch.no_grad():  # V is born zero
                for name, parameter in self.prompts.bank.named_parameters():
                    if name.startswith("up_"):
                        parameter.add_(torch.randn(parameter.shape) * 0.05)

    def forward(self, batch: dict[str, Tensor], what: str = "loss") -> dict[str, Tensor] | Tensor:
        if self.prompts is not None:
            self.prompts.refresh()
        judged = self.model.answered(batch["ids"], batch["mask"], self.model.image_tokens(batch["image"]))
        if what == "judge":
            return judged.logits.float()
        answers = nn.functional.binary_cross_entropy_with_logits(
            judged.logits.float(), batch["target"].float()
        )
        return {"loss": ANSWERS * answers + judged.auxiliary, "balance": judged.auxiliary}


def chunk(step: int, number: int) -> dict[str, Tensor]:
    """One of the equal parts of a step's batch."""
    generator = torch.Generator().manual_seed(100 + step)
    lengths = torch.randint(4, 13, (ROWS,), generator=generator)
    whole = {
        "image": torch.randn(ROWS, 3, 16, 16, generator=generator),
        "ids": torch.randint(4, 40, (ROWS, 12), generator=generator),
        "mask": (torch.arange(12) < lengths[:, None]).long(),
        "target": torch.rand(ROWS, ANSWERS, generator=generator).round(),
    }
    rows = ROWS // CHUNKS
    return {name: value[number * rows : (number + 1) * rows] for name, value in whole.items()}


def made(settings: dict[str, Any]) -> Engine:
    config = TrainConfig(
        global_batch_size=ROWS,
        accumulation=CHUNKS // process_group.world_size(),
        lr=1e-3,
        clip_norm=0.5,  # below every norm here
        eps=1e-6,
        weight_decay=0.1,
        no_decay=["bias"],
        moved_after=3,
        zero_stage=settings["zero_stage"],
        expert_parallel=settings["expert_parallel"],
        precision=settings.get("precision", "fp32"),
    )
    zero = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # everything is cut up, however small
    return build(SmallVqa(settings["method"]), config, {"zero_optimization": zero}, STEPS, STEPS)


def run(settings: dict[str, Any]) -> dict[str, Tensor]:
    engine = made(settings)
    if "start" in settings:
        state = load_file(settings["start"])
        engine.load_optimizer_state({name: value for name, value in state.items() if "/" not in name})
    engine.train()
    guards, found = Guards(engine, engine.config.moved_after), {}
    world, rank = process_group.world_size(), process_group.rank()
    for step in range(engine.step, STEPS):
        total = 0.0
        for micro in range(engine.config.accumulation):
            losses = engine.forward(chunk(step, micro * world + rank))
            rows = process_group.gather_numbers([float(value.detach()) for value in losses.values()])
            total += sum(torch.tensor(row) for row in rows) / CHUNKS
            report = engine.backward_and_step(losses["loss"], measure_update=True)
        guards.after_step(report)
        figures = torch.tensor([report.grad_norm, report.update_ratio])
        found |= {f"step{step}/losses": total, f"step{step}/figures": figures}
        if step == 1:
            found |= {f"step1/{name}": value for name, value in engine.optimizer_state().items()}
            found |= judged(engine)
    found |= engine.optimizer_state()
    held = sum(parameter.numel() for name, parameter in engine.task.named_parameters() if ".experts." in name)
    found["held/experts"] = torch.tensor(held)
    engine.close()
    return {name: value.contiguous() for name, value in found.items()}


def judged(engine: Engine) -> dict[str, Tensor]:
    """Answers to every part of a batch, of which each rank judges another number."""
    engine.eval()
    found = {}
    with engine.whole(), torch.no_grad():
        for number in range(CHUNKS if process_group.rank() == 0 else 1):
            found[f"judged/{number}"] = engine.forward(chunk(50, number), what="judge").clone()
    engine.train()
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    process_group.start()
    try:
        for name, settings in json.loads((folder / "jobs.json").read_text()):
            found = run(settings)
            if process_group.rank() == 0:
                save_file(found, folder / f"{name}.safetensors")
    finally:
        process_group.stop()


if __name__ == "__main__":
    main()

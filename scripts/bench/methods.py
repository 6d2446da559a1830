"""Ways to adapt the built-in backbone to the toy world's target domain, on the same data, loop and test split.

frozen: the backbone as it is. heads: vision_proj, text_proj and itm_head. lora: LoRA (peft) on every linear that
Aurora adapts, of the rank whose parameter count is nearest to Aurora's prompts, plus the heads. aurora: the
`aurora` preset. full: everything.

All share batches, epochs, schedule, clipping, losses and momentum targets (a momentum copy of what is trained).
Each method has its own learning rate: from three values, three apart, the one with the best R mean on the
validation split (seed 0); when it lies on the edge, the grid goes on in that direction, once. The test
split is then reported for it, over the seeds; a seed decides initial values, the order of samples and
augmentation. Each training runs in a fresh process.

    python scripts/bench/methods.py [--quick] [--seeds 3] [--epochs N] [--folder DIR]

Columns: trained parameters and their share of the backbone, TR/IR@1,5,10, the part of the way from frozen to full
that a method goes (by R mean), training seconds, peak memory, and bytes of the file that holds what was trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    peak_memory_mb,
    write_results,
)

METHODS = ("heads", "lora", "aurora", "full")
GRIDS = {
    "heads": (3e-3, 1e-2, 3e-2),
    "lora": (3e-3, 1e-2, 3e-2),
    "aurora": (3e-3, 1e-2, 3e-2),
    "full": (3e-4, 1e-3, 3e-3),
}
STEP, EXTENSIONS = 10**0.5, 1
RECALLS = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10", "r_mean")
LORA_ALPHA = 2  # times the rank, the customary choice


def prepare(folder: Path) -> None:
    """Render the target domain and convert it to shards, once."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    if not (folder / "shards" / "manifest.json").is_file():
        world.write(folder / "raw", "target")
        convert("folder", folder / "raw", folder / "shards", workers=1)


def run_config(method: str, folder: Path, seed: int, epochs: int | None):
    """The quickstart's recipe with this method."""
    from aurora_ds.recipe import load_config

    config = load_config(
        "retrieval_world", [f"data.shards={folder / 'shards'}", f"seed={seed}", "data.workers=0"]
    )
    config.train.method = {"frozen": "aurora", "lora": "heads"}.get(method, method)
    if method == "full":
        config.retrieval.momentum_model = "twin"
    if epochs:
        config.train.epochs = epochs
    return config


def lora_rank(sites: list[Any], model, wanted: int) -> tuple[int, int]:
    """Rank whose count, rank · Σ (in + out), is nearest to `wanted`; and that count."""
    linears = [model.get_submodule(site.module_path) for site in sites]
    each = sum(linear.in_features + linear.out_features for linear in linears)
    rank = max(1, round(wanted / each))
    return rank, rank * each


class LoraMomentum:
    """The momentum pass of a task whose trained parameters sit inside the backbone: during it, their average."""

    def __init__(self, inner, parameters: list, dropout: bool = False) -> None:
        self.inner, self.parameters = inner, parameters
        self.average = [p.detach().clone() for p in parameters]

    @contextmanager
    def __call__(self, values, decay: float):
        import torch

        online = [p.data for p in self.parameters]
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, online, alpha=1 - decay)
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data = average
        try:
            with self.inner(values, decay) as model:
                yield model
        finally:
            for parameter, value in zip(self.parameters, online, strict=True):
                parameter.data = value


def build(method: str, config) -> tuple[Any, list]:
    """The assembled task, and the parameters that train."""
    from aurora_ds.assemble import build_task

    if method != "lora":
        assembled = build_task(config)
        return assembled, [p for p in assembled.task.parameters() if p.requires_grad]
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    aurora = build_task(
        config.model_copy(update={"train": config.train.model_copy(update={"method": "aurora"})})
    )
    sites = aurora.task.model.sites()
    heads = [h for h in aurora.task.prompts.head_paths]
    bank = aurora.task.prompts.bank
    wanted = sum(p.numel() for name, p in bank.named_parameters() if not name.startswith(tuple(heads)))
    assembled = build_task(config)
    model = assembled.task.model
    rank, _ = lora_rank(sites, model, wanted)
    torch.manual_seed(config.seed)
    for tower in ("visual_encoder", "text_encoder"):
        names = [
            s.module_path.removeprefix(tower + ".") for s in sites if s.module_path.startswith(tower + ".")
        ]
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, lora_dropout=0.0, target_modules=names),
            model.get_submodule(tower),
        )
    own = [p for name, p in model.named_parameters() if "lora_" in name]
    assembled.task.momentum_model = LoraMomentum(assembled.task.momentum_model, own)
    return assembled, own + [p for p in assembled.task.prompts.parameters() if p.requires_grad]


def train(assembled, trained: list, lr: float) -> float:
    """Train as the recipe says; seconds."""
    import torch

    from aurora_ds.data.loader import steps_per_epoch, train_loader
    from aurora_ds.runtime.schedule import learning_rate

    config, task = assembled.config, assembled.task
    settings = config.train.model_copy(update={"lr": lr})
    per_epoch = steps_per_epoch(config, 1)
    total = per_epoch * settings.epochs
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
    task.train()
    start, step = time.perf_counter(), 0
    for epoch in range(settings.epochs):
        for batch in train_loader(config, assembled.tokenizer, 1, 0, epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings, total, per_epoch)
            ramp = config.retrieval.alpha_ramp_epochs * per_epoch
            alpha = config.retrieval.alpha * (min(1.0, step / ramp) if ramp else 1.0)
            loss = task(batch, step=step, alpha=alpha)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
            step += 1
    return time.perf_counter() - start


def evaluate(assembled, split: str) -> dict[str, float]:
    from aurora_ds.wiring.retrieval import evaluate_split

    config = assembled.config.model_copy(deep=True)
    config.data.eval_split = split
    assembled.task.eval()
    metrics = evaluate_split(assembled.task, config, assembled.tokenizer).metrics
    return {name: round(metrics[name], 3) for name in RECALLS}


def measure(
    method: str, lr: float, seed: int, folder: Path, epochs: int | None, threads: int
) -> dict[str, Any]:
    """Train one method once and judge it on both splits, in this process."""
    import torch
    from safetensors.torch import save

    torch.set_num_threads(threads)
    assembled, trained = build(method, run_config(method, folder, seed, epochs))
    task, seconds = assembled.task, 0.0
    backbone = sum(p.numel() for name, p in task.model.named_parameters() if "lora_" not in name)
    if method == "frozen":
        task.prompts.disable()
        task.prompts.active = None
        trained = []
    else:
        seconds = train(assembled, trained, lr)
    tensors = {str(number): p.detach().contiguous() for number, p in enumerate(trained)}
    record = {
        "method": method,
        "lr": lr,
        "seed": seed,
        "trained": sum(p.numel() for p in trained),
        "backbone": backbone,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_memory_mb(), 1),
        "bytes": len(save(tensors)) if trained else 0,
        "epochs": assembled.config.train.epochs,
    }
    return record | {"val": evaluate(assembled, "val"), "test": evaluate(assembled, "test")}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    def once(method: str, lr: float, seed: int) -> dict[str, Any]:
        options = [
            "--measure",
            method,
            "--lr",
            str(lr),
            "--seed",
            str(seed),
            "--folder",
            str(arguments.folder),
            "--threads",
            str(arguments.threads),
        ]
        if arguments.epochs:
            options += ["--epochs", str(arguments.epochs)]
        record = fresh_process("methods.py", options, arguments.threads)
        print(
            f"{method} lr {lr:.1e} seed {seed}: val {record['val']['r_mean']:.1f}, "
            f"test {record['test']['r_mean']:.1f}, {record['seconds']:.0f} s",
            flush=True,
        )
        return record

    with ThreadPoolExecutor(arguments.jobs) as pool:

        def together(wanted: list[tuple[str, float, int]]) -> list[dict[str, Any]]:
            return list(pool.map(lambda each: once(*each), wanted))

        (frozen,) = together([("frozen", 0.0, 0)])
        grids = {m: list(GRIDS[m][:1] if arguments.quick else GRIDS[m]) for m in METHODS}
        sweeps = {m: [] for m in METHODS}
        for record in together([(m, lr, 0) for m in METHODS for lr in grids[m]]):
            sweeps[record["method"]].append(record)
        for _ in range(0 if arguments.quick else EXTENSIONS):
            edges = []
            for method, sweep in sweeps.items():
                best, grid = max(sweep, key=lambda r: r["val"]["r_mean"])["lr"], grids[method]
                if best in (min(grid), max(grid)):
                    grid.append(min(grid) / STEP if best == min(grid) else max(grid) * STEP)
                    edges.append((method, grid[-1], 0))
            for record in together(edges):
                sweeps[record["method"]].append(record)
        chosen = {m: max(sweep, key=lambda r: r["val"]["r_mean"]) for m, sweep in sweeps.items()}
        runs: dict[str, list[dict[str, Any]]] = {"frozen": [frozen]} | {m: [chosen[m]] for m in METHODS}
        others = [(m, chosen[m]["lr"], seed) for m in METHODS for seed in range(1, arguments.seeds)]
        for record in together(others):
            runs[record["method"]].append(record)
    sweeps = {m: sorted(sweep, key=lambda r: r["lr"]) for m, sweep in sweeps.items()}
    return {
        "what": "adapting the built-in backbone to the target domain of the toy world",
        "setting": {
            "epochs": frozen["epochs"],
            "seeds": arguments.seeds,
            "jobs": arguments.jobs,
            "lora_alpha": f"{LORA_ALPHA} x rank",
        },
        "machine": machine_facts(arguments.threads),
        "summary": {method: summarise(each, runs) for method, each in runs.items()},
        "sweeps": {
            m: [{"lr": r["lr"], "val_r_mean": r["val"]["r_mean"]} for r in each] for m, each in sweeps.items()
        },
        "runs": runs,
    }


def summarise(each: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, their standard deviation, and the part of the way from frozen to full."""

    def mean(records: list[dict[str, Any]], name: str) -> float:
        return statistics.fmean(r["test"][name] for r in records)

    low, high = mean(runs["frozen"], "r_mean"), mean(runs["full"], "r_mean")
    first = each[0]
    return {
        "trained": first["trained"],
        "share_percent": 100 * first["trained"] / first["backbone"],
        "lr": first["lr"],
        "test": {name: round(mean(each, name), 2) for name in RECALLS},
        "r_mean_deviation": round(statistics.stdev([r["test"]["r_mean"] for r in each]), 2)
        if len(each) > 1
        else 0.0,
        "gap_closed_percent": round(100 * (mean(each, "r_mean") - low) / (high - low), 1)
        if high != low
        else None,
        "seconds": round(statistics.median(r["seconds"] for r in each), 1),
        "peak_mb": round(statistics.median(r["peak_mb"] for r in each), 1),
        "bytes": first["bytes"],
    }


def report(record: dict[str, Any]) -> str:
    rows = []
    for method, s in record["summary"].items():
        test, gap = s["test"], s["gap_closed_percent"]
        rows.append(
            [
                method,
                f"{s['trained']:,}",
                f"{s['share_percent']:.2f} %",
                *(f"{test[name]:.1f}" for name in RECALLS[:-1]),
                f"{test['r_mean']:.1f} ± {s['r_mean_deviation']:.1f}",
                "" if gap is None else f"{gap:.0f} %",
                f"{s['lr']:.1e}" if s["lr"] else "",
                f"{s['seconds']:.0f}",
                f"{s['peak_mb']:.0f}",
                f"{s['bytes']:,}",
            ]
        )
    head = [
        "",
        "trained",
        "share",
        "TR@1",
        "TR@5",
        "TR@10",
        "IR@1",
        "IR@5",
        "IR@10",
        "R mean",
        "gap closed",
        "lr",
        "seconds",
        "peak MiB",
        "bytes",
    ]
    sweeps = "\n".join(
        f"- {method}: " + ", ".join(f"{r['lr']:.1e} → {r['val_r_mean']:.1f}" for r in each)
        for method, each in record["sweeps"].items()
    )
    return (
        f"# Methods on the toy world's target domain\n\nTest split, mean over {record['setting']['seeds']} seeds "
        f"(R mean ± standard deviation), {record['setting']['epochs']} epochs each. `gap closed` is "
        f"(method - frozen) / (full - frozen) by R mean.\n\n{markdown_table(head, rows)}\n\n"
        f"Learning rates by R mean on the validation split, seed 0:\n\n{sweeps}\n\n{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one epoch, one learning rate, one seed; checks that everything runs",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=None, help="default: the quickstart recipe's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at once; seconds then share the machine"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where the toy world is, or is put; default: a temporary folder",
    )
    parser.add_argument("--measure", choices=("frozen", *METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--lr", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(
            json.dumps(
                measure(
                    arguments.measure,
                    arguments.lr,
                    arguments.seed,
                    arguments.folder,
                    arguments.epochs,
                    arguments.threads,
                )
            )
        )
        return
    if arguments.quick:
        arguments.seeds, arguments.epochs = 1, 1
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = (arguments.folder or Path(temporary)).resolve()
        prepare(arguments.folder)
        record = compare(arguments)
    write_results("methods", record, report(record), arguments.quick)


if __name__ == "__main__":
    main()

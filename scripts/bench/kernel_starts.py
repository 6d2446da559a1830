"""Who should make x Uᵀ, measured on a GPU: each site its own, one product for all that read x, or the LayerNorm before.

bf16, M = 32·577, d = 768 and 1024, rank 32 and 64, forward and backward, gradients of x and of the factors:

| case | contenders |
|---|---|
| shared | keys and values of 12 text layers: own (by the path that choices.json has), shared by PyTorch, by Triton |
| norm | LayerNorm and qkv, LayerNorm and fc1: apart, or with x Uᵀ in the epilogue and the site by PyTorch, by Triton |

    python scripts/bench/kernel_starts.py [--quick] [--repeat 35] [--write-choices]
    TRITON_INTERPRET=1 python scripts/bench/kernel_starts.py --quick      the same code on the CPU: times say nothing

Run prompted_linear.py --write-choices first. --write-choices adds the rows `z`, `from z` and `norm`; a row says triton
only where that is faster for all that would take it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import kernel_choices
import kernel_costs
from measurement import facts_line, machine_facts, markdown_table, median, write_results

LAYERS = 12
SHARED, NORMED = ("own", "shared, torch", "shared, triton"), ("apart", "epilogue, torch", "epilogue, triton")


class Stack:
    """`sites` linears of one shape that read one x, which a LayerNorm made; contenders as functions of one pass."""

    def __init__(self, shape: kernel_costs.Shape, rank: int, rows: int, sites: int, device: str) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32

        def tensor(*sizes: int, by: int = 1, trained: bool = False) -> torch.Tensor:
            made = (torch.randn(sizes, generator=generator) / by**0.5).to(device, dtype)
            return made.requires_grad_(trained)

        self.x, self.dy = tensor(rows, shape.d_in, trained=True), tensor(rows, shape.d_out)
        self.norm = tensor(shape.d_in), tensor(shape.d_in)
        self.frozen = [
            (tensor(shape.d_out, shape.d_in, by=shape.d_in), tensor(shape.d_out)) for _ in range(sites)
        ]
        self.down = tensor(rank, shape.d_in, by=shape.d_in, trained=True)
        self.mixes = [tensor(shape.d_out, rank, by=rank, trained=True) for _ in range(sites)]

    def contenders(self, normed: bool) -> dict[str, Callable[[], None]]:
        if normed:
            ways = (self._own, lambda: self._epilogue("torch"), lambda: self._epilogue("triton"))
            return dict(zip(NORMED, ways, strict=True))
        return dict(
            zip(
                SHARED,
                (self._own, lambda: self._shared("torch"), lambda: self._shared("triton")),
                strict=True,
            )
        )

    def _gradients(self, outputs: list) -> None:
        import torch

        torch.autograd.grad(outputs, [self.x, self.down, *self.mixes], [self.dy] * len(outputs))

    def _input(self):
        """x as the sites read it: behind the norm, where there is one site."""
        from torch.nn import functional as F

        if len(self.mixes) > 1:
            return self.x
        return F.layer_norm(self.x, self.norm[0].shape, *self.norm, 1e-6)

    def _own(self) -> None:
        from aurora_ds.kernels import choice, prompted_linear

        choice.use("auto")
        x = self._input()
        sites = zip(self.frozen, self.mixes, strict=True)
        self._gradients([prompted_linear(x, *frozen, self.down, mix) for frozen, mix in sites])

    def _shared(self, path: str) -> None:
        from aurora_ds.kernels import choice, low_rank, prompted_linear_from

        choice.use(path)
        z = low_rank(self.x, self.down)
        sites = zip(self.frozen, self.mixes, strict=True)
        self._gradients([prompted_linear_from(self.x, z, *frozen, mix) for frozen, mix in sites])

    def _epilogue(self, path: str) -> None:
        from aurora_ds.kernels import choice, norm_low_rank, prompted_linear_from

        choice.use(path)  # the norm's kernel runs in any case, where Triton can
        h, z = norm_low_rank(self.x, *self.norm, self.down, 1e-6)
        self._gradients([prompted_linear_from(h, z, *self.frozen[0], self.mixes[0])])


def microseconds(contenders: dict[str, Callable[[], None]], repeat: int, device: str) -> dict[str, float]:
    """Medians; contenders in turn, after two passes that warm up, caches flushed before each."""
    import torch

    flush = torch.empty(1 << 28 if device == "cuda" else 1, dtype=torch.int8, device=device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeat + 2):
        for name, step in contenders.items():
            flush.zero_()
            start = time.perf_counter()
            if device == "cuda":
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                step()
                events[1].record()
                events[1].synchronize()
                taken = 1e3 * events[0].elapsed_time(events[1])
            else:
                step()
                taken = 1e6 * (time.perf_counter() - start)
            if number >= 2:
                times[name].append(taken)
    return {name: median(each) for name, each in times.items()}


def compare(arguments: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """One row per shape, rank and case."""
    tiny = [kernel_costs.Shape("tiny", 24, 20, outputs=2), kernel_costs.Shape("tiny", 60, 20, outputs=3)]
    shapes = [shape for each in kernel_costs.SHAPES.values() for shape in each if shape.outputs > 1]
    found = []
    for shape in tiny if arguments.quick else shapes:
        normed = shape.outputs > 2
        for rank in (4,) if arguments.quick else (32, 64):
            rows, sites = (40 if arguments.quick else 32 * 577), 1 if normed else LAYERS
            contenders = Stack(shape, rank, rows, sites, device).contenders(normed)
            found.append(
                {
                    "shape": shape.name,
                    "sizes": [shape.d_out, shape.d_in],
                    "rank": rank,
                    "case": "norm" if normed else "shared",
                    "microseconds": microseconds(contenders, arguments.repeat, device),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def chosen(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Rows of choices.json. A start that several shapes take is Triton's only where that is the fastest for all."""
    import torch

    from aurora_ds.kernels import choice

    found: dict[str, str] = {}

    def put(name: str, path: str) -> None:
        found[name] = path if found.get(name, path) == path else "torch"

    for row in rows:
        (d_out, d_in), rank, micro = row["sizes"], row["rank"], row["microseconds"]
        by_triton, by_torch = (
            next(micro[name] for name in micro if name.endswith(path)) for path in (", triton", ", torch")
        )
        faster = "triton" if by_triton < by_torch else "torch"
        for dtype in (torch.bfloat16, torch.float16):  # the same products on the same units
            site, start = choice.key(dtype, d_out, d_in, rank, 1), choice.key(dtype, rank, d_in, rank, 1)
            found[f"{site} from z"] = faster
            if row["case"] == "shared":
                found[f"{start} z"] = faster
            else:
                put(f"{start} norm", "triton" if min(by_triton, by_torch) < micro["apart"] else "torch")
    return found


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    tables = []
    for case, names in (("shared", SHARED), ("norm", NORMED)):
        rows = [row for row in record["rows"] if row["case"] == case]
        tables.append(
            markdown_table(
                ["shape", "rank", *(f"{name}, µs" for name in names), "best over the first"],
                [
                    [row["shape"], str(row["rank"]), *(f"{row['microseconds'][name]:.0f}" for name in names)]
                    + [f"{min(row['microseconds'].values()) / row['microseconds'][names[0]]:.3f}"]
                    for row in rows
                ],
            )
        )
    return (
        f"# Who makes x Uᵀ, {record['device']}\n\nbf16, M = 18464, forward and backward.\n\n"
        f"{LAYERS} sites that read one input:\n\n{tables[0]}\n\nA LayerNorm and the site behind it:\n\n{tables[1]}\n\n"
        f"{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes; writes nothing")
    parser.add_argument("--repeat", type=int, default=35)
    parser.add_argument("--write-choices", action="store_true", help="write choices.json")
    arguments = parser.parse_args()
    import torch

    from aurora_ds.kernels import choice

    if choice.obstacle() is not None:
        parser.error(f"there is nothing to compare: {choice.obstacle()}")
    device = "cpu" if choice.interpreted() else "cuda"
    if device == "cpu" and not arguments.quick:
        parser.error("in the interpreter only --quick makes sense")
    if arguments.quick:
        arguments.repeat = 1
    record = {
        "what": "x Uᵀ by each site, shared, or in a LayerNorm's epilogue",
        "device": torch.cuda.get_device_name() if device == "cuda" else "the interpreter",
        "machine": machine_facts(1),
        "rows": compare(arguments, device),
    }
    record["choices"] = chosen(record["rows"])
    write_results("kernel_starts", record, report(record), arguments.quick)
    if arguments.write_choices and not arguments.quick:
        kernel_choices.write(record["choices"])


if __name__ == "__main__":
    main()

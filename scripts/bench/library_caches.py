"""What libraries keep of a step's products (matrix products, convolutions, attention) after they have computed them.

oneDNN keeps a description of every product that it has met, by shapes and strides: in bf16 0.3 to 0.6 MB each, however
small the product is, and as good as nothing in fp32. That is no tensor of the step, so it is measured by itself: the
products of a step are noted at the dispatcher, and made once in a fresh process out of tensors that are let go.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_NAMES = frozenset(
    (
        "mm",
        "addmm",
        "addmm_",
        "bmm",
        "baddbmm",
        "baddbmm_",
        "convolution",
        "convolution_backward",
        _ATTENTION,
        f"{_ATTENTION}_backward",
    )
)


class _Products(TorchDispatchMode):
    """Distinct products, in the order of their first appearance: JSON texts of name, arguments and keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "aten" and op._opname in _NAMES:
            given = tree_map_only(Tensor, _shape, [op._opname, list(args), kwargs or {}])
            self.found.setdefault(json.dumps(given))
        return op(*args, **(kwargs or {}))


def _shape(x: Tensor) -> dict[str, Any]:
    return {"shape": list(x.shape), "stride": list(x.stride()), "dtype": str(x.dtype).removeprefix("torch.")}


@contextmanager
def noting_products() -> Iterator[dict[str, None]]:
    """The products made inside the block, by this thread and by autograd's on its behalf."""
    with _Products() as products:
        yield products.found


def make_products(products: list[str]) -> None:
    """Each once, of zeros."""
    for text in products:
        name, arguments, keywords = _with_tensors(json.loads(text))
        getattr(torch.ops.aten, name).default(*arguments, **keywords)


def _with_tensors(given: Any) -> Any:
    if isinstance(given, list):
        return [_with_tensors(each) for each in given]
    if not isinstance(given, dict):
        return given
    if "stride" not in given:
        return {name: _with_tensors(each) for name, each in given.items()}
    return torch.empty_strided(given["shape"], given["stride"], dtype=getattr(torch, given["dtype"])).zero_()


def kept(before: list[str], own: list[str], resident: Callable[[str], int]) -> int:
    """Bytes that stay when the products of `own` have been made after those of `before`."""
    make_products(before)
    gc.collect()
    floor = resident("VmRSS")
    make_products(own)
    gc.collect()
    return resident("VmRSS") - floor


def main() -> None:
    """Standard input: JSON of the two lists."""
    from memory import resident

    torch.set_num_threads(1)
    before, own = json.load(sys.stdin)
    print(kept(before, own, resident))


if __name__ == "__main__":
    main()

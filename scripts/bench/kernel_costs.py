"""What a prompted linear costs: operations, bytes and the least time at given rates. No measurement in here.

Operations, forward and backward (W frozen, so twice the forward pass): the frozen linear has 4·M·d_in·d_out; the update
adds 6·M·R·(d_in + inputs·d_out), which for qkv (d_in = d, three output blocks of d) makes 1 + 2R/d in all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One adapted linear of a backbone."""

    name: str
    d_out: int
    d_in: int
    outputs: int = 1
    inputs: int = 1


# Distinct shapes of the sites of BLIP with ViT-B/16 and with ViT-L/16 (text width 768 in both).
SHAPES = {
    "base": [
        Shape("qkv 768", 2304, 768, outputs=3),
        Shape("output 768", 768, 768),
        Shape("fc1 768", 3072, 768, outputs=4),
        Shape("fc2 768", 768, 3072, inputs=4),
        Shape("cross kv 768", 1536, 768, outputs=2),
    ],
    "large": [
        Shape("qkv 1024", 3072, 1024, outputs=3),
        Shape("output 1024", 1024, 1024),
        Shape("fc1 1024", 4096, 1024, outputs=4),
        Shape("fc2 1024", 1024, 4096, inputs=4),
        Shape("cross kv 1024", 1536, 1024, outputs=2),
    ],
}


@dataclass(frozen=True)
class Cost:
    """Of one call, forward and backward."""

    operations: float
    bytes: float

    def seconds(self, operations_per_second: float, bytes_per_second: float) -> float:
        """The least time: whichever of the two takes longer."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def frozen(shape: Shape, rows: int, size: int) -> Cost:
    """The linear alone: y from x and W, dx from dy and W; every tensor read or written once (`size` bytes a number)."""
    moved = 2 * (rows * shape.d_in + rows * shape.d_out + shape.d_out * shape.d_in)
    return Cost(4.0 * rows * shape.d_in * shape.d_out, float(size * moved))


def prompted(shape: Shape, rank: int, rows: int, size: int) -> Cost:
    """As the kernels do it: x is read for z, y and dU, dy for dA, dz and dx; y and dx are written once, z and dz
    written once and read twice; factors and their gradients are small."""
    linear = frozen(shape, rows, size)
    low = rows * shape.inputs * rank
    moved = 2 * rows * shape.d_in + 2 * rows * shape.d_out + 6 * low
    operations = 6.0 * rows * rank * (shape.d_in + shape.inputs * shape.d_out)
    return Cost(linear.operations + operations, linear.bytes + float(size * moved))


def twin(shape: Shape, rank: int, rows: int, size: int) -> Cost:
    """As the PyTorch twin does it: y and dx are read and written once more, to add the low-rank part."""
    fused = prompted(shape, rank, rows, size)
    return Cost(fused.operations, fused.bytes + float(2 * size * rows * (shape.d_in + shape.d_out)))


def floor(shape: Shape, rank: int) -> float:
    """Operations of the prompted linear over those of the frozen one."""
    return prompted(shape, rank, 1, 2).operations / frozen(shape, 1, 2).operations


def shared(shape: Shape, rank: int, rows: int, size: int, sites: int) -> Cost:
    """One of `sites` that share x Uᵀ: z, dU and dz U cost each a share; dz U is written and added to dx by itself."""
    linear = frozen(shape, rows, size)
    low = rows * shape.inputs * rank
    operations = 6.0 * rows * rank * (shape.inputs * shape.d_out + shape.d_in / sites)
    moved = 2 * rows * shape.d_out + 6 * low + 6 * rows * shape.d_in / sites
    return Cost(linear.operations + operations, linear.bytes + float(size * moved))


def norm_apart(width: int, rank: int, rows: int, size: int) -> list[Cost]:
    """A LayerNorm before a site, forward and backward, and what of the site depends on x Uᵀ alone, as launches of their
    own: the norm; z, which reads h again; dz U, which rides in the site's dx, costs operations there and moves nothing;
    the norm's backward pass. dU is the same in both ways and left out."""
    tokens, small = size * rows * width, size * rows * rank
    product = 2.0 * rows * rank * width
    return [
        Cost(0.0, 2.0 * tokens),
        Cost(product, tokens + small),
        Cost(product, 0.0),
        Cost(0.0, 3.0 * tokens),
    ]


def norm_fused(width: int, rank: int, rows: int, size: int) -> list[Cost]:
    """The same as two launches: z made of the tiles of h as they are written; dz U made twice where dh is read."""
    tokens, small = size * rows * width, size * rows * rank
    product = 2.0 * rows * rank * width
    return [Cost(product, 2.0 * tokens + small), Cost(2 * product, 3.0 * tokens + 2 * small)]

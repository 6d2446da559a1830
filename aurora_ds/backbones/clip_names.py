"""Names of OpenAI CLIP's vision transformer, as mPLUG's files carry them under `visual_encoder.visual.`, and timm's,
with its shapes, of the same tensors, which this package has. Other names pass as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "visual_encoder.visual."
# CLIP's, timm's
_TOP = (
    ("conv1.weight", "patch_embed.proj.weight"),
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
)
_IN_BLOCK = (
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_BLOCKS = ("transformer.resblocks.", "blocks.")


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's names -> timm's; the class token and the positions get timm's leading axes."""
    shapes = {"cls_token": (1, 1), "pos_embed": (1, -1)}
    return dict(_renamed(name, tensor, 0, shapes) for name, tensor in state.items())


def to_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_timm`, for weights and gradients alike."""
    shapes = {"class_embedding": (), "positional_embedding": (-1,)}
    return dict(_renamed(name, tensor, 1, shapes) for name, tensor in state.items())


def _renamed(
    name: str, tensor: Tensor, source: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, Tensor]:
    """`source`: which of the two names of each pair is given. `shapes`: axes before the width, by new name."""
    if not name.startswith(PREFIX):
        return name, tensor
    rest = name.removeprefix(PREFIX)
    if rest.startswith(_BLOCKS[source]):
        number, _, inner = rest.removeprefix(_BLOCKS[source]).partition(".")
        return f"{PREFIX}{_BLOCKS[1 - source]}{number}.{_exchanged(inner, _IN_BLOCK, source)}", tensor
    rest = _exchanged(rest, _TOP, source)
    if rest in shapes:
        tensor = tensor.reshape(*shapes[rest], tensor.shape[-1])
    return f"{PREFIX}{rest}", tensor


def _exchanged(name: str, pairs: tuple[tuple[str, str], ...], source: int) -> str:
    for pair in pairs:
        if name.startswith(pair[source]):
            return pair[1 - source] + name.removeprefix(pair[source])
    return name

"""Pictures of the toy world with what each patch shows, and an image encoder that learns to tell it: where the patch
is, which kind and colour its thing has, and the box of that thing. Used by train_mplug.py."""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_backbone import pixels

from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.quickstart.render import SIDE, render_with_boxes
from aurora_ds.quickstart.scenes import COLOURS, KINDS, Scene
from aurora_ds.quickstart.world import DOMAINS
from aurora_ds.tasks.boxes import centres, corners

BATCH, WARM_UP, RATE = 32, 20, 1e-3
ALONE, ALONE_RATE = 100, 1e-2  # steps in which the linear map alone learns, on the tokens that there are
KEPT = 2.0  # weight of the tokens that were there before, against one each for what is told
TOLD = (2, 4, 1 + len(KINDS), len(COLOURS))  # numbers for row and column, box, kind or ground, colour


@dataclass(frozen=True)
class Material:
    """Scenes, their pictures uint8 (n, S, S, 3), and the boxes of each one's groups in shares, (groups, 4)."""

    scenes: list[Scene]
    pictures: np.ndarray
    boxes: list[Tensor]

    def image(self, rows: np.ndarray) -> Tensor:
        """(rows, 3, S, S)."""
        return pixels(self.pictures[rows])

    def owners(self, grid: int) -> Tensor:
        """The group whose box each of grid² patches has its middle in, the one in front of several; -1: none. int64
        (n, grid²), rows of patches one after the other."""
        place = (patch_places(grid) + 1) / 2
        found = torch.full((len(self.scenes), grid * grid), -1)
        for owner, boxes in zip(found, self.boxes, strict=True):
            for number, box in enumerate(corners(boxes)):  # later ones are painted over earlier ones
                owner[((place > box[:2]) & (place < box[2:])).all(-1)] = number
        return found


def _seen(domain: str, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    picture, boxes = render_with_boxes(scene, DOMAINS[domain].look)
    return np.asarray(picture), np.asarray(boxes, np.float32) / SIDE


def material(scenes: list[Scene], domain: str, threads: int) -> Material:
    """The scenes as the domain shows them."""
    with multiprocessing.get_context("fork").Pool(threads) as pool:
        seen = pool.map(partial(_seen, domain), scenes, chunksize=64)
    boxes = [centres(torch.from_numpy(each)) for _, each in seen]
    return Material(scenes, np.stack([picture for picture, _ in seen]), boxes)


def material_of_one(scene: Scene, domain: str) -> Material:
    """`material` without processes."""
    picture, boxes = _seen(domain, scene)
    return Material([scene], picture[None], [centres(torch.from_numpy(boxes))])


def patch_places(grid: int) -> Tensor:
    """(grid², 2): column and row of the patches' middles, -1 to 1 from edge to edge."""
    line = (torch.arange(grid) + 0.5) / grid * 2 - 1
    row, column = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([column, row], -1).flatten(0, 1)


def learn_places(
    visual: VisionTransformer, seen: Material, steps: int, generator: np.random.Generator
) -> dict[str, float]:
    """The image encoder, in place: its tokens stay near what they were, and a linear map, thrown away, tells from each
    patch's the patch's place, the kind and colour of its thing and the box. Returns the last means of what it
    misses: shares of variance, and shares of patches."""
    grid = int(math.sqrt(visual.patch_embed.num_patches))
    owners, place = seen.owners(grid), patch_places(grid)
    looks = [[[1 + KINDS.index(g.kind), COLOURS.index(g.colour)] for g in s.groups] for s in seen.scenes]
    told = nn.Linear(visual.embed_dim, sum(TOLD))
    with torch.no_grad():
        parts = np.array_split(np.arange(len(seen.scenes)), 1 + len(seen.scenes) // 100)
        known = torch.cat([visual(seen.image(rows)) for rows in parts])
    own = {"params": [*visual.parameters()], "lr": 0.0}
    optimizer = torch.optim.AdamW([own, {"params": [*told.parameters()]}], lr=ALONE_RATE, weight_decay=0.01)
    shown: dict[str, float] = {}
    for step in range(-ALONE, steps):
        rows = generator.integers(len(seen.scenes), size=BATCH)
        tokens = known[rows] if step < 0 else visual(seen.image(rows))
        owner = owners[rows]
        here = owner >= 0
        look = torch.stack([torch.tensor(looks[i])[o.clamp(min=0)] for i, o in zip(rows, owner, strict=True)])
        box = torch.stack([seen.boxes[i][o.clamp(min=0)] for i, o in zip(rows, owner, strict=True)])[here]
        at, boxed, kind, colour = told(tokens[:, 1:]).split(TOLD, dim=-1)
        is_kind = torch.where(here, look[..., 0], 0)
        losses = {
            "kept": F.mse_loss(tokens, known[rows]) / known.var(),
            "place": F.mse_loss(at, place.expand_as(at)) / place.var(),
            "box": (F.mse_loss(boxed[here], box, reduction="none") / box.var(0)).mean(),
            "kind": F.cross_entropy(kind.flatten(0, 1), is_kind.flatten()),
            "colour": F.cross_entropy(colour[here], look[here][:, 1]),
        }
        if step >= 0:
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM_UP) * falling
            optimizer.param_groups[1]["lr"] = RATE
        optimizer.zero_grad(set_to_none=True)
        (sum(losses.values()) + (KEPT - 1) * losses["kept"]).backward()
        optimizer.step()
        with torch.no_grad():
            missed = {name: float(losses[name]) for name in ("kept", "place", "box")}
            missed["kind"] = float((kind.argmax(-1) != is_kind)[here].float().mean())
            missed["colour"] = float((colour.argmax(-1)[here] != look[here][:, 1]).float().mean())
        shown = {name: 0.95 * shown.get(name, value) + 0.05 * value for name, value in missed.items()}
        if (step + 1) % 25 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"places: step {step + 1} misses {line}", flush=True)
    return {name: round(value, 3) for name, value in shown.items()}

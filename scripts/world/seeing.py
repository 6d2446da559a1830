"""Pictures of the toy world with what each patch shows, and an image encoder that learns to tell it, from random
weights: of each patch where it is, its ground, the kind, colour and number of its things and their box; of the whole
picture its ground and every thing in it. Used by train_mplug.py."""

from __future__ import annotations

import math
import multiprocessing
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_backbone import pixels

from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.quickstart.render import SIDE, places, render_with_boxes
from aurora_ds.quickstart.scenes import COLOURS, KINDS, SETTINGS, Scene
from aurora_ds.quickstart.world import DOMAINS
from aurora_ds.tasks.boxes import centres

WARM_UP = 60
MOST = 3  # things of a group
# what a linear map, thrown away, tells of a patch: column and row, box, something or ground, kind, colour, number,
# setting; and of the whole picture: setting, each kind in each colour
OF_PATCH = (2, 4, 2, len(KINDS), len(COLOURS), MOST, len(SETTINGS))
OF_PICTURE = (len(SETTINGS), len(KINDS) * len(COLOURS))
WEIGHTS = {"box": 10.0, "things": 10.0, "kind": 2.0}  # of losses whose numbers are small, or that fall late


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
        """The group that has a thing under the middle of each of grid² patches, the one in front of several; -1: none.
        int64 (n, grid²), rows of patches one after the other."""
        place = (patch_places(grid) + 1) / 2
        found = torch.full((len(self.scenes), grid * grid), -1)
        for owner, scene in zip(found, self.scenes, strict=True):
            for number, group in enumerate(scene.groups):  # later ones are painted over earlier ones
                away = (place[:, None] - torch.tensor(places(group))).abs().amax(-1)  # (grid², things)
                owner[(away < group.size / 2).any(-1)] = number
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


@torch.no_grad()
def tell_places_apart(visual: VisionTransformer) -> None:
    """Positions of patches begin as waves over columns and rows: with timm's, which begin near zero, it hardly learns
    shapes that several patches make."""
    grid = int(math.sqrt(visual.patch_embed.num_patches))
    frequencies = math.pi * 2 ** torch.linspace(-2, math.log2(grid / 4), visual.embed_dim // 4)
    angles = patch_places(grid)[..., None] * frequencies  # (grid², 2, width / 4)
    visual.pos_embed[:, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


@dataclass(frozen=True)
class Shown:
    """What is to be told of each picture's patches and of all of it; -1 as a class: nothing to tell."""

    classes: Tensor  # int64 (n, patches, 5): something, kind, colour, number - 1, setting
    boxes: Tensor  # (n, patches, 4)
    setting: Tensor  # int64 (n,)
    things: Tensor  # (n, kinds · colours): 1 where it is there

    @classmethod
    def of(cls, seen: Material, grid: int) -> Shown:
        owners = seen.owners(grid)
        classes = torch.full((*owners.shape, 5), -1)
        boxes = torch.zeros(*owners.shape, 4)
        setting = torch.tensor([SETTINGS.index(scene.setting) for scene in seen.scenes])
        things = torch.zeros(len(seen.scenes), OF_PICTURE[1])
        classes[..., 0] = owners >= 0
        classes[..., 4] = setting[:, None]
        for picture, scene in enumerate(seen.scenes):
            for number, group in enumerate(scene.groups):
                own, kind, colour = (
                    owners[picture] == number,
                    KINDS.index(group.kind),
                    COLOURS.index(group.colour),
                )
                classes[picture, own, 1:4] = torch.tensor([kind, colour, group.count - 1])
                boxes[picture, own] = seen.boxes[picture][number]
                things[picture, kind * len(COLOURS) + colour] = 1
        return cls(classes, boxes, setting, things)


def learn_to_see(
    visual: VisionTransformer,
    seen: Material,
    steps: int,
    batch: int,
    rate: float,
    generator: np.random.Generator,
) -> dict[str, float]:
    """The image encoder, in place. Returns the last shares of what has something to tell that it tells wrong, and how
    far boxes are off."""
    tell_places_apart(visual)
    grid = int(math.sqrt(visual.patch_embed.num_patches))
    shown, place = Shown.of(seen, grid), patch_places(grid)
    of_patch, of_picture = (nn.Linear(visual.embed_dim, sum(told)) for told in (OF_PATCH, OF_PICTURE))
    parameters = [p for module in (visual, of_patch, of_picture) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    names = ("something", "kind", "colour", "number", "setting")
    means: dict[str, float] = {}
    started = time.time()
    for step in range(steps):
        rows = generator.integers(len(seen.scenes), size=batch)
        tokens, classes = visual(seen.image(rows)), shown.classes[rows]
        at, box, *scores = of_patch(tokens[:, 1:]).split(OF_PATCH, dim=-1)
        setting, things = of_picture(tokens[:, 0]).split(OF_PICTURE, dim=-1)
        here = classes[..., 0] > 0
        losses = {
            "place": F.mse_loss(at, place.expand_as(at)),
            "box": F.smooth_l1_loss(box[here], shown.boxes[rows][here], beta=0.05),
            "picture": F.cross_entropy(setting, shown.setting[rows]),
            "things": F.binary_cross_entropy_with_logits(things, shown.things[rows]),
        }
        for number, (name, score) in enumerate(zip(names, scores, strict=True)):
            losses[name] = F.cross_entropy(
                score.flatten(0, 1), classes[..., number].flatten(), ignore_index=-1
            )
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * falling
        optimizer.zero_grad(set_to_none=True)
        sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            missed = {"box, pixels": float((box - shown.boxes[rows])[here].abs().mean()) * SIDE}
            for number, (name, score) in enumerate(zip(names, scores, strict=True)):
                true = classes[..., number]
                missed[name] = float((score.argmax(-1) != true)[true >= 0].float().mean())
        means = {name: 0.95 * means.get(name, value) + 0.05 * value for name, value in missed.items()}
        if (step + 1) % 100 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"seeing: step {step + 1} {time.time() - started:.0f} s misses {line}", flush=True)
    return {name: round(value, 3) for name, value in means.items()}

"""Makes the built-in backbone: a tiny BLIP trained in full on the toy world's source domain, from random weights.

    python scripts/world/train_backbone.py --output FOLDER [--pictures 16000] [--seed 7]

Losses: contrastive over the batch (BLIP §3.2, without queue and momentum) and matching with negatives of the batch. Two
scaffolds are dropped before the end, since captions alone teach so small a model too slowly for two CPU cores: each
patch names the kind, colour and count of what covers it (known from the scene graph), and hidden words of a caption are
guessed from the picture. The second phase matches more pairs, mostly hard ones. Budget: about 20 minutes on two cores.
Writes backbone.safetensors (published key names), backbone.json, vocab.txt and training.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.checkpoint import to_published
from aurora_ds.config import BackboneConfig, TextConfig, VisionConfig
from aurora_ds.quickstart.captions import describe, vocabulary
from aurora_ds.quickstart.render import SIDE, places, render
from aurora_ds.quickstart.scenes import COLOURS, KINDS, Scene, sample_scene, twin
from aurora_ds.quickstart.world import DOMAINS, sample_split

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MEAN = np.asarray((0.48145466, 0.4578275, 0.40821073), np.float32)  # BLIP's picture normalisation
STD = np.asarray((0.26862954, 0.26130258, 0.27577711), np.float32)
WARM_UP = 100  # steps of each phase
TWINNED = 0.3  # share of training scenes that come with their twin in the same batch
PATCH = 10


@dataclass(frozen=True)
class Phase:
    """`pairs` rows of a batch are matched from step `match_from` on; `hard` of 4 negatives are hard ones."""

    steps: int
    first_rate: float
    last_rate: float
    match_from: int
    pairs: int
    hard: int
    words_until: int
    patches_until: int

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine from `first_rate` to `last_rate`."""
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1, (step + 1) / WARM_UP) * (self.last_rate + (self.first_rate - self.last_rate) * falling)


PHASES = {
    "broad": Phase(2000, 1e-3, 5e-4, match_from=480, pairs=32, hard=2, words_until=2000, patches_until=2000),
    "hard": Phase(900, 6e-4, 0.0, match_from=0, pairs=64, hard=3, words_until=0, patches_until=500),
}


def backbone_config() -> BackboneConfig:
    """Sizes of the built-in backbone; ids follow the word list, with [DEC] and [ENC] appended by the tokenizer."""
    words = len(SPECIAL) + len(vocabulary())
    text = TextConfig(
        vocab_size=words + 2, width=96, depth=4, heads=4, intermediate=384, max_positions=40, dropout=0.0,
        attention_dropout=0.0, pad_id=0, cls_id=2, sep_id=3, bos_id=words, enc_id=words + 1,
    )  # fmt: skip
    vision = VisionConfig(image_size=SIDE, patch_size=PATCH, width=96, depth=4, heads=4)
    return BackboneConfig(checkpoint="builtin:world", vision=vision, text=text, embed_dim=64)


class WordIds:
    """Captions to ids: [CLS] words [SEP], padded to the longest."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.ids = {word: index for index, word in enumerate([*SPECIAL, *vocabulary()])}

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [
            [self.config.cls_id, *(self.ids[w] for w in caption.split()), self.config.sep_id]
            for caption in captions
        ]
        ids = torch.full((len(rows), max(map(len, rows))), self.config.pad_id)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids, (ids != self.config.pad_id).long()


def patch_labels(scene: Scene) -> np.ndarray:
    """Kind, colour and count (0: nothing) under each patch centre, uint8 (3, grid, grid)."""
    grid = SIDE // PATCH
    rows, columns = (np.mgrid[0:grid, 0:grid] + 0.5) / grid
    labels = np.zeros((3, grid, grid), np.uint8)
    for group in scene.groups:
        for x, y in places(group):
            under = (rows - y) ** 2 + (columns - x) ** 2 < (0.46 * group.size) ** 2
            labels[:, under] = np.asarray(
                [1 + KINDS.index(group.kind), 1 + COLOURS.index(group.colour), group.count]
            )[:, None]
    return labels


def _seen(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(render(scene, DOMAINS["source"].look)), patch_labels(scene)


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> normalised float32 (B, 3, H, W)."""
    return torch.from_numpy((pictures.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def encode_both(model: torch.nn.Module, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> tuple:
    """(image tokens, image feature, text feature); features are unit vectors (B, E)."""
    tokens = model.visual_encoder(image)
    seen = F.normalize(model.vision_proj(tokens[:, 0]), dim=-1)
    told = F.normalize(model.text_proj(model.text_encoder(ids, mask)[:, 0]), dim=-1)
    return tokens, seen, told


def matching_logits(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    index: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    enc_id: int,
) -> torch.Tensor:
    """Logits (P, 2) of pairs: text row p with image `index[p]`."""
    ids = ids.clone()
    ids[:, 0] = enc_id
    states = model.text_encoder(ids, mask, image_kv=model.text_encoder.image_kv(tokens), image_index=index)
    return model.itm_head(states[:, 0])


def retrieval_losses(
    model: torch.nn.Module,
    image: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    config: TextConfig,
    pairs: int = 0,
    hard: int = 2,
    masked: bool = False,
) -> dict[str, torch.Tensor]:
    """Contrastive loss of the batch; matching loss of its first `pairs` rows with one negative each; hidden words.

    Negatives exchange the image or the text in turn; `hard` of 4 are hard ones (by the contrastive similarity), the
    others drawn evenly: the matching head does not get off the ground on hard ones alone.
    Also returns the image tokens, (B, N + 1, D).
    """
    tokens, seen, told = encode_both(model, image, ids, mask)
    with torch.no_grad():
        model.temp.clamp_(0.01, 0.5)
    logits = seen @ told.T / model.temp
    own = torch.arange(len(image))
    losses = {"tokens": tokens, "itc": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}
    if not pairs:
        return losses
    own = own[:pairs]
    is_hard = (torch.rand(len(own)) < hard / 4)[:, None]
    with torch.no_grad():
        chance = logits[:pairs, :pairs].detach() * is_hard  # rows of zeros: drawn evenly
        chance_image = logits[:pairs, :pairs].detach().T * is_hard
        texts, images = (
            torch.multinomial(c.fill_diagonal_(-torch.inf).softmax(-1), 1).squeeze(1)
            for c in (chance, chance_image)
        )
    image_of, text_of = torch.where(own % 2 == 0, own, images), torch.where(own % 2 == 0, texts, own)
    index, texts = torch.cat([own, image_of]), torch.cat([own, text_of])
    pair_ids, pair_mask = ids[texts].clone(), mask[texts]
    pair_ids[:, 0] = config.enc_id
    if masked:
        hidden = (torch.rand(pairs, ids.shape[1]) < 0.35) & (ids[:pairs] > config.sep_id)
        index = torch.cat([index, own])
        pair_ids = torch.cat([pair_ids, pair_ids[:pairs].masked_fill(hidden, SPECIAL.index("[MASK]"))])
        pair_mask = torch.cat([pair_mask, mask[:pairs]])
    states = model.text_encoder(
        pair_ids, pair_mask, image_kv=model.text_encoder.image_kv(tokens[:pairs]), image_index=index
    )
    scores = model.itm_head(states[: 2 * pairs, 0])
    losses["itm"] = F.cross_entropy(scores, torch.cat([torch.ones_like(own), torch.zeros_like(own)]))
    if masked:
        told_words = states[2 * pairs :][hidden] @ model.text_encoder.embeddings.word_embeddings.weight.T
        losses["word"] = F.cross_entropy(told_words, ids[:pairs][hidden])
    return losses


@torch.no_grad()
def recall(
    model: torch.nn.Module, words: WordIds, domain: str, number: int = 200, seed: int = 1, k: int = 16
) -> dict[str, float]:
    """Two-stage retrieval on a test split: R@1, 5, 10 in percent, text for image (tr) and image for text (ir)."""
    model.eval()
    split = sample_split(domain, "test", number, 3, seed)
    image = pixels(np.stack([np.asarray(render(p.scene, DOMAINS[domain].look)) for p in split]))
    captions = [caption for p in split for caption in p.captions]
    owner = np.repeat(np.arange(number), 3)
    ids, mask = words(captions)
    tokens, seen, told = [], [], []
    for start in range(0, number, 50):
        t, s, w = encode_both(
            model,
            image[start : start + 50],
            ids[3 * start : 3 * start + 150],
            mask[3 * start : 3 * start + 150],
        )
        tokens.append(t), seen.append(s), told.append(w)
    tokens, similarity = torch.cat(tokens), torch.cat(seen) @ torch.cat(told).T  # (images, texts)
    wanted = torch.zeros_like(similarity, dtype=torch.bool)
    wanted.scatter_(1, similarity.topk(k, 1).indices, True)
    wanted.scatter_(0, similarity.topk(k, 0).indices, True)
    rows, columns = wanted.nonzero(as_tuple=True)
    score = torch.full_like(similarity, -100.0)
    for start in range(0, len(rows), 512):
        r, c = rows[start : start + 512], columns[start : start + 512]
        first, inverse = r.unique(return_inverse=True)
        score[r, c] = (
            matching_logits(model, tokens[first], inverse, ids[c], mask[c], words.config.enc_id)[:, 1]
            + similarity[r, c]
        )
    figures = {}
    for name, table in (("", score), ("itc_", similarity)):
        table = table.numpy()
        text_ranks = [(table[i] > table[i, owner == i].max()).sum() for i in range(number)]
        image_ranks = [(table[:, j] > table[owner[j], j]).sum() for j in range(len(captions))]
        for side, ranks in (("tr", text_ranks), ("ir", image_ranks)):
            for depth in (1, 5, 10):
                figures[f"{name}{side}@{depth}"] = round(100 * float(np.mean(np.asarray(ranks) < depth)), 1)
    model.train()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--start", type=Path, help="last.pt of an earlier run, for a later phase alone")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--pictures", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    started = time.time()

    units: list[list[int]] = []  # indices of scenes that go into one batch together
    scenes: list[Scene] = []
    while len(scenes) < arguments.pictures:
        unit = [sample_scene(generator)]
        if generator.random() < TWINNED:
            unit.append(twin(unit[0], generator))
        units.append(list(range(len(scenes), len(scenes) + len(unit))))
        scenes += unit
    with multiprocessing.get_context("fork").Pool(arguments.threads) as pool:
        seen = pool.map(_seen, scenes, chunksize=64)
    pictures, labels = np.stack([s[0] for s in seen]), np.stack([s[1] for s in seen])
    print(f"{len(scenes)} pictures in {time.time() - started:.0f} s", flush=True)

    config = backbone_config()
    words = WordIds(config.text)
    model = BlipRetrieval(config).train()
    if arguments.start is not None:
        model.load_state_dict(torch.load(arguments.start, weights_only=True))
    patch_head = torch.nn.Linear(config.vision.width, 1 + len(KINDS) + 1 + len(COLOURS) + 4)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    for name in arguments.phases:
        train(
            model,
            patch_head,
            PHASES[name],
            Material(scenes, units, pictures, labels),
            words,
            generator,
            arguments.batch,
        )
        torch.save(model.state_dict(), arguments.output / "last.pt")
        print(f"{name} {time.time() - started:.0f} s, source", recall(model, words, "source"), flush=True)
    made = {
        "seed": arguments.seed,
        "pictures": len(scenes),
        "phases": arguments.phases,
        "batch": arguments.batch,
    }
    publish(arguments.output, model, config, made | {"seconds": round(time.time() - started)}, words)


@dataclass(frozen=True)
class Material:
    """Training scenes with pictures (n, H, W, 3) and patch labels (n, 3, grid, grid), uint8; `units` share a batch."""

    scenes: list[Scene]
    units: list[list[int]]
    pictures: np.ndarray
    labels: np.ndarray


def train(
    model: torch.nn.Module,
    patch_head: torch.nn.Module,
    phase: Phase,
    material: Material,
    words: WordIds,
    generator: np.random.Generator,
    batch: int,
) -> None:
    """One phase, in place. Captions are drawn anew each time; pictures are shifted and lit a little differently."""
    parameters = [*model.parameters(), *patch_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=phase.first_rate, betas=(0.9, 0.98), weight_decay=0.02)
    phrasing = DOMAINS["source"].phrasing
    order: list[list[int]] = []
    started, shown = time.time(), {}
    for step in range(phase.steps):
        chosen: list[tuple[int, bool]] = []
        while len(chosen) < batch:
            if not order:
                order = [material.units[i] for i in generator.permutation(len(material.units))]
            unit = order.pop()
            chosen += [(index, len(unit) > 1) for index in unit]
        chosen = chosen[:batch]
        rows = [index for index, _ in chosen]
        shift_y, shift_x = generator.integers(-2, 3, 2)
        picture = np.roll(material.pictures[rows], (shift_y, shift_x), (1, 2)).astype(np.float32)
        picture *= generator.uniform(0.85, 1.15, (len(rows), 1, 1, 1))
        image = pixels(np.clip(picture, 0, 255))
        ids, mask = words(
            [describe(material.scenes[i], 1, phrasing, generator, related)[0][1] for i, related in chosen]
        )
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(step)
        pairs = phase.pairs if step >= phase.match_from else 0
        losses = retrieval_losses(
            model, image, ids, mask, words.config, pairs, phase.hard, step < phase.words_until
        )
        tokens = losses.pop("tokens")
        if step < phase.patches_until:
            target = torch.from_numpy(material.labels[rows].astype(np.int64)).flatten(2)  # (B, 3, patches)
            kind, colour, count = patch_head(tokens[:, 1:]).split([1 + len(KINDS), 1 + len(COLOURS), 4], -1)
            losses["patch"] = sum(
                F.cross_entropy(o.transpose(1, 2), target[:, i]) for i, o in enumerate((kind, colour, count))
            )
        loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in losses.items():
            shown[name] = 0.95 * shown.get(name, float(value.detach())) + 0.05 * float(value.detach())
        if (step + 1) % 100 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(
                f"step {step + 1} {time.time() - started:.0f} s {line} temp {model.temp.item():.3f}",
                flush=True,
            )


def publish(folder: Path, model: torch.nn.Module, config: BackboneConfig, made: dict, words: WordIds) -> None:
    """Writes the asset's files; `made` says how it came about and is kept in training.json with the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().float().contiguous().clone() for name, tensor in to_published(model).items()
    }
    save_file(state, folder / "backbone.safetensors", {"format": "pt"})
    sizes = config.model_dump(include={"name", "vision", "text", "embed_dim"})
    (folder / "backbone.json").write_text(json.dumps(sizes, indent=2) + "\n")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *vocabulary()]) + "\n")
    figures = {domain: recall(model, words, domain) for domain in DOMAINS}
    record = {key: value for key, value in made.items() if key != "output"} | {"torch": torch.__version__}
    (folder / "training.json").write_text(json.dumps({"made": record, "figures": figures}, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

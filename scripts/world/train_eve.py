"""Makes the built-in EVE: a tiny unified transformer with experts, trained in full on the toy world's source domain.

    python scripts/world/train_eve.py --output FOLDER [--pictures 3000] [--steps 600] [--seed 7]

It begins with the image encoder of the built-in BLIP, as the published one began with an image model: its attention
becomes that of images and texts, its feed-forwards those of images, the last layer's that of every expert. Losses:
contrastive over the batch, matching with negatives of the batch, hidden words of captions, answers of questions; and,
for two thirds of the steps, each patch names the kind, colour and count of what covers it (known from the scene graph),
since texts alone teach so small a model too slowly for two CPU cores.
Writes backbone.safetensors (published key names, heads of retrieval and of questions, half precision), backbone.json,
vocab.txt and training.json with figures of the test splits of both domains.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from train_backbone import PATCH, SPECIAL, TWINNED, patch_labels, pixels

from aurora_ds.backbones.checkpoint import load_backbone, published_tensors
from aurora_ds.backbones.eve import EveStates, balance_loss
from aurora_ds.backbones.eve_heads import EveRetrieval, EveVqa
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import BackboneConfig
from aurora_ds.data.answer_classes import answer_score
from aurora_ds.quickstart.captions import describe
from aurora_ds.quickstart.questions import (
    ANNOTATORS,
    Asker,
    Question,
    answer_list,
    language_vocabulary,
    sample_questions,
)
from aurora_ds.quickstart.render import SIDE, render
from aurora_ds.quickstart.scenes import COLOURS, KINDS, Scene, sample_scene, twin
from aurora_ds.quickstart.world import ASSETS, DOMAINS, sample_split

WARM_UP, MATCH_FROM, PATCHES_UNTIL = 50, 60, 2 / 3  # steps, steps, share of the steps
BATCH, PAIRS, ASKED, QUESTIONS, MOST_TOKENS = 32, 12, 10, 2, 40
HIDDEN_SHARE, HARD_SHARE = 0.35, 0.5  # of a caption's words; of negatives, by the contrastive similarity
TOP, EXPERTS = 3, 4  # the layer with experts, and how many
PATCH_PARTS = [1 + len(KINDS), 1 + len(COLOURS), 4]


def eve_config(head: str = "retrieval") -> BackboneConfig:
    """Sizes of the built-in EVE."""
    words = len(SPECIAL) + len(language_vocabulary())
    vision = {"image_size": SIDE, "patch_size": PATCH, "width": 96, "depth": 4, "heads": 4}
    text = {
        **{"vocab_size": words, "width": 96, "depth": 4, "heads": 4, "intermediate": 384},
        **{"max_positions": MOST_TOKENS, "dropout": 0.0, "attention_dropout": 0.0},
        **{"pad_id": 0, "cls_id": 2, "sep_id": 3, "bos_id": 2, "enc_id": 2},
    }
    eve = {
        "top_layers": [TOP],
        "moe": {"experts": EXPERTS},
        "answers": len(answer_list()),
        "layer_scale": 1.0,
    }
    return BackboneConfig(
        name="eve", head=head, vision=vision, text=text, embed_dim=64, eve={**eve, "pixels": "as_they_are"}
    )


def seeing() -> dict[str, Tensor]:
    """Tensors of the built-in BLIP that images and words pass through, under EVE's names."""
    checkpoint = "builtin:world-language"
    sizes = json.loads((ASSETS / "language" / "backbone.json").read_text())
    state = published_tensors(
        load_backbone(BackboneConfig(checkpoint=checkpoint, **sizes)).model.state_dict()
    )
    words = state["text_encoder.embeddings.word_embeddings.weight"]
    found = {
        "patch_embed.weight": state["visual_encoder.patch_embed.proj.weight"],
        "patch_embed.bias": state["visual_encoder.patch_embed.proj.bias"],
        "class_embedding_vision": state["visual_encoder.cls_token"].flatten(),
        "pos_embed_vision": state["visual_encoder.pos_embed"][0],
        "word_embedding.weight": words[: len(SPECIAL) + len(language_vocabulary())],
        "norm.weight": state["visual_encoder.norm.weight"],
        "norm.bias": state["visual_encoder.norm.bias"],
    }
    for name, tensor in state.items():
        part = re.fullmatch(r"visual_encoder\.blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if part is None:
            continue
        layer, module, kind = part.groups()
        top, prefix = int(layer) == TOP, f"encoder.layers.{layer}."
        if (module, kind) == ("attn.qkv", "bias"):  # EVE's keys have none, which attention cannot see
            found[f"{prefix}attn.q_bias"], _, found[f"{prefix}attn.v_bias"] = tensor.chunk(3)
        elif module == "norm2":
            found[f"{prefix}norm2_{'vl' if top else 'imag'}.{kind}"] = tensor
        elif module.startswith("mlp."):
            each = [f"mlp_moe.moe.experts.experts.{e}." for e in range(EXPERTS)] if top else ["mlp_imag."]
            found |= {f"{prefix}{one}{module[4:]}.{kind}": tensor for one in each}
        else:
            found[f"{prefix}{module}.{kind}"] = tensor
    return found


class WorldEve(nn.Module):
    """The trunk with the heads of retrieval and of questions, and two that are thrown away: names of patches, words.
    `pictures` (B, 3, H, W): some, to see how large embeddings are."""

    def __init__(self, config: BackboneConfig, pictures: Tensor) -> None:
        super().__init__()
        self.retrieval: EveRetrieval = new_model(config)
        trunk = self.retrieval.backbone
        given = seeing()
        unknown = trunk.load_state_dict(given, strict=False).unexpected_keys
        assert not unknown, unknown
        with (
            torch.no_grad()
        ):  # BLIP's layers see embeddings as they are: EVE's norm gives them back their size
            embedded = self.retrieval.image_tokens(pictures)
            trunk.pre_layrnorm.weight.fill_(float(embedded[:, 1:].std(-1).mean()))
            for layer in trunk.encoder.layers:
                for expert in getattr(layer, "mlp_moe", nn.Module()).parameters():
                    expert.add_(torch.randn_like(expert) * 0.01)  # experts that are equal would stay so
        self.questions: EveVqa = new_model(config.model_copy(update={"head": "vqa"}))
        self.questions.backbone = self.retrieval.backbone
        self.patches = nn.Linear(config.vision.width, sum(PATCH_PARTS))
        self.word_bias = nn.Parameter(torch.zeros(config.text.vocab_size))

    def fused(self, tokens: Tensor, index: Tensor, ids: Tensor, mask: Tensor) -> EveStates:
        """Texts, ids and mask (R, L), each with the embedded image `index` of tokens (images, N, D)."""
        return self.retrieval.backbone(image_tokens=tokens[index], input_ids=ids, attention_mask=mask)

    def published(self) -> dict[str, Tensor]:
        """The weights that the file has."""
        heads = {f"output.{name}": tensor for name, tensor in self.questions.output.state_dict().items()}
        return self.retrieval.state_dict() | heads


@dataclass
class Material:
    """Training scenes with pictures (n, H, W, 3) and names of patches (n, 3, grid, grid), uint8. `units` share a batch:
    a scene, or one and its twin, which captions then tell apart."""

    scenes: list[Scene]
    units: list[list[int]]
    pictures: np.ndarray
    labels: np.ndarray
    order: list[list[int]] = field(default_factory=list)

    def draw(self, number: int, generator: np.random.Generator) -> list[tuple[int, bool]]:
        """(scene, has its twin in the batch) of the next batch."""
        chosen: list[tuple[int, bool]] = []
        while len(chosen) < number:
            if not self.order:
                self.order = [self.units[i] for i in generator.permutation(len(self.units))]
            unit = self.order.pop()
            chosen += [(index, len(unit) > 1) for index in unit]
        return chosen[:number]


def _seen(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(render(scene, DOMAINS["source"].look)), patch_labels(scene)


def material(number: int, generator: np.random.Generator, processes: int) -> Material:
    """At least `number` scenes, some with twins, with their pictures of the source domain."""
    scenes: list[Scene] = []
    units: list[list[int]] = []
    while len(scenes) < number:
        unit = [sample_scene(generator)]
        if generator.random() < TWINNED:
            unit.append(twin(unit[0], generator))
        units.append(list(range(len(scenes), len(scenes) + len(unit))))
        scenes += unit
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        seen = pool.map(_seen, scenes, chunksize=64)
    return Material(scenes, units, np.stack([s[0] for s in seen]), np.stack([s[1] for s in seen]))


def negatives(likeness: Tensor) -> Tensor:
    """(P, P) -> int64 (P,): another one for each row, half of them likely ones."""
    hard = (torch.rand(len(likeness)) < HARD_SHARE)[:, None]
    chance = (likeness * hard).fill_diagonal_(-torch.inf).softmax(1)
    return torch.multinomial(chance, 1).squeeze(1)


def answer_goals(questions: list[Question], answers: list[str]) -> Tensor:
    """Soft targets (questions, answers)."""
    goals = torch.zeros(len(questions), len(answers))
    for row, question in enumerate(questions):
        for answer in set(question.answers):
            share = question.answers.count(answer) / ANNOTATORS
            goals[row, answers.index(answer)] = answer_score(share)
    return goals


class Lesson:
    """The losses of one step."""

    def __init__(
        self, model: WorldEve, config: BackboneConfig, words: Tokenizer, generator: np.random.Generator
    ):
        self.model, self.config, self.words, self.generator = model, config, words, generator
        self.phrasing, self.answers = DOMAINS["source"].phrasing, answer_list()
        self.asker = Asker(self.phrasing, generator)

    def losses(self, what: Material, step: int, patches: bool) -> dict[str, Tensor]:
        """By name; all count the same, but for the experts' balance."""
        retrieval, generator = self.model.retrieval, self.generator
        chosen = what.draw(BATCH, generator)
        rows = [index for index, _ in chosen]
        tokens = retrieval.image_tokens(self._pictures(what, rows))
        texts = [
            describe(what.scenes[i], 1, self.phrasing, generator, related)[0][1] for i, related in chosen
        ]
        ids, mask = self.words.encode(texts, MOST_TOKENS)
        seen = retrieval.backbone(image_tokens=tokens)
        told = retrieval.backbone(input_ids=ids, attention_mask=mask)
        with torch.no_grad():
            retrieval.itc_temp.clamp_(0.01, 0.5)
        image = F.normalize(retrieval.vision_proj(seen.states[:, 0]), dim=1)
        text = F.normalize(retrieval.text_proj(told.states[:, 0]), dim=1)
        likeness, own = image @ text.T / retrieval.temp, torch.arange(BATCH)
        losses = {"contrast": (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2}
        passes = [seen, told]
        if patches:
            losses["patches"] = self._patches(seen.states[:, 1:], what.labels[rows])
        if step >= MATCH_FROM:
            fused, more = self._fused(what, rows, tokens, ids, mask, likeness.detach()[:PAIRS, :PAIRS])
            losses |= more
            passes.append(fused)
        return losses | {"balance": 0.01 * balance_loss(passes)}

    def _pictures(self, what: Material, rows: list[int]) -> Tensor:
        """A little shifted, and lit a little differently."""
        shift = tuple(self.generator.integers(-2, 3, 2))
        picture = np.roll(what.pictures[rows], shift, (1, 2)).astype(np.float32)
        picture *= self.generator.uniform(0.85, 1.15, (len(rows), 1, 1, 1))
        return pixels(np.clip(picture, 0, 255))

    def _patches(self, states: Tensor, labels: np.ndarray) -> Tensor:
        goals = torch.from_numpy(labels.astype(np.int64)).flatten(2)  # (B, 3, patches)
        parts = self.model.patches(states).split(PATCH_PARTS, -1)
        return sum(
            F.cross_entropy(part.transpose(1, 2), goals[:, number]) for number, part in enumerate(parts)
        )

    def _fused(
        self,
        what: Material,
        rows: list[int],
        tokens: Tensor,
        ids: Tensor,
        mask: Tensor,
        likeness: Tensor,
    ) -> tuple[EveStates, dict[str, Tensor]]:
        """One pass of true pairs, false ones, captions with hidden words, and questions."""
        own = torch.arange(PAIRS)
        other_images, other_texts = negatives(likeness.T), negatives(likeness)
        image_of = torch.where(own % 2 == 0, own, other_images)
        text_of = torch.where(own % 2 == 0, other_texts, own)
        hidden = (torch.rand(PAIRS, ids.shape[1]) < HIDDEN_SHARE) & (ids[:PAIRS] >= len(SPECIAL))
        covered = ids[:PAIRS].masked_fill(hidden, SPECIAL.index("[MASK]"))
        asked = [
            (place, each)
            for place in range(ASKED)
            for each in self.asker.ask(what.scenes[rows[place]], QUESTIONS)
        ]
        asked_ids, asked_mask = self.words.encode([each.words for _, each in asked], MOST_TOKENS)
        wide = max(ids.shape[1], asked_ids.shape[1])
        pad = self.config.text.pad_id

        def widened(each: Tensor, fill: int) -> Tensor:
            return F.pad(each, (0, wide - each.shape[1]), value=fill)

        index = torch.cat([own, image_of, own, torch.tensor([place for place, _ in asked])])
        every_ids = [ids[:PAIRS], ids[text_of], covered, asked_ids]
        every_mask = [mask[:PAIRS], mask[text_of], mask[:PAIRS], asked_mask]
        fused = self.model.fused(
            tokens,
            index,
            torch.cat([widened(each, pad) for each in every_ids]),
            torch.cat([widened(each, 0) for each in every_mask]),
        )
        scores = self.model.retrieval.itm_head(fused.first_text[: 2 * PAIRS])
        states = fused.states[2 * PAIRS : 3 * PAIRS, fused.vision_tokens :][:, : ids.shape[1]][hidden]
        guessed = states @ self.model.retrieval.backbone.word_embedding.weight.T + self.model.word_bias
        said = self.model.questions.output(fused.first_text[3 * PAIRS :])
        goals = answer_goals([each for _, each in asked], self.answers)
        return fused, {
            "match": F.cross_entropy(scores, torch.cat([torch.ones_like(own), torch.zeros_like(own)])),
            "words": F.cross_entropy(guessed, ids[:PAIRS][hidden]),
            "answers": F.binary_cross_entropy_with_logits(said, goals, reduction="sum") / len(goals),
        }


def train(model: WorldEve, lesson: Lesson, what: Material, steps: int, rate: float) -> None:
    """In place. Warm-up, then half a cosine to zero."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    started, shown = time.time(), {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        losses = lesson.losses(what, step, patches=step < PATCHES_UNTIL * steps)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in losses.items():
            shown[name] = 0.95 * shown.get(name, float(value.detach())) + 0.05 * float(value.detach())
        if (step + 1) % 50 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {step + 1} {time.time() - started:.0f} s {line}", flush=True)


@torch.no_grad()
def recall(model: EveRetrieval, words: Tokenizer, domain: str, number: int = 200) -> dict[str, float]:
    """Contrastive retrieval of a test split, percent: text for a picture (tr) and picture for a text (ir)."""
    split = sample_split(domain, "test", number, 3, seed=1)
    image = pixels(np.stack([np.asarray(render(p.scene, DOMAINS[domain].look)) for p in split]))
    ids, mask = words.encode([caption for p in split for caption in p.captions], MOST_TOKENS)
    seen = F.normalize(model.vision_proj(model.image_states(image)[1]), dim=1)
    told = F.normalize(model.text_proj(model.text_states(ids, mask)[:, 0]), dim=1)
    likeness, owner = (seen @ told.T).numpy(), np.repeat(np.arange(number), 3)
    texts = [(likeness[i] > likeness[i, owner == i].max()).sum() for i in range(number)]
    images = [(likeness[:, j] > likeness[owner[j], j]).sum() for j in range(len(owner))]
    return {
        f"{way}@{depth}": round(100 * float(np.mean(np.asarray(ranks) < depth)), 1)
        for way, ranks in (("tr", texts), ("ir", images))
        for depth in (1, 10)
    }


@torch.no_grad()
def answered(model: EveVqa, words: Tokenizer, domain: str, number: int = 200) -> float:
    """Share of questions to which the likeliest answer is one that somebody gave, percent, on a test split."""
    answers, right = answer_list(), []
    for scene, questions in sample_questions(domain, "test", number, 3, seed=1):
        picture = pixels(np.asarray(render(scene, DOMAINS[domain].look))[None])
        tokens = model.image_tokens(picture).expand(len(questions), -1, -1)
        ids, mask = words.encode([question.words for question in questions], MOST_TOKENS)
        best = model.answered(ids, mask, tokens).logits.argmax(1).tolist()
        right += [answers[one] in question.answers for one, question in zip(best, questions, strict=True)]
    return round(100 * float(np.mean(right)), 1)


def figures(checkpoint: Path, words: Tokenizer, number: int = 200) -> dict[str, dict[str, float]]:
    """Recall and right answers of a file, by domain."""
    retrieval, vqa = (
        load_backbone(eve_config(head).model_copy(update={"checkpoint": str(checkpoint)})).model.eval()
        for head in ("retrieval", "vqa")
    )
    return {
        domain: recall(retrieval, words, domain, number) | {"answers": answered(vqa, words, domain, number)}
        for domain in DOMAINS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng([arguments.seed, 3])
    started, output = time.time(), arguments.output
    output.mkdir(parents=True, exist_ok=True)
    vocabulary = output / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *language_vocabulary()]) + "\n")
    words, config = Tokenizer(vocabulary, plain=True), eve_config()
    what = material(arguments.pictures, generator, arguments.threads)
    print(f"{len(what.scenes)} pictures in {time.time() - started:.0f} s", flush=True)

    model = WorldEve(config, pixels(what.pictures[:64])).train()
    train(model, Lesson(model, config, words, generator), what, arguments.steps, arguments.rate)
    made = {name: getattr(arguments, name) for name in ("seed", "pictures", "steps", "rate", "threads")}
    made |= {"seconds": round(time.time() - started), "torch": torch.__version__}
    state = {name: tensor.detach().half().contiguous().clone() for name, tensor in model.published().items()}
    save_file(state, output / "backbone.safetensors", {"format": "pt"})
    described = config.model_dump(include={"name", "vision", "text", "embed_dim"})
    described["eve"] = config.eve.model_dump(include=config.eve.model_fields_set)
    (output / "backbone.json").write_text(json.dumps(described, indent=2) + "\n")
    record = {"made": made, "figures, percent": figures(output / "backbone.safetensors", words)}
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()

"""Makes the built-in mPLUG: a tiny one that reads, answers, describes, matches and points, on the toy world's source
domain.

    python scripts/world/train_mplug.py --output FOLDER [--pictures 6000] [--seeing 2400] [--steps 1000] [--seed 7]

First the image encoder learns, from random weights, to tell what each patch shows and where (seeing.py), in place of
CLIP's pre-training. Text encoder, fusion encoder and decoder begin with layers of `builtin:world-language`, as mPLUG's
begin with BERT (§3.1). Then all but the image encoder, whose tokens are computed once, is trained on all tasks at once:
contrastive and matching (§3.2), next words of captions, answers of questions, and boxes of phrases, whose tokens'
targets are spread over the neighbouring ones; what is read of the patches also tells, by a linear map that is thrown
away, which of them belong to the thing that is meant.
Writes backbone.safetensors (published key names, half precision; each head reads its parts), backbone.json, vocab.txt
and training.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from seeing import Material, learn_to_see, material, material_of_one
from torch import Tensor, nn
from train_backbone import SPECIAL
from train_language import Texts, answered, text_loss

from aurora_ds.backbones.checkpoint import load_backbone, published_tensors
from aurora_ds.backbones.mplug import MplugRetrieval, MplugVqa
from aurora_ds.config import BackboneConfig, GroundingConfig
from aurora_ds.quickstart.captions import describe
from aurora_ds.quickstart.pointing import point, sample_pointings
from aurora_ds.quickstart.questions import Asker, language_vocabulary
from aurora_ds.quickstart.render import SIDE
from aurora_ds.quickstart.scenes import sample_scene
from aurora_ds.quickstart.world import ASSETS, DOMAINS
from aurora_ds.tasks.boxes import corners, overlap, quantised
from aurora_ds.tasks.grounding import GroundingTask

BINS = SIDE  # a token for each pixel, and one for the last edge
TEXT_LAYERS, FUSION_LAYERS, DECODER_LAYERS, STRIDE = 2, 4, 2, 2
# the layer of the language backbone's text encoder that each layer of the fusion encoder begins with
FUSION_FROM = (2, 3, 2, 3)
BATCH, PAIRS, QUESTIONS, PHRASES = 24, 10, 1, 3
SEEING_BATCH, SEEING_RATE = 48, 1.5e-3
WARM_UP, SPREAD, BOX = 50, 2.0, 3.0


def language_sizes() -> dict:
    """Of the backbone that this one starts from."""
    return json.loads((ASSETS / "language" / "backbone.json").read_text())


def word_list() -> list[str]:
    """Special tokens, every word of the world, and what boxes are written with."""
    return [*SPECIAL, *language_vocabulary(), *(f"[unused{number}]" for number in range(BINS + 2))]


def backbone_config() -> BackboneConfig:
    """Sizes of the built-in mPLUG: the other backbones' widths; every text begins with [CLS]."""
    sizes = language_sizes()
    text = sizes["text"] | {"vocab_size": len(word_list()), "depth": TEXT_LAYERS + FUSION_LAYERS}
    text |= {"token_types": 2, "bos_id": text["cls_id"], "enc_id": text["cls_id"]}
    mplug = {"text_layers": TEXT_LAYERS, "fusion_layers": FUSION_LAYERS, "decoder_layers": DECODER_LAYERS}
    mplug |= {"stride": STRIDE, "vision_attention_dropout": 0.0}
    return BackboneConfig.model_validate(
        {"name": "mplug", "checkpoint": "builtin:world-mplug", "vision": sizes["vision"]}
        | {"text": text, "mplug": mplug, "embed_dim": sizes["embed_dim"]}
    )


def box_tokens() -> GroundingConfig:
    """The tokens that boxes are written with."""
    first = len(word_list()) - BINS - 2
    return GroundingConfig(bins=BINS, prefix_id=first, first_bin_id=first + 1)


class WholeModel(MplugRetrieval, MplugVqa):
    """The parts of all models, each once."""

    def begin(self, language: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The texts' weights, of a whole retrieval model and of a text decoder."""
        retrieval, decoder = language["retrieval"], language["decoder"]
        for head in self.heads():
            getattr(self, head).load_state_dict(_part(retrieval, head))
        encoder = _part(retrieval, "text_encoder")
        self._embed(self.text_encoder.embeddings, _part(encoder, "embeddings"))
        for number, layer in enumerate(self.text_encoder.encoder.layer):
            _take(layer, _part(encoder, f"encoder.layer.{number}"))
        for (_, layer), number in zip(self.fusion_encoder.layers(), FUSION_FROM, strict=True):
            _take(layer, _part(encoder, f"encoder.layer.{number}"))
        writer, words = self.text_decoder, _part(decoder, "bert.embeddings")
        self._embed(writer.bert.embeddings, words)
        for number, layer in enumerate(writer.bert.encoder.layer):
            _take(layer, _part(decoder, f"bert.encoder.layer.{number}"))
        transform = _part(decoder, "cls.predictions.transform")
        writer.cls.predictions.transform.load_state_dict(transform)

    @torch.no_grad()
    def _embed(self, embeddings: nn.Module, known: Mapping[str, Tensor]) -> None:
        """Words both know; tokens of boxes begin with the same spread, as waves over their numbers, so that those of
        neighbouring numbers are alike. There is but one type of token."""
        words, theirs = embeddings.word_embeddings.weight, known["word_embeddings.weight"]
        shared = len(SPECIAL) + len(language_vocabulary())
        spread = float(theirs[len(SPECIAL) :].std())
        words.normal_(std=spread)
        words[:shared] = theirs[:shared]
        frequencies = math.pi * 2 ** torch.linspace(-1, 4, words.shape[1] // 2)
        angles = torch.linspace(0, 1, BINS + 1)[:, None] * frequencies
        words[-BINS - 1 :] = spread * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], -1)
        embeddings.token_type_embeddings.weight.zero_()
        embeddings.position_embeddings.weight.copy_(known["position_embeddings.weight"])
        embeddings.LayerNorm.load_state_dict(_part(known, "LayerNorm"))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}."): t for n, t in state.items() if n.startswith(f"{prefix}.")}


def _take(layer: nn.Module, known: Mapping[str, Tensor]) -> None:
    """All that the layer has; what it is without is left out."""
    own = layer.state_dict()
    layer.load_state_dict({name: known[name] for name in own})


def matching_losses(model: WholeModel, tokens: Tensor, captions: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Contrastive loss of the batch, and matching loss of its first PAIRS rows, each with another's text and another's
    image, half of them drawn by similarity."""
    ids, mask = captions
    seen = F.normalize(model.vision_proj(tokens[:, 0]), dim=-1)
    told = F.normalize(model.text_proj(model.text_states(ids, mask)[:, 0]), dim=-1)
    with torch.no_grad():
        model.temp.clamp_(0.01, 0.5)
    logits = seen @ told.T / model.temp
    own = torch.arange(len(tokens))
    itc = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    own = own[:PAIRS]
    hard = (torch.rand(PAIRS) < 0.5)[:, None]
    texts, images = (
        torch.multinomial((s * hard).fill_diagonal_(-torch.inf).softmax(-1), 1).squeeze(1)
        for s in (logits.detach()[:PAIRS, :PAIRS], logits.detach()[:PAIRS, :PAIRS].T)
    )
    text_of, image_of = torch.cat([own, texts, own]), torch.cat([own, own, images])
    states = model.matched(ids[text_of], mask[text_of], model.image_keys(tokens), image_of)
    scores, truth = model.itm_head(states[:, 0]), (torch.arange(3 * PAIRS) < PAIRS).long()
    return {"itc": itc, "itm": F.cross_entropy(scores, truth, weight=torch.tensor([0.5, 1.0]))}


def written_loss(
    model: WholeModel, context: Tensor, context_mask: Tensor | None, texts: tuple[Tensor, Tensor]
) -> Tensor:
    """Loss of texts (ids, mask), each written from its row of the context."""
    decoder, (ids, mask) = model.text_decoder, texts
    return text_loss(decoder, decoder(ids, mask, decoder.context_kv(context), context_mask), ids, mask)


def box_loss(
    model: WholeModel, states: Tensor, states_mask: Tensor, boxes: Tensor, tokens: GroundingConfig
) -> Tensor:
    """Mean loss of the tokens of boxes (B, 4), whose targets are spread over SPREAD neighbours to each side."""
    decoder, targets = model.text_decoder, quantised(boxes, tokens.bins)
    written = torch.cat([torch.full_like(targets[:, :1], tokens.prefix_id), targets[:, :-1]], 1)
    written[:, 1:] += tokens.first_bin_id
    scores = decoder.scores(decoder(written, None, decoder.context_kv(states), states_mask))
    scores = scores[..., tokens.first_bin_id : tokens.first_bin_id + tokens.bins + 1]
    away = torch.arange(tokens.bins + 1) - targets[..., None]
    spread = (-((away / SPREAD) ** 2) / 2).softmax(-1)
    return F.cross_entropy(scores.flatten(0, 1), spread.flatten(0, 1))


def train(
    model: WholeModel,
    texts: Texts,
    seen: Material,
    generator: np.random.Generator,
    steps: int,
    rate: float,
) -> None:
    """All tasks at once, in place; the image encoder stays. What is said and asked of a scene is drawn anew each
    time."""
    model.visual_encoder.requires_grad_(False)
    vision = model.config.vision
    owners = seen.owners(vision.image_size // vision.patch_size)
    finder = nn.Linear(model.config.text.width, 1)
    parameters = [each for each in model.parameters() if each.requires_grad] + [*finder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    with torch.no_grad():
        every = [
            model.image_tokens(seen.image(rows)) for rows in np.array_split(np.arange(len(seen.scenes)), 30)
        ]
    every = torch.cat(every)
    phrasing, tokens_of_boxes = DOMAINS["source"].phrasing, box_tokens()
    asker, started, shown = Asker(phrasing, generator), time.time(), {}
    for step in range(steps):
        rows = generator.integers(len(seen.scenes), size=BATCH)
        tokens = every[torch.from_numpy(rows)]
        captions = texts([describe(seen.scenes[i], 1, phrasing, generator)[0][1] for i in rows])
        losses = matching_losses(model, tokens, captions)
        losses["caption"] = written_loss(model, tokens, None, captions)

        asked = [(n, q) for n, i in enumerate(rows) for q in asker.ask(seen.scenes[i], QUESTIONS)]
        pointed = [
            (n, p) for n, i in enumerate(rows) for p in point(seen.scenes[i], PHRASES, phrasing, generator)
        ]
        read, read_mask = model.read(
            *texts([each.words for _, each in [*asked, *pointed]]),
            tokens,
            torch.tensor([n for n, _ in [*asked, *pointed]]),
        )
        replies = texts([str(generator.choice(question.answers)) for _, question in asked])
        losses["answer"] = written_loss(model, read[: len(asked)], read_mask[: len(asked)], replies)
        boxes = torch.stack([seen.boxes[rows[n]][p.group] for n, p in pointed])
        pointing, pointing_mask = read[len(asked) :], read_mask[len(asked) :]
        losses["box"] = BOX * box_loss(model, pointing, pointing_mask, boxes, tokens_of_boxes)
        meant = torch.stack([owners[rows[n]] == p.group for n, p in pointed])
        found = finder(pointing[:, 1 : 1 + meant.shape[1]]).squeeze(-1)
        share = found.log_softmax(1).masked_fill(~meant, -torch.inf).logsumexp(1)
        losses["find"] = -share[meant.any(1)].mean()
        likeliest = meant.gather(1, found.argmax(1, keepdim=True)).float().mean()

        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * falling
        optimizer.zero_grad(set_to_none=True)
        torch.stack([*losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in (losses | {"likeliest patch is meant": likeliest}).items():
            shown[name] = 0.95 * shown.get(name, float(value.detach())) + 0.05 * float(value.detach())
        if (step + 1) % 20 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {step + 1} {time.time() - started:.0f} s {line}", flush=True)


def pointed_at(model: nn.Module, texts: Texts, domain: str, number: int = 200) -> dict[str, float]:
    """Share of phrases whose box overlaps with the true one by half or more, by kind and in all, on a test split;
    percent."""
    task, hits = GroundingTask(model.eval(), None, box_tokens()), {}
    for scene, pointings in sample_pointings(domain, "test", number, PHRASES, seed=1):
        seen = material_of_one(scene, domain)
        ids, mask = texts([each.words for each in pointings])
        batch = {"tokens": model.image_tokens(seen.image(np.zeros(1, int))), "input_ids": ids}
        batch |= {"attention_mask": mask, "image_index": torch.zeros(len(pointings), dtype=torch.long)}
        found = task.boxes(batch)["box"]
        true = torch.stack([seen.boxes[0][each.group] for each in pointings])
        for each, ratio in zip(pointings, overlap(corners(found), corners(true)).tolist(), strict=True):
            hits.setdefault(each.kind, []).append(ratio >= 0.5)
    hits["all"] = [each for kind in hits.values() for each in kind]
    return {kind: round(100 * float(np.mean(each)), 1) for kind, each in sorted(hits.items())}


def starting_weights() -> dict[str, dict[str, Tensor]]:
    """The texts' weights of the language backbone."""
    sizes = language_sizes()
    loaded = {
        head: load_backbone(BackboneConfig(checkpoint="builtin:world-language", head=head, **sizes)).model
        for head in ("retrieval", "caption")
    }
    state = loaded["retrieval"].state_dict()
    return {"retrieval": state, "decoder": loaded["caption"].text_decoder.state_dict()}


def published(model: WholeModel) -> Iterator[tuple[str, Tensor]]:
    """All weights under published names, in half precision."""
    for name, tensor in published_tensors(model.state_dict()).items():
        yield name, tensor.detach().half().contiguous().clone()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--seeing", type=int, default=2400, help="steps in which the image encoder learns")
    parser.add_argument("--steps", type=int, default=1000, help="steps in which all else learns")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng([arguments.seed, 6])
    started, output = time.time(), arguments.output
    output.mkdir(parents=True, exist_ok=True)
    (output / "vocab.txt").write_text("\n".join(word_list()) + "\n")
    config, texts = backbone_config(), Texts(output / "vocab.txt", plain=True)
    model = WholeModel(config).train()
    scenes = [sample_scene(generator) for _ in range(arguments.pictures)]
    seen = material(scenes, "source", arguments.threads)
    print(f"{len(scenes)} pictures in {time.time() - started:.0f} s", flush=True)
    names = ("seed", "pictures", "seeing", "steps", "rate", "threads")
    made: dict = {name: getattr(arguments, name) for name in names}
    model.begin(starting_weights())
    visual = model.visual_encoder.visual
    made["missed of patches"] = learn_to_see(
        visual, seen, arguments.seeing, SEEING_BATCH, SEEING_RATE, generator
    )
    train(model, texts, seen, generator, arguments.steps, arguments.rate)
    made |= {"seconds": round(time.time() - started), "processor_seconds": round(time.process_time())}
    made["torch"] = torch.__version__

    save_file(dict(published(model)), output / "backbone.safetensors", {"format": "pt"})
    described = config.model_dump(include={"name", "vision", "text", "mplug", "embed_dim"})
    (output / "backbone.json").write_text(json.dumps(described, indent=2) + "\n")
    judged = {
        head: load_backbone(
            BackboneConfig(checkpoint=str(output / "backbone.safetensors"), head=head, **described)
        ).model.eval()
        for head in ("grounding", "vqa")
    }
    with torch.no_grad():
        figures = {
            "boxes right, percent": {d: pointed_at(judged["grounding"], texts, d) for d in DOMAINS},
            "answers right, percent": {d: answered(judged["vqa"], texts, d) for d in DOMAINS},
        }
    (output / "training.json").write_text(json.dumps({"made": made} | figures, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

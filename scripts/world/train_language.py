"""Makes the built-in backbone of the language tasks: the built-in retrieval backbone taught to read questions, to
answer them and to write captions, on the toy world's source domain.

    python scripts/world/train_language.py --output FOLDER [--pictures 6000] [--steps 1300] [--seed 7]

The image encoder is the retrieval backbone's and stays as it is, so its tokens are computed once. Text encoder and
heads start from the retrieval backbone, the decoder from its text encoder (with a new head), the embeddings of words
that captions do not have at random. Losses: contrastive and matching (so that the text encoder stays one that knows
captions), next words of captions (BLIP §3.2), and answers of questions (BLIP §4).
Writes backbone.safetensors (published key names, half precision), backbone.json, vocab.txt and training.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from train_backbone import SPECIAL, pixels, retrieval_losses

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.blip_vqa import BlipVqa
from aurora_ds.backbones.checkpoint import load_backbone, published_tensors
from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import BackboneConfig, TextConfig, VqaConfig
from aurora_ds.quickstart.captions import describe
from aurora_ds.quickstart.questions import (
    Asker,
    answer_list,
    language_vocabulary,
    sample_questions,
)
from aurora_ds.quickstart.render import render
from aurora_ds.quickstart.scenes import Scene, sample_scene
from aurora_ds.quickstart.world import ASSETS, DOMAINS
from aurora_ds.tasks.language import next_targets, token_losses, with_first
from aurora_ds.tasks.vqa import VqaTask

WARM_UP, MOST_TOKENS, BATCH, QUESTIONS = 100, 40, 32, 3


def language_config() -> BackboneConfig:
    """Sizes of the retrieval backbone with more words."""
    sizes = json.loads((ASSETS / "backbone.json").read_text())
    words = len(SPECIAL) + len(language_vocabulary())
    sizes["text"] |= {"vocab_size": words + 2, "bos_id": words, "enc_id": words + 1}
    return BackboneConfig(checkpoint="builtin:world-language", **sizes)


class LanguageModel(nn.Module):
    """The retrieval model with a decoder, and a stand-in for the image encoder: its tokens are what comes in."""

    def __init__(self, config: BackboneConfig, pretrained: BlipRetrieval) -> None:
        super().__init__()
        retrieval = BlipRetrieval(config)
        state, old = pretrained.state_dict(), pretrained.config.text
        words = "text_encoder.embeddings.word_embeddings.weight"
        known = state[words]
        more = torch.randn(config.text.vocab_size, known.shape[1]) * known[len(SPECIAL) :].std()
        more[: old.bos_id] = known[: old.bos_id]
        more[config.text.bos_id], more[config.text.enc_id] = known[old.bos_id], known[old.enc_id]
        retrieval.load_state_dict(state | {words: more})
        self.seeing, retrieval.visual_encoder = retrieval.visual_encoder.eval(), nn.Identity()
        self.retrieval = retrieval
        self.text_decoder = TextDecoder(config.text, config.text.width)
        self.text_decoder.bert.load_state_dict(retrieval.text_encoder.state_dict())
        self.seeing.requires_grad_(False)

    def published(self) -> dict[str, Tensor]:
        """All weights under published names."""
        state = {f"visual_encoder.{name}": tensor for name, tensor in self.seeing.state_dict().items()}
        state |= self.retrieval.state_dict()
        state |= {f"text_decoder.{name}": tensor for name, tensor in self.text_decoder.state_dict().items()}
        return published_tensors({name: tensor.detach() for name, tensor in state.items()})


class Texts:
    """Texts to ids and mask, (B, L) each."""

    def __init__(self, vocabulary: Path, plain: bool = False) -> None:
        self.tokenizer = Tokenizer(vocabulary, plain)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer.encode(texts, MOST_TOKENS)


def question_states(
    model: LanguageModel, config: TextConfig, tokens: Tensor, asked: tuple, index: Tensor
) -> Tensor:
    """States of questions (ids, mask), each read with the image `index` of tokens (images, N + 1, D)."""
    encoder, (ids, mask) = model.retrieval.text_encoder, asked
    return encoder(with_first(ids, config.enc_id), mask, encoder.image_kv(tokens), image_index=index)


def text_loss(decoder: TextDecoder, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean loss of the next tokens."""
    return token_losses(decoder, states[:, :-1], next_targets(ids, mask), 0.1)[0].mean()


def caption_loss(model: LanguageModel, config: TextConfig, tokens: Tensor, captions: tuple) -> Tensor:
    """Loss of captions (ids, mask) of the images with `tokens`."""
    decoder, mask = model.text_decoder, captions[1]
    ids = with_first(captions[0], config.bos_id)
    return text_loss(decoder, decoder(ids, mask, decoder.context_kv(tokens)), ids, mask)


def answer_loss(
    model: LanguageModel, config: TextConfig, tokens: Tensor, asked: tuple, owner: Tensor, answers: tuple
) -> Tensor:
    """Loss of an answer (ids, mask) of each question, which is about image `owner` of `tokens`."""
    decoder, mask = model.text_decoder, answers[1]
    states = question_states(model, config, tokens, asked, owner)
    ids = with_first(answers[0], config.bos_id)
    return text_loss(decoder, decoder(ids, mask, decoder.context_kv(states), asked[1]), ids, mask)


def answered(model: BlipVqa, texts: Texts, domain: str, number: int = 300) -> dict[str, float]:
    """Share of questions to which the likeliest answer is one that an annotator gave, by kind and in all, on a test
    split; percent."""
    task = VqaTask(model.eval(), None, VqaConfig(), model.config.text)
    answers, right = answer_list(), {}
    wanted = texts(answers)
    for scene, questions in sample_questions(domain, "test", number, 3, seed=1):
        picture = pixels(np.asarray(render(scene, DOMAINS[domain].look))[None])
        ids, mask = texts([question.words for question in questions])
        batch = {
            "image": picture.expand(len(questions), -1, -1, -1),
            "input_ids": ids,
            "attention_mask": mask,
        }
        best = task.rank(batch, wanted)["answer"].tolist()
        for question, chosen in zip(questions, best, strict=True):
            right.setdefault(question.kind, []).append(answers[chosen] in question.answers)
    right["all"] = [each for kind in right.values() for each in kind]
    return {kind: round(100 * float(np.mean(each)), 1) for kind, each in sorted(right.items())}


def _seen(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene, DOMAINS["source"].look))


def image_tokens(model: LanguageModel, scenes: list[Scene], threads: int) -> Tensor:
    """(pictures, N + 1, D) of the source domain's pictures of the scenes."""
    with multiprocessing.get_context("fork").Pool(threads) as pool:
        pictures = pool.map(_seen, scenes, chunksize=64)
    with torch.no_grad():
        return torch.cat(
            [model.seeing(pixels(np.stack(pictures[i : i + 100]))) for i in range(0, len(pictures), 100)]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng([arguments.seed, 2])
    started = time.time()

    arguments.output.mkdir(parents=True, exist_ok=True)
    vocabulary = arguments.output / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *language_vocabulary()]) + "\n")
    config = language_config()
    sizes = json.loads((ASSETS / "backbone.json").read_text())
    pretrained = load_backbone(BackboneConfig(checkpoint="builtin:world", **sizes)).model
    model, texts = LanguageModel(config, pretrained), Texts(vocabulary)
    scenes = [sample_scene(generator) for _ in range(arguments.pictures)]
    tokens = image_tokens(model, scenes, arguments.threads)
    print(f"{len(scenes)} pictures in {time.time() - started:.0f} s", flush=True)

    train(model, config, texts, scenes, tokens, generator, arguments.steps, arguments.rate)
    made = {name: getattr(arguments, name) for name in ("seed", "pictures", "steps", "rate", "threads")}
    made |= {"seconds": round(time.time() - started), "torch": torch.__version__}
    state = {name: tensor.half().contiguous().clone() for name, tensor in model.published().items()}
    save_file(state, arguments.output / "backbone.safetensors", {"format": "pt"})
    described = config.model_dump(include={"name", "vision", "text", "embed_dim"})
    (arguments.output / "backbone.json").write_text(json.dumps(described, indent=2) + "\n")
    published = BackboneConfig(
        checkpoint=str(arguments.output / "backbone.safetensors"), head="vqa", **described
    )
    judged = load_backbone(published).model
    figures = {domain: answered(judged, texts, domain) for domain in DOMAINS}
    record = {"made": made, "answers right, percent": figures}
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


def train(
    model: LanguageModel,
    config: BackboneConfig,
    texts: Texts,
    scenes: list[Scene],
    tokens: Tensor,
    generator: np.random.Generator,
    steps: int,
    rate: float,
) -> None:
    """All but the image encoder, in place. Captions and questions are drawn anew each time."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    phrasing, started, shown = DOMAINS["source"].phrasing, time.time(), {}
    asker = Asker(phrasing, generator)
    for step in range(steps):
        rows = generator.integers(len(scenes), size=BATCH)
        captions = texts([describe(scenes[i], 1, phrasing, generator)[0][1] for i in rows])
        questions = [(place, q) for place, i in enumerate(rows) for q in asker.ask(scenes[i], QUESTIONS)]
        owner = torch.tensor([place for place, _ in questions])
        asked = texts([question.words for _, question in questions])
        replies = texts([str(generator.choice(question.answers)) for _, question in questions])
        seen = tokens[torch.from_numpy(rows)]
        losses = {
            "caption": caption_loss(model, config.text, seen, captions),
            "answer": answer_loss(model, config.text, seen, asked, owner, replies),
        }
        kept = retrieval_losses(model.retrieval, seen, *captions, config.text, pairs=16)
        losses |= {name: value for name, value in kept.items() if name != "tokens"}
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in losses.items():
            shown[name] = 0.95 * shown.get(name, float(value.detach())) + 0.05 * float(value.detach())
        if (step + 1) % 100 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {step + 1} {time.time() - started:.0f} s {line}", flush=True)


if __name__ == "__main__":
    main()

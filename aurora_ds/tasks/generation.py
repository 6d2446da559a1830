"""Writing text with a decoder: greedy, beam search, nucleus sampling; batched, each token computed once.

Keys and values of what the text is about are given, computed once per image; those of the text are cached, the
prompts' update included. Beam search follows the published decoding (transformers 4.15): a text's score is its
summed log-probability, end token included, over its length with the prompt and without the end token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.config import GenerationConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.negatives import draw, keyed_uniform
from aurora_ds.tasks.penalised_beam import Hypothesis, hypotheses
from aurora_ds.tasks.writer import Context, Writer

__all__ = ["Context", "Written", "nucleus", "write"]
SAMPLING_STREAM = 2  # of the keyed numbers; 0 and 1 are those of hard negatives


@dataclass
class Written:
    """`ids` (B, longest), the prompt in front, the end token behind where it was reached, padded; `scores` (B,):
    mean log-probability as described above, fp32."""

    ids: Tensor
    scores: Tensor


@torch.no_grad()
def write(
    decoder: TextDecoder,
    context: Context,
    prompt: Tensor,
    settings: GenerationConfig,
    end: int,
    pad: int,
    keys: Tensor | None = None,
    seed: int = 0,
) -> Written:
    """One text per image.

    Args:
        prompt: int64 (P,), the tokens that each text begins with. end, pad: token ids.
        keys: int64 (B,), of the samples; nucleus sampling draws by (seed, key, position), whatever the batch.
            By default the rows' numbers. Nucleus: (B·n,) for n texts per image, an image's following each other.
    Raises AuroraError: lengths that leave no room to write; more beams than the vocabulary can tell apart.
    """
    if settings.max_length <= len(prompt):
        raise AuroraError(
            f"generation.max_length={settings.max_length} leaves no room after a prompt of {len(prompt)} tokens; "
            "it counts the prompt. Set it higher."
        )
    if settings.min_length > settings.max_length:
        raise AuroraError(
            f"generation.min_length={settings.min_length} exceeds generation.max_length={settings.max_length}."
        )
    if settings.method == "beam":
        return _beam(Writer(decoder, context, prompt, len(context), settings, end, pad))
    if settings.method == "penalised_beam":
        writer = Writer(decoder, context, prompt, len(context), settings, end, pad)
        return _kept(writer, [best[0] for best in hypotheses(writer)])
    if keys is None or settings.method == "greedy":
        keys = torch.arange(len(context), device=prompt.device)
    return _single(Writer(decoder, context, prompt, len(keys), settings, end, pad), keys, seed)


def _single(writer: Writer, keys: Tensor, seed: int) -> Written:
    """Greedy or nucleus: one text per row, one token at a time."""
    settings = writer.settings
    open_rows = torch.ones(len(writer.ids), dtype=torch.bool, device=writer.ids.device)
    total = torch.zeros(len(writer.ids), dtype=torch.float64, device=writer.ids.device)
    length = torch.full_like(total, writer.ids.shape[1])
    while writer.ids.shape[1] < settings.max_length and bool(open_rows.any()):
        logits = writer.logits()
        scores = writer.adjusted(logits)
        if settings.method == "greedy":
            tokens = scores.argmax(1)
        else:
            uniform = keyed_uniform(keys, seed, writer.ids.shape[1], SAMPLING_STREAM)
            tokens = draw(nucleus(scores, settings.top_p, settings.top_k), "keyed", uniform)[0]
        chosen = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0].double()
        total += chosen * open_rows
        tokens = tokens.masked_fill(~open_rows, writer.pad)
        open_rows = open_rows & (tokens != writer.end)
        length += open_rows
        writer.append(tokens)
    return Written(writer.ids, (total / length).float())


def nucleus(scores: Tensor, top_p: float, top_k: int = 0) -> Tensor:
    """scores (rows, V) -> probabilities (rows, V) of the fewest likeliest tokens whose sum reaches `top_p`, among the
    `top_k` likeliest; the others are 0. Not normalised."""
    ordered, place = scores.sort(dim=1, descending=True, stable=True)
    if top_k:
        ordered = ordered.masked_fill(
            torch.arange(ordered.shape[1], device=scores.device) >= top_k, -torch.inf
        )
    probabilities = ordered.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    return torch.zeros_like(scores).scatter(1, place, probabilities.masked_fill(before > top_p, 0.0))


@dataclass
class _Best:
    """The best finished texts of one image, at most `most`."""

    most: int
    texts: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, text: list[int], total: float) -> None:
        """A text without its end token, and its summed log-probability."""
        score = total / len(text)
        if len(self.texts) < self.most or score > self.worst():
            self.texts.append((score, text))
            if len(self.texts) > self.most:
                self.texts.remove(min(self.texts, key=lambda each: each[0]))

    def worst(self) -> float:
        return min(score for score, _ in self.texts)

    def complete(self, best_total: float, length: int) -> bool:
        """Whether no open text can enter any more, as the published decoding judges it."""
        return len(self.texts) == self.most and self.worst() >= best_total / length


def _beam(writer: Writer) -> Written:
    """Beam search. The first step has one row per image, since all texts begin alike."""
    images, beams, device = len(writer.context), writer.settings.beams, writer.ids.device
    vocabulary = writer.decoder.cls.predictions.bias.numel()
    if 2 * beams >= vocabulary:
        raise AuroraError(f"generation.beams={beams} is too many for a vocabulary of {vocabulary} tokens.")
    best, done = [_Best(beams) for _ in range(images)], [False] * images
    totals, width = torch.zeros(images, 1, device=device), 1
    while True:
        length = writer.ids.shape[1]
        scores = writer.adjusted(writer.logits().log_softmax(1)).unflatten(0, (images, width))
        scores = (scores + totals[..., None]).flatten(1)  # (images, width·V)
        leading, place = scores.topk(2 * beams, dim=1)
        continued, tokens, kept = _step(
            writer, best, done, leading.tolist(), place.tolist(), width, vocabulary
        )
        writer.append(torch.tensor(tokens, device=device), torch.tensor(continued, device=device))
        totals, width = (
            torch.tensor(kept, device=device, dtype=scores.dtype).unflatten(0, (images, beams)),
            beams,
        )
        if all(done) or length + 1 >= writer.settings.max_length:
            break
    texts = writer.ids.tolist()
    for image, finished in enumerate(done):
        for row in range(image * beams, (image + 1) * beams):
            if not finished:
                best[image].add(texts[row], kept[row])
    # of equal scores the published decoding takes the last one found
    return _collect(writer, [max(reversed(each.texts), key=lambda text: text[0]) for each in best])


def _step(
    writer: Writer,
    best: list[_Best],
    done: list[bool],
    leading: list[list[float]],
    place: list[list[int]],
    width: int,
    vocabulary: int,
) -> tuple[list[int], list[int], list[float]]:
    """Sorts each image's candidates into finished texts and the next beams. Returns, per new row: the row that it
    continues, its token, its summed log-probability."""
    beams, length = writer.settings.beams, writer.ids.shape[1]
    texts = writer.ids.tolist()
    rows, tokens, totals = [], [], []
    for image, (scores, places) in enumerate(zip(leading, place, strict=True)):
        if done[image]:
            rows += [image * width] * beams
            tokens += [writer.pad] * beams
            totals += [0.0] * beams
            continue
        taken = 0
        for rank, (score, where) in enumerate(zip(scores, places, strict=True)):
            row, token = image * width + where // vocabulary, where % vocabulary
            if token == writer.end:
                if rank < beams:
                    best[image].add(texts[row], score)
            elif taken < beams:
                rows.append(row)
                tokens.append(token)
                totals.append(score)
                taken += 1
            if taken == beams:
                break
        done[image] = best[image].complete(scores[0], length)
    return rows, tokens, totals


def _kept(writer: Writer, chosen: list[Hypothesis]) -> Written:
    """Rows of the chosen texts as they are, then padding."""
    ids = writer.ids.new_full((len(chosen), max(len(each.ids) for each in chosen)), writer.pad)
    for row, each in enumerate(chosen):
        ids[row, : len(each.ids)] = torch.tensor(each.ids, device=ids.device)
    return Written(ids, torch.tensor([each.score for each in chosen], device=ids.device))


def _collect(writer: Writer, chosen: list[tuple[float, list[int]]]) -> Written:
    """Rows of the chosen texts: the end token where it fits, then padding."""
    most = min(max(len(text) for _, text in chosen) + 1, writer.settings.max_length)
    ids = writer.ids.new_full((len(chosen), most), writer.pad)
    for row, (_, text) in enumerate(chosen):
        whole = (text + [writer.end])[:most]
        ids[row, : len(whole)] = torch.tensor(whole, device=ids.device)
    return Written(ids, torch.tensor([score for score, _ in chosen], device=ids.device))

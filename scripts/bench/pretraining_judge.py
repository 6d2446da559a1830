"""What a masked model knows without having been taught a task: retrieval by likelihoods, and questions put as captions.

Pre-training has no contrast and no matching, so what fits is judged by what it does have. A caption's fit to a picture
is the log-likelihood of its words in that picture: every other word is hidden and guessed, then the others, so that
each counts once, half of the rest being seen, as in training. Pictures for a caption are ranked by that; captions for a
picture by that minus the logarithm of the caption's mean likelihood over all pictures of the test, since some captions
are likely whatever is seen.

The probe: questions about other pictures, put as a masked model reads, a caption with a hidden word where the answer
belongs (CLOZE), and a new linear layer on the frozen trunk's state of that word. What is asked already says something
of the answer, so the untrained trunk's figure, by a probe of its own, is the one to compare with.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

JUDGED_ON = 12  # seed of the world; no setting was chosen by pictures of it
JUDGED = 100  # pictures of retrieval
ASKED = {"train": 600, "test": 300}  # pictures with up to three questions each
FEW = 40  # pictures of the probe that is taught little
PROBE_STEPS, PROBE_RATE = 200, 5e-3
# Kind of question -> its words, and the same as a caption with a hidden word (`?`) where the answer belongs.
CLOZE = {
    "place": ("where is this", "a photo of a [MASK] [MASK] and a [MASK] [MASK] [MASK] [MASK] ?"),
    "colour": (r"what colour is the (\w+)", r"a photo of a ? \1 and a [MASK] [MASK]"),
    "thing": (r"what thing is (\w+)", r"a photo of [MASK] \1 ? and a [MASK] [MASK]"),
    "number": (r"how many (\w+) are there", r"a photo of ? [MASK] \1 and a [MASK] [MASK]"),
    "exists": (r"is there (an? \w+ \w+)", r"a photo of \1 ?"),
    "row": (r"which way do the (\w+) and the (\w+) go", r"a [MASK] \1 ? a [MASK] \2"),
}


class Asked(NamedTuple):
    """Questions of a split: pictures (n, 3, S, S); ids and mask (q, L), the answer hidden, its places, which pictures
    they are of, right answers, and kinds."""

    pictures: Tensor
    ids: Tensor
    mask: Tensor
    places: Tensor
    owners: Tensor
    truths: Tensor
    kinds: list[str]


Said = dict[str, dict[int, Tensor]]  # kind of question -> number of an answer -> ids of words


@torch.inference_mode()
def fit(task: nn.Module, images: Tensor, ids: Tensor) -> Tensor:
    """Log-likelihood (pictures, captions) of the words of captions, int64 (captions, L) with padding, in pictures."""
    scores = images.new_zeros(len(images), len(ids))
    for number, row in enumerate(ids):
        row = row[row != task.text.pad_id]
        words = torch.arange(1, len(row) - 1)
        for hidden in (words[0::2], words[1::2]):
            places = hidden.expand(len(images), -1)
            every = row.expand(len(images), -1)
            masked = every.scatter(1, places, task.mask_id)
            said, _ = task.model.guessed(images, masked, torch.ones_like(masked), places)
            chosen = said.log_softmax(-1).gather(2, every.gather(1, places)[..., None])
            scores[:, number] += chosen[..., 0].sum(1)
    return scores


def recall(scores: Tensor, at: int) -> float:
    """Share, in percent, of rows whose own column is among the `at` best."""
    return 100 * float(
        (scores.argsort(1, descending=True)[:, :at] == torch.arange(len(scores))[:, None])
        .any(1)
        .float()
        .mean()
    )


def retrieval(task: nn.Module, images: Tensor, ids: Tensor) -> dict[str, float]:
    """Recall both ways."""
    scores = fit(task, images, ids)
    ways = {"image": scores.t(), "text": scores - scores.logsumexp(0, keepdim=True)}
    return {
        f"{way} R@{at}": recall(found.contiguous(), at) for way, found in ways.items() for at in (1, 5, 10)
    }


@torch.inference_mode()
def features(task: nn.Module, asked: Asked) -> Tensor:
    """(questions, D): the state of the hidden word where each answer belongs, beside the picture."""
    found = []
    for part in torch.arange(len(asked.ids)).split(100):
        tokens = task.model.image_tokens(asked.pictures[asked.owners[part]])
        one = task.model.backbone(
            image_tokens=tokens, input_ids=asked.ids[part], attention_mask=asked.mask[part]
        )
        found.append(one.states[torch.arange(len(part)), one.vision_tokens + asked.places[part]])
    return torch.cat(found)


def zero_shot(task: nn.Module, states: Tensor, asked: Asked, said: Said) -> dict[str, float]:
    """Percent of questions answered right by the likeliest of the words that captions have there, of all and by kind;
    what captions never answer (yes, no) is left out."""
    likely = task.model.mlm_head(states, task.model.backbone.word_embedding.weight).softmax(-1)
    right: dict[str, list[bool]] = {kind: [] for kind in said}
    for row, kind, truth in zip(likely, asked.kinds, asked.truths.tolist(), strict=True):
        if kind in said:
            answers = said[kind]
            right[kind].append(max(answers, key=lambda each: float(row[answers[each]].sum())) == truth)
    shares = {"all": [each for some in right.values() for each in some]} | right
    return {f"zero-shot, {kind}": 100 * float(np.mean(some)) for kind, some in shares.items()}


def probe(
    states: dict[str, Tensor], asked: dict[str, Asked], answers: int, pictures: int
) -> dict[str, float]:
    """Percent of test questions, all and by kind, answered right by a linear layer on states, taught with some of the
    training split's pictures."""
    of_these = asked["train"].owners < pictures
    taught, truths = states["train"][of_these], asked["train"].truths[of_these]
    mean, deviation = taught.mean(0), taught.std(0) + 1e-6
    torch.manual_seed(0)
    head = nn.Linear(taught.shape[1], answers)
    optimizer = torch.optim.AdamW(head.parameters(), lr=PROBE_RATE, weight_decay=0.1)
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(head((taught - mean) / deviation), truths).backward()
        optimizer.step()
    with torch.no_grad():
        said = head((states["test"] - mean) / deviation).argmax(1)
    right, kinds = (said == asked["test"].truths).float(), asked["test"].kinds
    name = f"{pictures} pictures"
    by_kind = {
        f"{name}, {kind}": 100 * float(right[[each == kind for each in kinds]].mean()) for kind in CLOZE
    }
    return {f"{name}, all": 100 * float(right.mean())} | by_kind


def as_caption(kind: str, words: str) -> str:
    """A question in words of captions, `?` where the answer belongs."""
    form, caption = CLOZE[kind]
    matched = re.fullmatch(form, words)
    if matched is None:
        raise ValueError(f"no question about {kind} as this benchmark asks them: {words!r}")
    return matched.expand(caption)


def spoken(tokenizer: Any) -> Said:
    """What captions say in place of an answer."""
    from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES
    from aurora_ds.quickstart.questions import PLACES, answer_list

    words = {
        "place": {usual: [usual] for usual, _ in PLACES.values()} | {"floor": ["wooden"]},
        "colour": {usual: [usual] for usual, _ in COLOUR_NAMES.values()},
        "thing": {usual[0]: list(dict.fromkeys(usual)) for usual, _ in KIND_NAMES.values()},
        "number": {"one": ["a", "an"], "two": ["two"], "three": ["three"]},
        "row": {"across": ["to"], "down": ["above", "below"]},
    }
    listed = answer_list()
    return {
        kind: {
            listed.index(answer): tokenizer.encode([" ".join(some)], 2 + len(some))[0][0, 1:-1]
            for answer, some in answers.items()
        }
        for kind, answers in words.items()
    }


def questions(tokenizer: Any, longest: int) -> tuple[dict[str, Asked], int]:
    """Of both splits, and how many answers there are."""
    from aurora_ds.quickstart.captions import Phrasing
    from aurora_ds.quickstart.questions import Asker, answer_list
    from aurora_ds.quickstart.scenes import sample_scene
    from aurora_ds.quickstart.world import random_numbers

    listed, found = answer_list(), {}
    for split, number in ASKED.items():
        generator = random_numbers("source", split, JUDGED_ON, kind=1)
        asker = Asker(Phrasing(rare=0, inverted=0), generator)
        scenes = [sample_scene(generator) for _ in range(number)]
        drawn = [(owner, each) for owner, scene in enumerate(scenes) for each in asker.ask(scene, 3)]
        ids, mask = tokenizer.encode([as_caption(each.kind, each.words) for _, each in drawn], longest)
        answered = ids == tokenizer.encode(["?"], 3)[0][0, 1]
        places, ids = answered.int().argmax(1), ids.masked_fill(answered, tokenizer.mask_id)
        owners = torch.tensor([owner for owner, _ in drawn])
        truths = torch.tensor([listed.index(each.truth) for _, each in drawn])
        found[split] = Asked(
            seen(scenes), ids, mask, places, owners, truths, [each.kind for _, each in drawn]
        )
    return found, len(listed)


def seen(scenes: list[Any]) -> Tensor:
    """Pictures of scenes as a loader gives them, float32 (n, 3, S, S)."""
    from aurora_ds.data.image import write_test
    from aurora_ds.quickstart.render import SIDE, render
    from aurora_ds.quickstart.world import DOMAINS

    planes = np.empty((len(scenes), 3, SIDE, SIDE), np.float32)
    for scene, out in zip(scenes, planes, strict=True):
        write_test(render(scene, DOMAINS["source"].look), out)
    return torch.from_numpy(planes)


class Judge:
    """Retrieval and probe of trunks as they are, on the same pictures and questions."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        from aurora_ds.quickstart.world import sample_split

        pictures = sample_split("source", "test", JUDGED, 3, JUDGED_ON)
        self.ids, _ = tokenizer.encode([each.captions[0] for each in pictures], longest)
        self.images = seen([each.scene for each in pictures])
        self.asked, self.answers = questions(tokenizer, longest)
        self.said = spoken(tokenizer)

    @torch.no_grad()
    def __call__(self, task: nn.Module) -> dict[str, dict[str, float]]:
        task.eval()
        states = {split: features(task, asked).clone() for split, asked in self.asked.items()}
        answered = zero_shot(task, states["test"], self.asked["test"], self.said)
        with torch.enable_grad():
            for pictures in (FEW, ASKED["train"]):
                answered |= probe(states, self.asked, self.answers, pictures)
        return {"retrieval": retrieval(task, self.images, self.ids), "questions": answered}

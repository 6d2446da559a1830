"""Question answering on images and clips (BLIP §4): weighted answers in training; in evaluation answers are ranked
or written.

Keys and values of an image are computed once per question, those of a question once for all its answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.backbones.text import KeyValueCache
from aurora_ds.config import TextConfig, VqaConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.generation import Context, write
from aurora_ds.tasks.language import LanguageTask, Teacher, next_targets, token_losses, with_first


class VqaTask(LanguageTask):
    """Losses and evaluation pieces of question answering.

    Args:
        model: backbone with `image_tokens`, `read`, `text_decoder`. text: for its special token ids.
        prompts: what was attached to `model`; None for full fine-tuning.
    """

    def __init__(
        self, model: nn.Module, prompts: Prompts | None, options: VqaConfig, text: TextConfig
    ) -> None:
        super().__init__(model, prompts)
        self.options, self.text = options, text

    @torch.no_grad()
    def encode_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`tokens` (images, N, D) of `image`: computed once, they serve all questions about an image."""
        return {"tokens": self.image_tokens(batch["image"])}

    def questions(
        self,
        batch: dict[str, Any],
        trace: dict[str, Tensor] | None = None,
        model: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What answers are written from, of each question, read with its image: states (B, N, H), mask (B, N).

        Args: batch: `input_ids`, `attention_mask` (B, L), and either `image`, one per question, or `tokens` of
            `encode_images` with `image_index` int64 (B,), the row of them that each question is about. `model`: which
            reads, if not this task's."""
        model = model or self.model
        tokens = batch["tokens"] if "tokens" in batch else self.image_tokens(batch["image"], model)
        ids = with_first(batch["input_ids"], self.text.enc_id)
        states, mask = model.read(ids, batch["attention_mask"], tokens, batch.get("image_index"))
        if trace is not None:
            trace.update(image_embeds=tokens, question_states=states, question_mask=mask)
        return states, mask

    def loss(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`, scalar: the summed token losses of each answer, times its weight, over the number of questions.

        Args:
            batch: `image` (B, 3, H, W) or (B, T, 3, H, W); `input_ids`, `attention_mask` (B, L) of the questions;
                `answer_ids`, `answer_mask` (A, La) of all their answers, `answer_question` int64 (A,) the row of the
                question that each belongs to, `answer_weights` (A,).
            trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        return self.taught(batch, None, trace)

    def answers(
        self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None, model: nn.Module | None = None
    ) -> Tensor:
        """States (A, La, H) of the answers of `loss`, each read after its question. `model`: which reads, if not this
        task's."""
        states, mask = self.questions(batch, trace, model)
        decoder = (model or self.model).text_decoder
        ids, kv = with_first(batch["answer_ids"], self.text.bos_id), decoder.context_kv(states)
        return decoder(ids, batch["answer_mask"], kv, mask, batch["answer_question"])

    def taught(
        self, batch: dict[str, Any], teacher: Teacher | None, trace: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss` with the adapter's values as they are; `teacher`: as of `token_losses`."""
        answers, decoder = self.answers(batch, trace), self.model.text_decoder
        ids, answer_mask = with_first(batch["answer_ids"], self.text.bos_id), batch["answer_mask"]
        losses, rows = token_losses(
            decoder, answers[:, :-1], next_targets(ids, answer_mask), self.options.label_smoothing, teacher
        )
        sums = losses.new_zeros(len(ids)).index_add(0, rows, losses)
        divisor = len(batch["input_ids"])
        if self.options.loss_per == "frame" and batch["image"].dim() == 5:
            divisor *= batch["image"].shape[1]
        if trace is not None:
            trace.update(answer_logits=decoder.scores(answers), answer_loss=sums)
        return {"loss": (sums * batch["answer_weights"].to(sums)).sum() / divisor}

    @torch.no_grad()
    def rank(
        self,
        batch: dict[str, Any],
        answers: tuple[Tensor, Tensor],
        trace: dict[str, Tensor] | None = None,
        shown: int = 1,
    ) -> dict[str, Tensor]:
        """The best of a list of answers for each question: `answer` int64 (B,), its row in the list, and `score` (B,).

        The answers whose first tokens are the likeliest, `k_test` of them (ties: the earlier in the list), are
        scored in full; the lowest loss wins. `leading` int64 (B, shown or fewer) are the rows of the best ones, best
        first, and `probability` (B, shown or fewer) their shares: the softmax of the scores of all that were scored.

        Args:
            batch: as in `questions`. answers: ids, mask (answers, La) of the list. trace: as in `loss`."""
        return self.ranked(*self.questions(batch, trace), answers, trace, shown)

    @torch.no_grad()
    def ranked(
        self,
        states: Tensor,
        mask: Tensor,
        answers: tuple[Tensor, Tensor],
        trace: dict[str, Tensor] | None = None,
        shown: int = 1,
    ) -> dict[str, Tensor]:
        """`rank` from what `questions` gives: states (B, N, H) and mask (B, N)."""
        count = min(self.options.k_test, len(answers[0]))
        at_once = max(1, self.options.answers_per_batch // count)
        parts = [
            self._rank(states[start : start + at_once], mask[start : start + at_once], answers, count)
            for start in range(0, len(states), at_once)
        ]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if trace is not None:
            trace.update(found)
        scores = found["log_probs_sum"]
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :shown]
        leading = found["topk_ids"].gather(1, order)
        return {
            "answer": leading[:, 0],
            "score": scores.gather(1, order)[:, 0],
            "leading": leading,
            "probability": scores.softmax(1).gather(1, order),
        }

    def _rank(
        self, states: Tensor, mask: Tensor, answers: tuple[Tensor, Tensor], count: int
    ) -> dict[str, Tensor]:
        """`topk_ids`, `log_probs_sum` (questions, count), and what led to them."""
        decoder, smoothing, cache = self.model.text_decoder, self.options.label_smoothing, KeyValueCache()
        ids, answer_mask = answers
        kv = decoder.context_kv(states)
        start = ids.new_full((len(states), 1), self.text.bos_id)
        first = decoder.scores(decoder(start, None, kv, mask, cache=cache)[:, 0])  # (questions, V)
        first = first.float() if first.dtype in (torch.bfloat16, torch.float16) else first
        likely = first.softmax(1)[:, ids[:, 1]]  # (questions, answers)
        top = likely.sort(dim=1, descending=True, stable=True).indices[:, :count]

        chosen, owner = top.flatten(), torch.arange(len(states), device=ids.device).repeat_interleave(count)
        chosen_ids, lengths = ids[chosen], answer_mask[chosen].sum(1)
        logarithms = first.log_softmax(1)  # of all words, which label smoothing averages
        every = logarithms.mean(1)[owner]
        total = -(1 - smoothing) * logarithms[owner, chosen_ids[:, 1]] - smoothing * every
        if self.options.first_token == "twice":
            total = 2 * total
        # what follows the first token is read with each answer's own; answers of one length together: most are short
        for length in lengths.unique().tolist():
            if length == 2:
                continue  # the first token was the last
            (rows,) = (lengths == length).nonzero(as_tuple=True)
            own, branch = chosen_ids[rows, :length], cache.branch(owner[rows])
            follow = decoder(own[:, 1:-1], None, kv, mask, context_index=owner[rows], cache=branch)
            losses, place = token_losses(decoder, follow, own[:, 2:], smoothing)
            total = total.index_add(0, rows[place], losses)
        return {
            "first_token_logits": first,
            "first_token_prob": likely,
            "topk_ids": top,
            "log_probs_sum": -total.unflatten(0, (-1, count)),
        }

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
        """Written answers: `ids` (B, longest), the first token in front, and `scores` (B,) as of `generation.write`.

        `sample_index` (B,) of the batch, where it is there, keys nucleus sampling."""
        states, mask = self.questions(batch)
        mask = None if self.options.question_padding == "seen" else mask
        decoder = self.model.text_decoder
        context = Context(decoder.context_kv(states), mask)
        prompt = batch["input_ids"].new_tensor([self.text.bos_id])
        written = write(
            decoder,
            context,
            prompt,
            self.options.generation,
            self.text.sep_id,
            self.text.pad_id,
            batch.get("sample_index"),
            seed,
        )
        return {"ids": written.ids, "scores": written.scores}

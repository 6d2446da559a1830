"""Statements about two images (NLVR2; BLIP §4): true or false.

In evaluation the two images of a pair are encoded once for all its statements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.blip_nlvr import Judged
from aurora_ds.config import TextConfig
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.language import LanguageTask, wide, with_first
from aurora_ds.tasks.negatives import keyed_uniform

_SWAP = 3  # the stream of these draws; the losses of retrieval have others


class NlvrTask(LanguageTask):
    """Loss and evaluation pieces of two-image reasoning.

    Args:
        model: backbone with `image_tokens`, `pair_keys` and `judged`.
        prompts: what was attached to `model`; None for full fine-tuning. text: for its special token ids.
        seed: of the pairs whose images are exchanged.
    """

    def __init__(self, model: nn.Module, prompts: Prompts | None, text: TextConfig, seed: int = 0) -> None:
        super().__init__(model, prompts)
        self.text, self.seed = text, seed

    def logits(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> Tensor:
        """(B, 2) fp32 or wider, class 1 = true; `batch` as in `loss`, without labels."""
        return self.judged(batch, trace).logits

    def judged(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> Judged:
        """What the model says, logits in fp32 or wider; `batch` as in `loss`, without labels."""
        tokens = self._tokens(batch["image"])
        ids = with_first(batch["input_ids"], self.text.enc_id)
        keys = self.model.pair_keys(tokens[:, 0], tokens[:, 1])
        said = self.model.judged(ids, batch["attention_mask"], keys)
        if trace is not None:
            # recorded runs have all first images before all second ones
            trace.update(
                image_embeds=tokens.transpose(0, 1).flatten(0, 1),
                mm_embeds=said.states,
                prediction=said.logits,
            )
        return said._replace(logits=wide(said.logits))

    def loss(
        self, batch: dict[str, Any], step: int = 0, trace: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss`, scalar: cross entropy, mean over statements, plus the model's own loss (`loss_auxiliary`) where it
        has one.

        Args:
            batch: `image` (B, 2, 3, H, W), `input_ids`, `attention_mask` (B, L), `label` int64 (B,), 1 = true. With
                `swapped_ids`, `swapped_mask` (B, L), the statements for exchanged images, one half of the pairs is
                exchanged, by draws that are keyed by (seed, step, `sample_index`): the same on any number of ranks.
            step: optimizer steps made before.
            trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        if "swapped_ids" in batch:
            batch = self._exchanged(batch, step)
        said = self.judged(batch, trace)
        loss = F.cross_entropy(said.logits, batch["label"])
        if said.auxiliary is None:
            return {"loss": loss}
        return {"loss": loss + said.auxiliary, "loss_judged": loss, "loss_auxiliary": said.auxiliary}

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`logits` (B, 2), and `label` int64 (B,), the likelier class."""
        logits = self.logits(batch)
        return {"logits": logits, "label": logits.argmax(1)}

    @torch.no_grad()
    def judge(self, batch: dict[str, Any], at_once: int = 256) -> dict[str, Tensor]:
        """`logits` (S, 2) of statements about P pairs.

        Args:
            batch: `image` (P, 2, 3, H, W); `input_ids`, `attention_mask` (S, L); `pair` int64 (S,), the row of `image`
                that each statement is about; `turned` bool (S,): with its images exchanged.
            at_once: statements that are read together.
        """
        tokens = self._tokens(batch["image"])
        ids = with_first(batch["input_ids"], self.text.enc_id)
        logits = tokens.new_empty(len(ids), 2)
        for order, rows in ((0, ~batch["turned"]), (1, batch["turned"])):
            (rows,) = rows.nonzero(as_tuple=True)
            if not len(rows):
                continue
            keys = self.model.pair_keys(tokens[:, order], tokens[:, 1 - order])
            for part in rows.split(at_once):
                said = self.model.judged(ids[part], batch["attention_mask"][part], keys, batch["pair"][part])
                logits[part] = said.logits
        return {"logits": wide(logits)}

    def _tokens(self, images: Tensor) -> Tensor:
        """(B, 2, 3, H, W) -> (B, 2, N + 1, D)."""
        _check_pairs(images)
        return self.model.image_tokens(images.flatten(0, 1)).unflatten(0, (-1, 2))

    def _exchanged(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        _check_pairs(batch["image"])
        turned = drawn_to_turn(batch["sample_index"], self.seed, step)
        rows, first = torch.arange(len(turned), device=turned.device), turned.long()
        return batch | {
            "image": batch["image"][rows[:, None], torch.stack([first, 1 - first], dim=1)],
            "input_ids": torch.where(turned[:, None], batch["swapped_ids"], batch["input_ids"]),
            "attention_mask": torch.where(turned[:, None], batch["swapped_mask"], batch["attention_mask"]),
        }


def drawn_to_turn(samples: Tensor, seed: int, step: int) -> Tensor:
    """Whose images are exchanged: bool, for int64 numbers of samples; a half of them, another in each step."""
    return keyed_uniform(samples, seed, step, _SWAP) < 0.5


def _check_pairs(images: Tensor) -> None:
    if images.dim() != 5 or images.shape[1] != 2:
        count = images.shape[1] if images.dim() == 5 else 1
        raise AuroraError(
            f"Statements are about pairs of images, but a sample holds {count}. Use shards of pairs, such as those of "
            "`aurora-ds shards convert nlvr2`."
        )

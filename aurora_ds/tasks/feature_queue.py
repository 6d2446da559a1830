"""Ring buffer of momentum features and media ids: more keys for the contrastive loss (BLIP §3.2, after MoCo).

Any length works, also 0, also one that the batch does not divide. Entries never written carry id -100.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.errors import AuroraError

EMPTY = -100


class FeatureQueue:
    """`image`, `text` (E, Q) fp32, `ids` (Q,) int64, and the place of the next write. Kept out of modules:
    no cast, no partition."""

    def __init__(self, dim: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length = length
        self.image = F.normalize(torch.randn(dim, length, generator=generator), dim=0)
        self.text = F.normalize(torch.randn(dim, length, generator=generator), dim=0)
        self.ids = torch.full((length,), EMPTY, dtype=torch.int64)
        self.pointer = 0

    def to(self, device: torch.device) -> FeatureQueue:
        if self.image.device != device:
            self.image, self.text, self.ids = self.image.to(device), self.text.to(device), self.ids.to(device)
        return self

    @torch.no_grad()
    def write(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """image, text (B, E), ids (B,): the oldest B entries are replaced; of more than Q rows the last Q
        stay."""
        if self.length == 0:
            return
        skipped = max(0, len(ids) - self.length)
        image, text, ids = image[skipped:], text[skipped:], ids[skipped:]
        places = (
            torch.arange(self.pointer + skipped, self.pointer + skipped + len(ids), device=ids.device)
            % self.length
        )
        self.image[:, places] = image.t().to(self.image)
        self.text[:, places] = text.t().to(self.text)
        self.ids[places] = ids
        self.pointer = (self.pointer + skipped + len(ids)) % self.length

    def state(self) -> dict[str, Tensor]:
        return {
            "image_queue": self.image,
            "text_queue": self.text,
            "idx_queue": self.ids,
            "ptr_queue": torch.tensor([self.pointer]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Raises AuroraError when the stored queue has another shape than this run's."""
        if tuple(state["image_queue"].shape) != tuple(self.image.shape):
            raise AuroraError(
                f"The stored feature queue is {tuple(state['image_queue'].shape)}, this run's is "
                f"{tuple(self.image.shape)}. Set "
                f"retrieval.queue_size={state['image_queue'].shape[1]}, or backbone.queue_weights=ignore."
            )
        device = self.image.device
        self.image, self.text = (
            state["image_queue"].float().to(device).clone(),
            state["text_queue"].float().to(device).clone(),
        )
        if "idx_queue" in state:
            self.ids = state["idx_queue"].reshape(-1).to(device).clone()
        pointer = state.get("ptr_queue", state.get("queue_ptr"))
        self.pointer = int(pointer.reshape(-1)[0]) % max(1, self.length) if pointer is not None else 0

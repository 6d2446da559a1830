"""What retrieval asks of a backbone whose image and text encoders work by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor


class SeparateEncoders:
    """For a model with `image_tokens` and a `text_encoder`, whose first tokens make the features.

    `FOR_PAIRS`: parts that compute with pairs alone, which features do without."""

    FOR_PAIRS: ClassVar[tuple[str, ...]] = ()

    def image_states(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) -> tokens (B, N + 1, D), and the state (B, D) that the image's feature is made of."""
        tokens = self.image_tokens(image)
        return tokens, tokens[:, 0]

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts by themselves, ids and mask (B, L) -> states (B, L, H), of which the first makes the feature."""
        return self.text_encoder(ids, mask)

    @contextmanager
    def auxiliary(self) -> Iterator[Callable[[], None]]:
        """There is no loss of the model's own."""
        yield lambda: None

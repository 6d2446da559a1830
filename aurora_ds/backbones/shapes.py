"""Sizes of a model, read from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


class Shapes:
    """Collects `sizes` by configuration key; tensors that are not there give none."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.sizes: dict[str, int | float] = {}

    def read(self, name: str, **keys: int) -> None:
        """`vision__width=0`: the first axis of tensor `name` is `vision.width`."""
        if name in self.state:
            shape = self.state[name].shape
            self.sizes.update({key.replace("__", "."): shape[axis] for key, axis in keys.items()})

    def ratio(self, name: str, key: str) -> None:
        """Rows over columns of a weight."""
        if name in self.state:
            rows, columns = self.state[name].shape
            self.sizes[key] = rows / columns

    def depth(self, pattern: str, key: str) -> None:
        """One more than the largest number that group 1 of `pattern` finds at the beginning of a name."""
        numbers = [int(match[1]) for match in (re.match(pattern, name) for name in self.state) if match]
        if numbers:
            self.sizes[key] = max(numbers) + 1

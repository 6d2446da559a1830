"""What the rest of the package asks of a family of backbones: its models, and how its published files read.

A family is a module that makes one `Family`, registered in models.py; checkpoint.py knows none by name. Families share
the names that published.py maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from aurora_ds.backbones.published import PublishedTensors
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError


class Family(ABC):
    """One kind of architecture.

    `title`: its name in messages. `models`: by `backbone.head`. `positions`: this package's name of the learned
    positions of image patches, and how they are resized. `optional`: tensors that files may lack, and their values.
    `unused`: a sentence about what files may hold without its being used.
    """

    title: ClassVar[str]
    models: ClassVar[Mapping[str, type[nn.Module]]]
    positions: ClassVar[str]
    interpolation: ClassVar[str]
    optional: ClassVar[Mapping[str, float]] = {}
    unused: ClassVar[str]

    def new_model(self, config: BackboneConfig) -> nn.Module:
        """The model of `config.head` with random weights, from torch's generator. Raises AuroraError without one."""
        if config.head not in self.models:
            raise AuroraError(
                f"backbone.name={config.name} has no model for backbone.head={config.head}; it has them for "
                f"{', '.join(self.models)}."
            )
        return self.models[config.head](config)

    def start(self, config: BackboneConfig) -> tuple[nn.Module, str]:
        """A model without `config.checkpoint`, and what to call its weights: random ones."""
        return self.new_model(config), f"{config.name} (random weights)"

    @abstractmethod
    def sort(self, state: Mapping[str, Tensor], config: BackboneConfig) -> PublishedTensors:
        """Every tensor of a file in its place for `config.head`; what is ignored by declaration is left out."""

    @abstractmethod
    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, int | float]:
        """Sizes that names and shapes of sorted tensors give away, by configuration key (`vision.width`, …)."""

    @abstractmethod
    def lacking(self, sizes: Mapping[str, int | float], head: str) -> str | None:
        """What a file with these sizes lacks to be one of this family at all; None: nothing."""

    def advice(self, state: Mapping[str, Tensor], head: str) -> str | None:
        """What to say of a file that was trained for something that `head` cannot start from."""
        return None

    def from_folder(
        self, folder: Path, config: BackboneConfig, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Tensors of a directory in transformers' format under published names. Raises AuroraError."""
        raise AuroraError(
            f"backbone.checkpoint={folder} is a directory. Backbones of backbone.name={config.name} come as one file: "
            "give the published file, or its tensors as .safetensors."
        )

    def completed(
        self, state: dict[str, Tensor], config: BackboneConfig
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Published tensors with those that such a file cannot have, and the names of these."""
        return state, []

    def has_momentum(self, name: str) -> bool:
        """Whether the momentum model has a copy of the model's tensor `name`."""
        return not name.startswith(("temp", "itm_head."))

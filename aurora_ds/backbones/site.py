"""Site: one linear of a backbone that prompts may adapt. Plain data; whoever adapts finds the module by its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Site:
    """An adaptable `nn.Linear`.

    `outputs` equal blocks of output features have a factor column each (q, k, v: 3); for a linear that
    contracts a widened hidden state, `inputs` equal blocks of input features do (second MLP linear: 4).
    `norm`: the path of the `nn.LayerNorm` whose result the linear reads as it is, where their owner hands on the
    whole tuple that a stand-in for the norm may give.
    """

    name: str
    module_path: str
    outputs: int = 1
    inputs: int = 1
    modality: Literal["vision", "text", "cross"] = "text"
    layer: int = 0
    role: Literal["attention", "mlp"] = "attention"
    norm: str | None = None

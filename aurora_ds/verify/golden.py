"""A golden folder and the comparison of one output with it.

A golden folder holds `config.json`, `weights.safetensors` (published parameter names), `inputs.safetensors`
and `outputs.safetensors`. Anyone with a published checkpoint and recorded outputs can write such a folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aurora_ds.errors import AuroraError


@dataclass
class Check:
    """One compared output. `kind` sets the tolerance; `note` says why something was not compared."""

    name: str
    absolute: float
    relative: float
    tolerance: str
    passed: bool
    note: str = ""


class _Description(dict):
    """A JSON object whose missing keys are the file's fault."""

    def __missing__(self, key: str) -> None:
        raise AuroraError(f"The golden folder's config.json lacks '{key}', which its case needs.")


@dataclass
class Golden:
    """A folder's content and the checks made so far."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    checks: list[Check] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Golden:
        """Raises AuroraError when a file is missing or unreadable."""
        for name in ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors"):
            if not (folder / name).is_file():
                raise AuroraError(
                    f"{folder} is no golden folder: {name} is missing. It needs config.json, weights, "
                    "inputs and outputs (.safetensors)."
                )
        try:
            text = (folder / "config.json").read_text(encoding="utf-8")
            config = json.loads(text, object_hook=_Description)
            inputs, outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise AuroraError(f"The golden folder {folder} cannot be read: {error}.") from error
        if not isinstance(config, dict):
            raise AuroraError(f"{folder / 'config.json'} holds a {type(config).__name__}, not an object.")
        return cls(folder, config, inputs, outputs)

    def compare(self, name: str, value: Tensor, expected: Tensor | None = None) -> None:
        """Activations, logits, features: 1e-5 absolute or of the largest entry; losses 1e-5 relative;
        gradients 1e-4 of the largest entry (those that are zero by symmetry: 1e-5 absolute); integers
        exact."""
        expected = self.outputs[name] if expected is None else expected
        if value.numel() != expected.numel():
            self.checks.append(
                Check(
                    name,
                    torch.inf,
                    torch.inf,
                    "shape",
                    False,
                    f"{tuple(value.shape)} for {tuple(expected.shape)}",
                )
            )
            return
        value = value.detach().cpu().reshape(expected.shape)
        if not expected.is_floating_point():
            wrong = int((value.to(expected.dtype) != expected).sum())
            self.checks.append(Check(name, wrong, wrong / max(1, expected.numel()), "exact", wrong == 0))
            return
        difference = (value.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
        largest = expected.double().abs().max().item() if expected.numel() else 0.0
        relative = difference / largest if largest else difference
        if "grad." in name:
            zero = name.endswith("key.bias")
            self.checks.append(
                Check(
                    name,
                    difference,
                    relative,
                    "1e-5" if zero else "1e-4 rel",
                    difference <= 1e-5 if zero else relative <= 1e-4,
                )
            )
        else:
            self.checks.append(
                Check(name, difference, relative, "1e-5", difference <= 1e-5 or relative <= 1e-5)
            )

    def skip(self, name: str, note: str) -> None:
        """An output that is not compared, with the reason; shown, and no failure."""
        self.checks.append(Check(name, 0.0, 0.0, "-", True, note))

    def require_all(self) -> None:
        """Every recorded output must have been looked at."""
        seen = {check.name for check in self.checks}
        for name in sorted(set(self.outputs) - seen):
            self.checks.append(
                Check(name, torch.inf, torch.inf, "-", False, "recorded, but nothing computes it here")
            )

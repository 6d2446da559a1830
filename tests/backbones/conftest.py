"""Recorded runs of the published code (tests/goldens) and a model small enough to build in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.config import BackboneConfig, TextConfig, VisionConfig

GOLDENS = Path(__file__).parents[1] / "goldens" / "blip"


@dataclass
class Recorded:
    """One recorded case. `config()` describes its model; keyword arguments replace settings."""

    folder: Path

    def __post_init__(self) -> None:
        self.described = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.inputs = load_file(self.folder / "inputs.safetensors")
        self.weights = load_file(self.folder / "weights.safetensors")
        self.outputs = load_file(self.folder / "outputs.safetensors")

    def exact_outputs(self) -> dict[str, Tensor]:
        """The same run in double precision."""
        return load_file(self.folder / "outputs_f64.safetensors")

    def config(self, image_size: int | None = None, **settings: object) -> BackboneConfig:
        c, med = self.described, self.described["med"]
        settings.setdefault("checkpoint", str(self.folder / "weights.safetensors"))
        return BackboneConfig(
            vision=VisionConfig(
                image_size=image_size or c["image_size"],
                patch_size=c["patch_size"],
                width=c["vision_width"],
                depth=c["vision_depth"],
                heads=c["vision_heads"],
            ),
            text=TextConfig(
                vocab_size=med["vocab_size"],
                width=med["hidden_size"],
                depth=med["num_hidden_layers"],
                heads=med["num_attention_heads"],
                intermediate=med["intermediate_size"],
                max_positions=med["max_position_embeddings"],
                dropout=0.0,
                attention_dropout=0.0,
                bos_id=c["tokens"]["bos"],
                enc_id=c["tokens"]["enc"],
            ),
            embed_dim=c.get("embed_dim", 256),
            **settings,
        )


@pytest.fixture(scope="session")
def retrieval_record() -> Recorded:
    return Recorded(GOLDENS / "blip_retrieval")


@pytest.fixture(scope="session")
def language_records() -> dict[str, Recorded]:
    """By backbone.head."""
    return {head: Recorded(GOLDENS / f"blip_{head}") for head in ("vqa", "caption", "nlvr")}


@pytest.fixture(scope="session")
def positions_record() -> Recorded:
    return Recorded(GOLDENS / "pos_embed_interp")


@pytest.fixture
def small_config() -> BackboneConfig:
    """Vision and text of different widths; every dropout off."""
    return BackboneConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=24, depth=2, heads=2),
        text=TextConfig(
            vocab_size=124,
            width=32,
            depth=2,
            heads=2,
            intermediate=64,
            max_positions=40,
            dropout=0.0,
            attention_dropout=0.0,
            bos_id=122,
            enc_id=123,
        ),
        embed_dim=16,
    )


@pytest.fixture
def small_model(small_config: BackboneConfig) -> BlipRetrieval:
    torch.manual_seed(0)
    return BlipRetrieval(small_config)


@pytest.fixture
def texts() -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """(rows, length) -> ids and mask; the second half of every other row is padding."""

    def make(rows: int, length: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rows * 100 + length)
        ids = torch.randint(1, 120, (rows, length), generator=generator)
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[::2, (length + 1) // 2 :] = 0
        return ids * mask, mask

    return make

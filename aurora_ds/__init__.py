"""aurora_ds: Aurora prompts for frozen vision-language backbones, from WebDataset shards, under DeepSpeed.

import aurora_ds
aurora_ds.load("runs/vqa").predict(image="photo.jpg", text="what is on the table?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aurora_ds.predict import Predictor, load

__all__ = ["Predictor", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` and `Predictor`, when they are first asked for: they bring torch, and the command line must answer at
    once."""
    if name in ("load", "Predictor"):
        from aurora_ds import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""How each task meets data, the loop, results and single predictions: one file per task. train.py and evaluate.py know
no task by name; they ask `of(config)`."""

from __future__ import annotations

from aurora_ds.config import RunConfig
from aurora_ds.wiring.base import Wiring
from aurora_ds.wiring.caption import CaptionWiring
from aurora_ds.wiring.entailment import EntailmentWiring
from aurora_ds.wiring.grounding import GroundingWiring
from aurora_ds.wiring.nlvr import NlvrWiring
from aurora_ds.wiring.pretrain import PretrainWiring
from aurora_ds.wiring.retrieval import RetrievalWiring
from aurora_ds.wiring.vqa import VqaWiring

WIRINGS: dict[str, type[Wiring]] = {
    "retrieval": RetrievalWiring,
    "vqa": VqaWiring,
    "caption": CaptionWiring,
    "nlvr": NlvrWiring,
    "entailment": EntailmentWiring,
    "grounding": GroundingWiring,
    "pretrain": PretrainWiring,
}


def of(config: RunConfig) -> Wiring:
    """The wiring of `config.task`; `config` with its preset resolved."""
    return WIRINGS[config.task](config)

"""What retrieval found, as a picture: captions with their five best images, right and wrong marked."""

from __future__ import annotations

from typing import Any

import numpy as np

from aurora_ds.config import RunConfig
from aurora_ds.data.loader import eval_texts
from aurora_ds.data.media import picture
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.tasks.rerank import RetrievalResult

SHOWN = 5


def retrieval_gallery(config: RunConfig, tokenizer: Any, result: RetrievalResult) -> np.ndarray:
    """uint8 (3, height, width): `monitor.gallery_queries` captions spread evenly over the evaluated ones,
    so that good and bad queries are shown as they come."""
    split = config.data.eval_split
    texts = eval_texts(config, split, tokenizer, config.evaluate.limit)
    reader = ShardReader(open_manifest(config))
    count = min(config.monitor.gallery_queries, len(texts["captions"]))
    chosen = np.linspace(0, len(texts["captions"]) - 1, count).round().astype(int) if count else []

    queries = []
    for text in chosen:
        scores, owner = result.text_scores[text], int(texts["media_index"][text])
        best = scores.argsort(descending=True)[:SHOWN]
        answers = [
            Answer(picture(config, reader, split, medium), medium == owner, float(scores[place]))
            for place in best.tolist()
            for medium in [int(result.text_candidates[text, place])]
        ]
        queries.append(Query(texts["captions"][text], answers))
    reader.close()
    return gallery(queries, SHOWN, ranked=True)

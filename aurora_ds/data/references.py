"""All captions of the media that training reads, for statistics over them: the document frequencies of CIDEr-D."""

from __future__ import annotations

from collections.abc import Iterator

from aurora_ds.config import RunConfig
from aurora_ds.data.media import all_annotations
from aurora_ds.data.mixture import open_mixture
from aurora_ds.data.reader import BadSample, ShardReader


def training_captions(config: RunConfig) -> Iterator[list[str]]:
    """The captions of each medium of data.train_split (data.mix), each once; no medium is read.

    A damaged record is left out with data.bad_samples=skip, as training does, and a BadSample otherwise."""
    for source in open_mixture(config, "captions").sources:
        reader = ShardReader(source.manifest)
        try:
            for medium in source.dealt().tolist():
                try:
                    key, record = reader.record(source.split, medium)
                    yield all_annotations(record, "captions", key)
                except BadSample:
                    if config.data.bad_samples == "error":
                        raise
        finally:
            reader.close()

"""The baseline of mPLUG's beam search gives the same texts as the product's."""

from __future__ import annotations

import mplug_decoding
import pytest
import torch


@pytest.mark.parametrize("lengths", [(6, 9), (5, 12)])
def test_the_baseline_writes_the_same_texts(lengths):
    decoder = mplug_decoding.make_decoder(quick=True).double()
    memory = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        texts = {name: mplug_decoding.search(name, decoder, memory, *lengths) for name in ("plain", "aurora")}
    assert texts["plain"] == texts["aurora"]
    assert len({tuple(text) for text in texts["plain"]}) > 1, "texts that are all alike would show nothing"

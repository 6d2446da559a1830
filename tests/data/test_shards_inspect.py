"""What `shards inspect` tells and draws."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from aurora_ds.data.inspect import inspect_shards, summary_table
from aurora_ds.errors import AuroraError


def test_counts_and_statistics(shards: Path) -> None:
    summary = inspect_shards(shards)
    train = summary["splits"]["train"]
    assert (train["samples"], train["pairs"], train["shards"]) == (45, 90, 7)
    assert train["captions_per_sample"] == [1, 2.0, 3]
    assert train["words_per_caption"][0] == 6 and train["median_pixels"] == [40, 32]
    assert train["bytes"] == sum(path.stat().st_size for path in shards.glob("train-*.tar"))


def test_the_table_has_a_row_per_split(shards: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(inspect_shards(shards)))
    text = console.export_text()
    assert "train" in text and "test" in text and "1–3, ⌀ 2" in text and "40x32" in text
    assert "…" not in text


def test_the_contact_sheet_shows_pictures_and_words(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "new/sheet.png"
    assert inspect_shards(shards, path)["contact_sheet"] == str(path)
    sheet = np.asarray(Image.open(path).convert("L"))
    assert sheet.shape[0] > 600 and sheet.shape[1] > 1000
    rows = (sheet < 128).any(axis=1)
    assert 0.2 < rows.mean() < 1.0


def test_few_samples_make_a_small_sheet(tmp_path: Path, source: Path) -> None:
    from aurora_ds.data.convert import convert

    convert("folder", source, tmp_path / "out", limit=1)
    inspect_shards(tmp_path / "out", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width < 700


def test_a_sheet_must_be_a_picture(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="must be a picture: name it FILE.png"):
        inspect_shards(shards, tmp_path / "sheet.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuroraError, match="cannot be written"):
        inspect_shards(shards, tmp_path / "file/sheet.png")
    with pytest.raises(AuroraError, match="no folder"):
        inspect_shards(tmp_path / "nowhere")

"""How data workers hand their batches on, and what becomes of one that they cannot hand on."""

from __future__ import annotations

import multiprocessing.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aurora_ds.config import RunConfig
from aurora_ds.data import batch_workers, loader
from aurora_ds.errors import AuroraError

Configs = Callable[..., RunConfig]


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie now: a folder in which a socket's path does not fit."""
    folder = tmp_path / ("job-" + "0" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    yield folder
    multiprocessing.current_process()._config.pop("tempdir", None)


def test_a_long_path_of_temporary_files_loses_no_batch(
    run_config: Configs, tokenizer, long_folder: Path
) -> None:
    here = list(loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0))
    there = list(loader.train_loader(run_config(workers=2), tokenizer, 1, 0, epoch=0))
    assert [batch["keys"] for batch in there] == [batch["keys"] for batch in here]
    assert all(torch.equal(ours["image"], theirs["image"]) for ours, theirs in zip(here, there, strict=True))
    assert tempfile.gettempdir() == str(long_folder), "other temporary files stay where the user wants them"


def test_a_folder_whose_sockets_just_fit_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", lambda: chosen.append(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        room = batch_workers.LONGEST_FOLDER - len(os.fsencode(short)) - 1
        for extra in (0, 1):
            folder = Path(short) / ("f" * (room + extra))
            folder.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            batch_workers.prepare_socket_folder()
        assert chosen == [str(Path(short) / ("f" * room)), "/tmp"]


def test_no_folder_for_sockets_is_told(long_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_workers, "SHORT_FOLDERS", (str(long_folder),))
    with pytest.raises(AuroraError, match=r"at most \d+ bytes: .*job-0+ .*Set TMPDIR"):
        batch_workers.prepare_socket_folder()


@pytest.mark.timeout(120)
def test_a_batch_that_cannot_be_handed_on_ends_the_run(
    run_config: Configs, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = loader.annotated_loader(
        run_config(workers=1), "captions", lambda captions: {"texts": lambda: captions}, 1, 0, epoch=0
    )
    with pytest.raises(AuroraError, match="could not hand over a batch"):
        list(batches)
    assert "pickle" in capfd.readouterr().err

"""Batches of remote shards by worker processes, which are forked after the parent has used the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shard_servers import nginx, s3_server, upload

from aurora_ds.config import RunConfig
from aurora_ds.data.loader import eval_image_loader, train_loader
from aurora_ds.data.remote import transfer


@pytest.mark.parametrize("server", ["nginx", "s3"])
def test_worker_processes_read_remote_shards(
    server: str,
    shards: Path,
    run_config: Callable[..., RunConfig],
    tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(transfer, "_filesystems", {})
    with nginx(shards, tmp_path / "run") if server == "nginx" else s3_server() as url:
        if server == "s3":
            upload(shards, url, "bucket", "shards")
            for name, value in (("ENDPOINT_URL", url), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
                monkeypatch.setenv(f"AWS_{name}", value)
            url = "s3://bucket/shards"
        remote = run_config(8, shards=url, cache=str(tmp_path / "cache"), workers=2, bad_samples="error")
        local = train_loader(run_config(8), tokenizer, 1, 0, 0)
        for ours, expected in zip(train_loader(remote, tokenizer, 1, 0, 0), local, strict=True):
            assert ours["keys"] == expected["keys"]
            assert torch.equal(ours["image"], expected["image"])
        keys = [key for batch in eval_image_loader(remote, "test", None, 1, 0, 4) for key in batch["keys"]]
        assert len(set(keys)) == 11

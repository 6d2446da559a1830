"""Batches of remote shards by worker processes, which are forked after the parent has used the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shard_servers import FaultProxy, nginx, s3_server, upload

from aurora_ds.config import RunConfig
from aurora_ds.data.loader import eval_image_loader, train_loader
from aurora_ds.data.remote import store, transfer
from aurora_ds.data.remote.transfer import Patience
from aurora_ds.errors import AuroraError


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


def test_a_server_out_of_reach_stops_even_a_skipping_run(
    shards: Path,
    run_config: Callable[..., RunConfig],
    tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    quick = Patience(attempts=2, first_wait=0.01, part_seconds=0.5)
    monkeypatch.setattr(store, "Patience", lambda: quick)
    with nginx(shards, tmp_path / "run") as url, FaultProxy(url).running() as proxy:
        config = run_config(
            8, shards=proxy.url, cache=str(tmp_path / "cache"), bad_samples="skip", max_bad_share=1
        )
        loader = train_loader(config, tokenizer, 1, 0, 0)
        proxy.faults, proxy.forever = {path.name: ["hang"] for path in shards.glob("*.tar")}, True
        began = time.monotonic()
        with pytest.raises(
            AuroraError, match=r"cannot be reached. Shard train-00000\d.tar: http.* no answer within"
        ):
            list(loader)
        assert time.monotonic() - began < 10

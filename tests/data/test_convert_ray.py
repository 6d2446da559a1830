"""Conversion on a Ray cluster of two machines, as Ray simulates them: nodes with stores and workers of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawn_data import write_recipe, write_source

from aurora_ds.data.convert import convert
from aurora_ds.data.convert.executor import open_executor
from aurora_ds.data.shardcheck import verify_shards
from aurora_ds.errors import AuroraError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each, and none in the head."""
    pytest.importorskip("ray", reason="ray is an extra: pip install 'aurora_ds[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def address(cluster: Any) -> str:
    """Where a driver reaches the cluster."""
    return cluster.address


def contents(folder: Path) -> dict[str, bytes]:
    names = ("*.tar", "manifest.json", "index.safetensors", "rejects.jsonl")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


@pytest.mark.slow
def test_shards_from_two_machines_are_those_of_one_process(address: str, tmp_path: Path) -> None:
    source, recipe = write_source(tmp_path / "source", 40, 5), write_recipe(tmp_path / "small.yaml", 5)
    convert(recipe, source, tmp_path / "local")
    convert(recipe, source, tmp_path / "ray", workers=4, executor="ray", ray_address=address)
    assert len(contents(tmp_path / "ray")) == 12
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    verify_shards(tmp_path / "ray")


@pytest.mark.slow
def test_both_machines_work_and_results_come_in_order(address: str, tmp_path: Path) -> None:
    def where(number: int) -> tuple[int, str]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (tmp_path / node).touch()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # the other may take its time to start
        return number, node

    with open_executor("ray", 4, address) as executor:
        found = list(executor.run_in_order(where, range(12)))
    assert [number for number, _ in found] == list(range(12))
    assert len({node for _, node in found}) == 2


@pytest.mark.slow
def test_a_machine_that_is_lost_is_replaced(cluster: Any) -> None:
    def work(number: int) -> int:
        time.sleep(0.4)
        return number * number

    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with open_executor("ray", 3, cluster.address) as executor:
        results = executor.run_in_order(work, range(12))
        found = [next(results)]
        cluster.remove_node(lost, allow_graceful=False)
        found += results
    assert found == [number * number for number in range(12)]


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_told_as_on_one_machine(address: str, tmp_path: Path) -> None:
    source, recipe = write_source(tmp_path / "source", 8, 2), write_recipe(tmp_path / "small.yaml", 5)
    (source / "images/train/003.jpg").write_bytes(b"no image")
    with pytest.raises(AuroraError, match=r"1 rejects so far.*train/003.jpg of train: .*not a JPEG"):
        convert(recipe, source, tmp_path / "out", workers=2, executor="ray", ray_address=address)


@pytest.mark.slow
def test_a_worker_that_dies_each_time_is_told_in_words(address: str) -> None:
    with open_executor("ray", 1, address) as executor:
        with pytest.raises(
            AuroraError, match="A task was lost on the Ray cluster.*run the same command again"
        ):
            list(executor.run_in_order(lambda _: os._exit(1), range(1)))


@pytest.mark.slow
def test_a_task_that_is_refused_keeps_its_words(address: str) -> None:
    def refuse(number: int) -> None:
        raise AuroraError(f"number {number} is refused")

    with open_executor("ray", 1, address) as executor:
        with pytest.raises(AuroraError, match="^number 0 is refused$"):
            list(executor.run_in_order(refuse, range(1)))


@pytest.mark.slow
def test_a_machine_without_the_package_is_told_in_words(address: str) -> None:
    # pickled by name, from a module that the cluster's machines do not have
    with open_executor("ray", 1, address) as executor:
        with pytest.raises(AuroraError, match="same version of aurora_ds on every machine"):
            list(executor.run_in_order(_only_here, range(1)))


def _only_here(number: int) -> int:
    return number


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AuroraError, match=r"pip install 'aurora_ds\[ray\]'.*--executor local"):
        with open_executor("ray", 1):
            pass


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(AuroraError, match="--ray-address goes with --executor ray"):
        with open_executor("local", 1, "auto"):
            pass

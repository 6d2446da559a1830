"""The network between two hosts is cut in the middle of a step. For long: every rank ends within the bound and says
which rank it lost and where that one was, and the run comes back. For a moment: nothing happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import separate_hosts
from separate_hosts import Hosts
from small_run import Ranks, wait_for
from test_hosts import multinode, of_launch, on_host, steps_done  # noqa: F401 - fixtures
from test_resume import NO_DROPOUT, losses

from aurora_ds.runtime import heartbeat

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# minutes of steps, so that the run is not over before the cable is pulled; `max_steps` ends the one that comes back
LONG = (*NO_DROPOUT, "train.epochs=1000", "train.schedule=constant", "train.save_every=5")
IN_A_STEP = ("forward", "backward and update", "waiting for data", "saving")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """host1 and host2."""
    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    started = separate_hosts.start(tmp_path_factory.mktemp("hosts") / "net")
    yield started
    started.close()


def pull(hosts: Hosts, run: Ranks, output: Path, later: float = 0.0) -> float:
    """Take host2 off the network in the middle of training, some seconds `later`. Returns when."""
    wait_for(lambda: steps_done(output) >= 7, run)
    time.sleep(later)
    hosts.link(1, "down")
    return time.monotonic()


def test_a_network_that_stays_cut_ends_every_rank_within_the_bound_and_names_the_rank_and_its_phase(
    multinode,  # noqa: F811
    hosts: Hosts,
    train_command,
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    run = multinode(output, *LONG, "train.unreachable_seconds=10")
    try:
        began = pull(hosts, run, output, later=4)  # a few signs of life
        while of_launch(output, hosts[1]) or any("RANK" in each.environ() for each in of_launch(output)):
            assert time.monotonic() - began < 40, run.output()[-6000:]
            time.sleep(0.2)
        assert time.monotonic() - began >= 9
        assert run.wait(60)[0] not in (0, None), run.output()[-6000:]
        assert of_launch(output) == []
    finally:
        hosts.link(1, "up")
    said = run.output()
    for rank, host, text in (
        (1, "host2", said),
        (0, "host1", (output / "failures" / "rank-00001.txt").read_text()),
    ):
        assert "no sign of life for 1" in text and "train.unreachable_seconds is 10" in text, text[-6000:]
        assert any(f"rank {rank} on {host}, last in {phase} of step" in text for phase in IN_A_STEP), text[
            -6000:
        ]
    assert "this rank is still in" in said and "--resume auto" in said
    report = (output / "failures" / "rank-00000.txt").read_text()
    assert (
        '"host": "host2"' in report and "gloo:all_reduce" in report
    )  # the heartbeats and the flight recorder
    done = steps_done(output)
    more = (*LONG, f"train.max_steps={done + 10}")
    again = multinode(output, *more)
    assert again.wait() == [0], again.output()[-6000:]
    assert "resumed after step" in again.output()
    whole = tmp_path / "whole"
    train_command(whole, *more, ranks=2)
    assert len(losses(output)) == done + 10 and losses(output) == losses(whole)


def test_a_network_that_comes_back_before_the_bound_ends_nothing(
    multinode,  # noqa: F811
    hosts: Hosts,
    train_command,
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    settings = (*LONG, "train.max_steps=300")
    run = multinode(output, *settings, "train.unreachable_seconds=60")
    pull(hosts, run, output)
    time.sleep(1)  # what was under way has arrived
    before = steps_done(output)
    time.sleep(4)
    assert before < 300 and steps_done(output) == before and run.running()
    hosts.link(1, "up")
    assert run.wait() == [0], run.output()[-6000:]
    assert {beat["phase"] for beat in heartbeat.read(output)} == {heartbeat.ENDED}
    whole = tmp_path / "whole"
    train_command(whole, *LONG, f"train.max_steps={before + 10}", ranks=2)
    assert losses(whole) == {step: losses(output)[step] for step in range(1, before + 11)}

"""Every way of damaging shards, once each; and the benchmark's own judgement, on a reader that does not check."""

from __future__ import annotations

import damage
import pytest

from aurora_ds.data import reader


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """(undamaged shards, what reading them gives, a folder for copies)"""
    scratch = tmp_path_factory.mktemp("damage")
    undamaged = damage.make_shards(scratch / "dataset")
    return undamaged, damage.clean_run(undamaged), scratch


def test_every_way_of_damage_is_reported_and_never_used(prepared) -> None:
    results = [damage.run_case(name, 1, *prepared, workers=0) for name in damage.WAYS]
    assert {result.way: result.wrong for result in results if result.wrong} == {}
    assert all(result.reported for result in results)
    assert sum(result.counted for result in results) > 20


def test_worker_processes_end_too(prepared) -> None:
    result = damage.run_case("bits anywhere in three shards", 1, *prepared, workers=2)
    assert not result.wrong and result.skip == "completed" and result.error == "stopped"


def test_a_reader_without_checksums_is_seen_to_use_damaged_samples(
    prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_check_sum", lambda *_: None)
    wrong = damage.run_case("two pictures exchanged", 1, *prepared, workers=0).wrong
    assert any("is another" in each for each in wrong)


def test_a_case_without_end_is_stopped_and_told(prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "TIME_LIMIT", 0.2)
    monkeypatch.setattr(damage, "judge", lambda *_: __import__("time").sleep(60))
    assert damage.run_case("cut short", 1, *prepared, workers=0).wrong == ["no end within 0 s"]

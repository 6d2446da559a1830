"""The quickstart: the whole main job, run twice; and what it does with folders that are there already."""

import json

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart import run as quickstart
from aurora_ds.quickstart import world


@pytest.fixture
def small_world(monkeypatch):
    """Renders a few pictures; keeps count of how often."""
    calls, write = [], world.write

    def few(folder, domain, seed):
        calls.append(folder)
        return write(folder, domain, seed, counts={"train": 6, "val": 2, "test": 2})

    monkeypatch.setattr(world, "write", few)
    return calls


def test_the_world_is_rendered_once(tmp_path, small_world):
    quickstart.make_world(tmp_path)
    before = (tmp_path / "raw" / "train.json").read_bytes()
    quickstart.make_world(tmp_path)
    assert len(small_world) == 1
    assert (tmp_path / "raw" / "train.json").read_bytes() == before


def test_a_rendering_that_was_cut_off_starts_over(tmp_path, small_world):
    (tmp_path / "raw.writing" / "images").mkdir(parents=True)
    (tmp_path / "raw.writing" / "train.json").write_text("[")
    quickstart.make_world(tmp_path)
    assert json.loads((tmp_path / "raw" / "train.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "raw.writing").exists()


def test_a_folder_that_quickstart_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear to somebody")
    with pytest.raises(AuroraError, match="did not make"):
        quickstart.run(tmp_path, fresh=True)
    assert (tmp_path / "thesis.txt").read_text() == "dear to somebody"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_gains_and_a_second_run_continues(tmp_path):
    first = quickstart.run(tmp_path / "out", ranks=2)
    frozen, trained = (first[name]["metrics"]["r_mean"] for name in ("frozen", "aurora"))
    assert trained > frozen + 20
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["ranks"] == 2
    again = quickstart.run(tmp_path / "out", ranks=2)
    assert again["aurora"]["metrics"] == first["aurora"]["metrics"]

"""Which path an op takes, and where compiled kernels are kept."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.kernels import choice, compiled
from aurora_ds.prompts.kernel_path import choose_kernels, warm_up


@pytest.fixture(autouse=True)
def _as_before():
    before = choice.setting(), choice.sums(), choice._family
    yield
    choice.use(before[0])
    choice.use_sums(before[1])
    choice._family = before[2]


@pytest.fixture
def device_with_triton(monkeypatch):
    """As on a GPU of family sm_90; nothing is run there."""
    monkeypatch.setattr(choice, "triton_runs_on", lambda device_type: device_type == "cuda")
    monkeypatch.setattr(choice, "_family", "sm_90")
    return torch.device("cuda")


def path(device, dtype=torch.bfloat16, sizes=(2304, 768), rank=64, inputs=1):
    return choice.path_of_projection(device, dtype, *sizes, rank, inputs)


def test_on_the_cpu_everything_takes_the_torch_path(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for setting in ("auto", "torch", "triton"):
        choice.use(setting)
        assert path(torch.device("cpu"), torch.float32) == "torch"


def test_auto_takes_what_the_table_says_and_torch_where_it_says_nothing(
    device_with_triton, tmp_path, monkeypatch
):
    table = tmp_path / "choices.json"
    table.write_text(json.dumps({"families": {"sm_90": {"bfloat16 2304x768 r64 i1": "triton"}}}))
    monkeypatch.setattr(choice, "TABLE", table)
    choice._measured.cache_clear()
    choice.use("auto")
    try:
        assert path(device_with_triton) == "triton"
        assert path(device_with_triton, rank=32) == "torch"
        assert path(device_with_triton, torch.float16) == "torch"
        assert "triton for 1 of 1" in choice.describe("cuda")
        choice._family = "mixed"  # ranks on unlike devices
        assert path(device_with_triton) == "torch"
    finally:
        choice._measured.cache_clear()


def test_the_table_of_the_repository_can_be_read():
    families = json.loads(choice.TABLE.read_text(encoding="utf-8"))["families"]
    assert all(path in ("triton", "torch") for rows in families.values() for path in rows.values())


def test_triton_as_set_takes_every_shape_of_a_supported_dtype(device_with_triton):
    choice.use("triton")
    assert path(device_with_triton, sizes=(7, 5), rank=3) == "triton"
    assert path(device_with_triton, torch.float64) == "torch"
    assert choice.describe("cuda") == "triton, as set"


def test_mixed_dtypes_take_the_torch_path(device_with_triton):
    choice.use("triton")
    x, weight, down = torch.ones(2, 4), torch.ones(3, 4), torch.ones(2, 4, dtype=torch.bfloat16)
    assert choice.path_for(x, weight, down, 1) == "torch"


def test_triton_where_it_cannot_run_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AuroraError, match="kernels=triton cannot run here.*kernels=auto"):
        choose_kernels("triton")
    assert choice.setting() != "triton"


def test_sums_are_ordered_unless_set_and_the_log_says_so(device_with_triton, monkeypatch):
    monkeypatch.setattr(choice, "obstacle", lambda: None)
    assert RunConfig().kernel_sums == choice.sums() == "ordered"
    choose_kernels("triton")
    assert "atomics" not in choice.describe("cuda")
    choose_kernels("triton", "atomic")
    assert choice.sums() == "atomic" and "atomics" in choice.describe("cuda")
    with pytest.raises(ValueError, match="ordered or atomic"):
        choice.use_sums("fast")


def test_what_a_shared_input_takes_stands_in_the_table_by_itself(device_with_triton, tmp_path, monkeypatch):
    table = tmp_path / "choices.json"
    rows = ["bfloat16 1536x768 r64 i1 from z", "bfloat16 64x768 r64 i1 z", "bfloat16 64x1024 r64 i1 norm"]
    table.write_text(json.dumps({"families": {"sm_90": dict.fromkeys(rows, "triton")}}))
    monkeypatch.setattr(choice, "TABLE", table)
    choice._measured.cache_clear()
    choice.use("auto")
    try:
        assert path(device_with_triton, sizes=(1536, 768)) == "torch"
        start = choice.path_of_start
        common = (device_with_triton, torch.bfloat16)
        assert choice.path_of_projection(*common, 1536, 768, 64, 1, from_z=True) == "triton"
        assert start(*common, 768, 64, 1) == "triton" and start(*common, 768, 64, 1, norm=True) == "torch"
        assert start(*common, 1024, 64, 1) == "torch" and start(*common, 1024, 64, 1, norm=True) == "triton"
    finally:
        choice._measured.cache_clear()


def test_the_setting_is_one_of_three():
    assert RunConfig().kernels == "auto"
    with pytest.raises(ValueError, match="kernels"):
        RunConfig(kernels="fast")
    with pytest.raises(ValueError, match="auto, triton or torch"):
        choice.use("fast")


def test_nothing_is_compiled_on_the_cpu():
    assert warm_up(None, torch.device("cpu"), torch.float32) == 0


def test_triton_is_imported_only_by_the_kernels_themselves():
    program = (
        "import sys, torch\n"
        "from aurora_ds.kernels import prompted_linear\n"
        "import aurora_ds.prompts\n"
        "x = torch.ones(2, 4)\n"
        "prompted_linear(x, torch.ones(3, 4), None, torch.ones(2, 4), torch.ones(3, 2))\n"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_compiled_kernels_are_kept_apart_for_every_job(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    folders = set()
    for job in ("11", "12", "11"):
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        folder = compiled.use_own_folder()
        assert os.environ["TRITON_CACHE_DIR"] == str(folder)
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
        folders.add(folder)
    assert len(folders) == 2
    monkeypatch.delenv("TRITON_CACHE_DIR")


def test_a_folder_that_is_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compiled.use_own_folder() == tmp_path


def test_ranks_without_a_launcher_are_alone(monkeypatch):
    for name in (*compiled._JOB_VARIABLES, "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert compiled.job() == "alone"
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "host")
    assert compiled.job() == "host-29500"

"""The recorded runs of the published code, computed by the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from aurora_ds.kernels import choice
choice.use("triton")
choice.use = lambda setting: None  # the recorded runs say nothing of kernels
import aurora_ds.kernels.gpu.products as products
started, start = [], products.launch
products.launch = lambda *a, **k: (started.append(a[0]), start(*a, **k))
from aurora_ds.verify import run
status = run([Path(sys.argv[1])], Path(sys.argv[2]))
print("projections", len(started))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["aurora_retrieval_image", "aurora_vqa", "aurora_vqa_video"])
def test_everything_recorded_is_within_tolerance(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "tests" / "goldens" / "blip" / name), str(tmp_path)],
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all outputs within tolerance" in done.stdout
    assert int(done.stdout.split("projections")[-1]) > 100

"""Where compiled kernels are kept: on the node's own disk, apart for every job.

Triton's default is ~/.triton, which clusters share between nodes: jobs then race there (triton-lang/triton#2688)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "TORCHELASTIC_RUN_ID")


def job() -> str:
    """A name for this job, the same in all of its processes on a node; `alone` where nothing launched it."""
    for name in _JOB_VARIABLES:
        if os.environ.get(name):
            return os.environ[name]
    if "MASTER_PORT" in os.environ:
        return f"{os.environ.get('MASTER_ADDR', 'here')}-{os.environ['MASTER_PORT']}"
    return "alone"


def use_own_folder() -> Path:
    """Set TRITON_CACHE_DIR, unless it is set, to a folder of this job's in the temporary directory; to be called
    before the first kernel is compiled. A folder of that name that belongs to somebody else is not used."""
    if "TRITON_CACHE_DIR" not in os.environ:
        name = "".join(c if c.isalnum() else "-" for c in job())
        folder = Path(tempfile.gettempdir()) / f"aurora_ds-triton-{os.getuid()}-{name}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            folder = Path(tempfile.mkdtemp(prefix="aurora_ds-triton-"))
        os.environ["TRITON_CACHE_DIR"] = str(folder)
    return Path(os.environ["TRITON_CACHE_DIR"])

"""`.deepspeed_env`: the environment that ranks on other hosts get. ssh starts them with an empty one, and DeepSpeed
passes on only PYTHON…, NCCL… and a few more (by prefix); the rest must stand in this file.

| variable | why the ranks need it |
|---|---|
| GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME | the network between the hosts, where another one would be found |
| HF_HUB_OFFLINE=1 | everything a run reads is on disk; 1,000 ranks must not ask a server |
| OMP_NUM_THREADS=1 | a thread pool per rank and data worker would fight for the cores |
| TOKENIZERS_PARALLELISM=false | tokenizers are used in processes that fork data workers |
| TRITON_CACHE_DIR | only where it is set here: without it each job has a folder of its own on each host's disk |
| AURORA_DS_…, CUDA_…, TORCH_…, OMP_…, HF_HOME, … | what is set here holds there too |
| AURORA_DS_LAUNCH | names the launch, so that its processes can be found on every host, and no others |

Tokens and passwords are not passed on: command lines show them to everybody on a host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FILE = ".deepspeed_env"
DEFAULTS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PASSED_ON = (
    *("AURORA_DS_", "CUDA_", "DS_ACCELERATOR", "GLOO_", "HF_HOME", "HF_HUB_", "MKL_", "NCCL_", "OMP_"),
    *("OPENBLAS_", "TOKENIZERS_", "TORCH_", "TORCHINDUCTOR_", "TRITON_"),
)
# the launcher sets it for each rank from the host's slots
_NOT = ("CUDA_VISIBLE_DEVICES",)
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def users_own() -> dict[str, str]:
    """What DeepSpeed would read by itself: ~/.deepspeed_env, then the one in the current folder."""
    name, found = os.environ.get("DS_ENV_FILE", FILE), {}
    for folder in (Path.home(), Path()):
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            found |= dict(
                line.strip().split("=", 1) for line in lines if "=" in line and not line.startswith("#")
            )
    return found


def for_ranks(environment: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The whole file: defaults, what is set here, and over both what the user's files say."""
    here = {
        name: value
        for name, value in environment.items()
        if name.startswith(PASSED_ON) and name not in _NOT and not name.endswith(_SECRET) and value
    }
    return DEFAULTS | here | own


def write(path: Path, variables: Mapping[str, str]) -> None:
    """A line NAME=VALUE each; DeepSpeed allows no comments and no empty lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"{name}={value}\n" for name, value in sorted(variables.items())), encoding="utf-8"
    )

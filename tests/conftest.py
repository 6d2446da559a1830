"""What every test gets: no network, one thread per process, and the reference material when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before any test imports torch or transformers, and inherited by the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

REPOSITORY = Path(__file__).parents[1]


def find_reference() -> Path | None:
    """Folder with goldens/ and data/: $AURORA_DS_SHARED, or `shared` in or beside the checkout."""
    named = os.environ.get("AURORA_DS_SHARED")
    candidates = [Path(named)] if named else [REPOSITORY / "shared", REPOSITORY.parent / "shared"]
    return next((each.resolve() for each in candidates if (each / "goldens").is_dir()), None)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference material that is not part of the package (goldens/, data/); the test is skipped without it."""
    found = find_reference()
    if found is None:
        pytest.skip(
            "reference material not found: set AURORA_DS_SHARED to the folder that has goldens/ and data/"
        )
    return found


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Path:
    """Recorded inputs, weights and outputs of the published code."""
    return shared / "goldens"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`gpu` tests are skipped where there is no CUDA device, even when they are asked for."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """torch reads its thread count once, at import; a test that changed it would slow the ones after it."""
    yield
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)

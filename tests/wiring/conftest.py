"""What runs of question answering share."""

from __future__ import annotations

from pathlib import Path

import pytest
from question_runs import backbone, clip_shards, image_sample, image_shards, question


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def asked_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    bare = [image_sample(n, questions=[question(n, "what is it")]) for n in (70, 71, 72)]
    image_shards(folder, bare=[bare])
    return folder


@pytest.fixture(scope="session")
def asked_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clip_shards(folder)
    return folder

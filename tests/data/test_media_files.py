"""Where the file of a medium is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.data.convert.media_files import OUTSIDE, MediaFiles


def finder(root: Path, files: list[str], candidates=None, video: bool = True) -> MediaFiles:
    """Over empty files in root/a and root/b."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return MediaFiles([root / "a", root / "b", root / "missing"], candidates or (lambda name: [name]), video)


def test_the_best_candidate_counts_before_the_first_folder(tmp_path: Path) -> None:
    files = finder(tmp_path, ["a/flat.jpg", "b/deep/flat.jpg"], lambda name: [f"deep/{name}", name])
    assert files.find("flat.jpg") == tmp_path / "b/deep/flat.jpg"
    assert files.find("other.jpg") == "there is no such video file"


@pytest.mark.parametrize("name", ["../a/x.jpg", "/etc/passwd", "x/../../y.jpg", "x/.."])
def test_names_that_lead_out_are_refused_before_the_disk_is_asked(tmp_path: Path, name: str) -> None:
    assert finder(tmp_path, ["x.jpg"]).find(name) == OUTSIDE
    assert finder(tmp_path, ["x.jpg"], lambda _: [name]).find("fine.jpg") == OUTSIDE


def test_a_name_that_only_looks_so_is_found(tmp_path: Path) -> None:
    assert finder(tmp_path, ["a/x..y.jpg"]).find("x..y.jpg") == tmp_path / "a/x..y.jpg"


@pytest.mark.parametrize(
    ("stored", "stem", "found"),
    [
        (["a/x.mp4"], "x", "a/x.mp4"),
        (["a/x.mov.mp4"], "x", "a/x.mov.mp4"),
        (["a/x.mov.mp4"], "x.mov", "a/x.mov.mp4"),
        (["a/x.AVI", "a/x.txt", "a/x.json"], "x", "a/x.AVI"),
        (["a/x.webm", "a/x.mp4", "a/x.mov.avi"], "x", "a/x.mp4"),
        (["b/sub/x.mkv"], "sub/x", "b/sub/x.mkv"),
        (["a/xy.mp4", "a/x.y.mp4"], "x", "there is no such video file"),
    ],
)
def test_a_stem_is_found_with_any_extension_of_its_kind(
    tmp_path: Path, stored: list[str], stem: str, found: str
) -> None:
    files = finder(tmp_path, stored, lambda name: [f"{name}.*"])
    assert files.find(stem) == (tmp_path / found if "/" in found else found)


def test_images_are_found_by_stem_too(tmp_path: Path) -> None:
    files = finder(tmp_path, ["a/x.mp4", "a/x.jpeg"], lambda name: [f"{name}.*"], video=False)
    assert files.find("x") == tmp_path / "a/x.jpeg"

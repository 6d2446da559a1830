"""`aurora-ds shards …` from the command line: own photos in, shards out, looked at, checked, and found damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from aurora_ds.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    entries = []
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 0, 0)).save(folder / f"{number}.png")
        split = "test" if number > 3 else "train"
        entries.append({"image": f"{number}.png", "caption": [f"red {number}", "a square"], "split": split})
    (folder / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def convert(source: Path, output: Path, *more: str) -> int:
    return main(["shards", "convert", "folder", "--source", str(source), "--output", str(output), *more])


def test_convert_inspect_and_verify(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    output, sheet = tmp_path / "shards", tmp_path / "sheet.png"
    assert convert(source, output, "--workers", "1") == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert ["train", "4", "8", "1"] in [[cell.strip() for cell in row[:4]] for row in rows]
    assert json.loads((output / "results.json").read_text())["splits"]["test"]["pairs"] == 4
    assert main(["shards", "inspect", str(output), "--contact-sheet", str(sheet)]) == 0
    assert "train" in capsys.readouterr().out
    assert Image.open(sheet).width > 100
    assert main(["shards", "verify", str(output)]) == 0
    assert "samples" in capsys.readouterr().out


def test_a_damaged_shard_is_status_2_and_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "shards"
    assert convert(source, output) == 0
    shard = sorted(output.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    report = tmp_path / "damage.jsonl"
    assert main(["shards", "verify", str(output), "--report", str(report)]) == 2
    assert shard.name in capsys.readouterr().err
    assert json.loads(report.read_text().splitlines()[0])["file"] == shard.name


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["shards", "convert", "flikr30k", "--source", ".", "--output", "out"], "Did you mean flickr30k?"),
        (["shards", "convert", "folder", "--source", "nowhere", "--output", "out"], "nowhere"),
        (["shards", "inspect", "nowhere"], "nowhere"),
        (["shards", "inspect", "pipe:cat x"], "URLs that run a command or chain file systems are refused"),
        (["shards", "verify", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_status_2_and_says_what(
    argv: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert part in capsys.readouterr().err


def test_shards_are_written_to_a_folder_of_this_machine(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["shards", "convert", "folder", "--source", ".", "--output", "s3://bucket/shards"])
    assert ended.value.code == 2
    assert "s3://bucket/shards is a URL, but this must be a folder on this machine" in capsys.readouterr().err

"""`aurora-ds` as a person meets it: help, exit statuses, one paragraph for a mistake."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

import pytest
import yaml

from aurora_ds import arguments
from aurora_ds.cli import build_parser, main
from aurora_ds.errors import AuroraError

COMMANDS = [
    ["quickstart"],
    ["shards", "convert"],
    ["shards", "inspect"],
    ["shards", "verify"],
    ["train"],
    ["evaluate"],
    ["predict"],
    ["export"],
    ["verify"],
    ["doctor"],
    ["plan"],
    ["config", "show"],
    ["config", "list"],
]


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "aurora_ds", *argv], capture_output=True, text=True, timeout=60
    )


def leaf_commands(parser: argparse.ArgumentParser, trail: tuple[str, ...] = ()) -> list[list[str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [
                leaf for name, sub in action.choices.items() for leaf in leaf_commands(sub, (*trail, name))
            ]
    return [list(trail)]


def test_the_list_of_commands_is_complete():
    assert sorted(leaf_commands(build_parser())) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "example:\n  aurora-ds " + " ".join(command) in printed


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command not in (["config", "list"],)], ids=" ".join
)
def test_the_example_in_the_help_parses(command: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    example = (
        capsys.readouterr().out.partition("example:\n  aurora-ds ")[2].splitlines()[0].partition(" > ")[0]
    )
    assert callable(arguments.parse(build_parser(), example.split()).run)


def test_help_answers_at_once_and_loads_no_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from aurora_ds.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stdout.strip() == "False"
    # 0.1 s of processor time, whoever else is busy
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_wrong_key_is_one_paragraph_and_status_2():
    result = run("config", "show", "retrieval_coco", "train.lrr=3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert "unknown key train.lrr. Did you mean train.lr?" in result.stderr


def test_debug_shows_the_stack_trace_before_or_after_the_command(capsys: pytest.CaptureFixture):
    for argv in (
        ["--debug", "config", "show", "retrieval_coco", "a=1"],
        ["config", "show", "retrieval_coco", "a=1", "--debug"],
    ):
        assert main(argv) == 2
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert "aurora-ds: In override `a=1`" in printed


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trian"],
        ["train"],
        ["train", "retrieval_coco"],
        ["train", "retrieval_coco", "--output", "x", "--no-such-option"],
        ["train", "retrieval_coco", "--output", "x", "stray"],
        ["shards", "verify", "x", "a=1"],
        ["shards", "convert", "coco_retrieval", "--source", "x", "--output", "y", "--workers", "0"],
        ["export", "--adapter", "x", "--output", "y", "--format", "onnx"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_status_2(argv: list[str], capsys: pytest.CaptureFixture):
    try:
        status = main(argv)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert capsys.readouterr().err


def test_config_show_prints_a_run_that_loads_again(tmp_path, capsys: pytest.CaptureFixture):
    assert main(["config", "show", "retrieval_coco", "train.lr=3e-5", "prompts.rank=8"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["train"]["lr"] == 3e-5
    (tmp_path / "mine.yaml").write_text(printed, encoding="utf-8")
    assert main(["config", "show", str(tmp_path / "mine.yaml")]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == yaml.safe_load(printed)
    assert shown.splitlines()[1] == printed.splitlines()[1], "the fingerprint is the same"


def test_config_list_names_every_recipe(capsys: pytest.CaptureFixture):
    assert main(["config", "list"]) == 0
    printed = capsys.readouterr().out
    assert "retrieval_coco_large" in printed
    assert "retrieval_world" in printed


# arguments of runs ---------------------------------------------------------------------------------------------------


def train_arguments(*argv: str) -> argparse.Namespace:
    parser = arguments.module_parser("aurora_ds.train", "")
    arguments.add_train(parser)
    return arguments.parse(parser, argv)


def test_overrides_may_stand_before_and_after_options():
    chosen = train_arguments("retrieval_coco", "a=1", "--output", "x", "b=2", "--resume", "never", "c=3")
    assert chosen.overrides == ["a=1", "b=2", "c=3"]
    assert chosen.resume == "never"
    assert train_arguments("retrieval_coco", "--output", "x", "b=2").overrides == ["b=2"]


@pytest.mark.parametrize("spelling", ["--local_rank=3", "--local-rank=3"])
def test_the_launchers_local_rank_is_accepted(spelling: str):
    assert train_arguments(spelling, "retrieval_coco", "--output", "x").recipe == "retrieval_coco"


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1), ({"r": 1}, 0), (True, 0)])
def test_the_status_is_what_a_command_returns(result: object, status: int):
    assert arguments.finish(lambda: result) == status


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture):
    def interrupted():
        raise KeyboardInterrupt

    assert arguments.finish(interrupted) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_error_on_another_rank_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def failing():
        raise AuroraError("the disk is full")

    monkeypatch.setitem(os.environ, "RANK", "3")
    assert arguments.finish(failing) == 2
    assert capsys.readouterr().err == "aurora-ds (rank 3): the disk is full\n"


def test_a_defect_of_ours_keeps_its_stack_trace():
    with pytest.raises(ZeroDivisionError):
        arguments.finish(lambda: 1 // 0)

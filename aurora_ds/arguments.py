"""Arguments that `aurora-ds train` and `deepspeed --module aurora_ds.train` share, and how a command ends.

Imports nothing heavy: `aurora-ds --help` and a mistyped option must answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from aurora_ds.errors import AuroraError

WRONG_INPUT = 2
INTERRUPTED = 130

RECIPE_HELP = "a built-in name (`aurora-ds config list`) or a YAML path"


def command(commands, name: str, run, about: str, example: str) -> argparse.ArgumentParser:
    """A sub-command with its one-line help, an example, and the function that runs it with (namespace, argv)."""
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_debug(parser)
    parser.set_defaults(run=run)
    return parser


def group(commands, name: str, about: str):
    """A command that only has sub-commands."""
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and the overrides after it."""
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings to change, as in train.lr=1e-4",
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """`--debug`, accepted before and after a sub-command; absent from the namespace when it is not given."""
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the stack trace of an error"
    )


def add_train(parser: argparse.ArgumentParser) -> None:
    """Arguments of a training run."""
    add_recipe(parser)
    parser.add_argument("--output", metavar="DIR", type=local_path, required=True, help="folder of this run")
    parser.add_argument(
        "--resume",
        metavar="auto|required|never|PATH",
        default="auto",
        help="auto (default): continue the run in --output if there is one; required: or stop; never: only a new run; "
        "PATH: that checkpoint",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although settings or versions that the numbers depend on have changed; they are listed",
    )
    parser.add_argument(
        "--deepspeed-config", metavar="FILE", type=Path, help="a JSON file such as ds_configs/zero2.json"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, shards and checkpoint, print what would be trained, and stop",
    )
    # the deepspeed launcher appends it for old scripts; the rank is read from the environment
    _add_local_rank(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of an evaluation."""
    add_recipe(parser)
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        type=Path,
        help="a run's folder, a checkpoint or an exported adapter; without it the frozen backbone is evaluated",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for results.json")
    _add_local_rank(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Arguments of single predictions. RECIPE may be left out; `take_recipe` tells it from a setting."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help=f"{RECIPE_HELP}; needed without --adapter, which says itself how it is used",
    )
    _add_overrides(parser)
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        type=Path,
        help="a run's folder, a checkpoint, an adapter, an exported or a fully fine-tuned model; without it the frozen "
        "backbone predicts",
    )
    media = parser.add_mutually_exclusive_group(required=True)
    for name, what in (
        ("image", "images; for statements about two images, left and right of each pair"),
        ("video", "clips"),
    ):
        media.add_argument(
            f"--{name}",
            metavar="FILE",
            nargs="+",
            action="extend",
            default=[],
            help=f"{what}; may be repeated",
        )
    parser.add_argument(
        "--text",
        metavar="TEXT",
        action="append",
        default=[],
        help="a question, a statement, a phrase that means a thing, or a text to compare with; may be repeated, and "
        "each is put to each medium",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for results.json, and for photos with the boxes of grounding drawn in",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON in place of the table")


def take_recipe(chosen: argparse.Namespace) -> tuple[str | None, list[str]]:
    """(recipe or None, overrides) where RECIPE may be left out, and settings may follow a list of files: a word with
    `=` that is no file is a setting, and is taken from where it stood."""
    overrides = [*chosen.overrides]
    for files in (chosen.image, chosen.video):
        late = [word for word in files if _is_setting(word)]
        overrides += late
        files[:] = [word for word in files if word not in late]
    if chosen.recipe is not None and _is_setting(chosen.recipe):
        return None, [chosen.recipe, *overrides]
    return chosen.recipe, overrides


def _is_setting(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def add_quickstart(parser: argparse.ArgumentParser) -> None:
    """Arguments of the quickstart."""
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="default runs/quickstart"
    )
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=positive,
        help="processes; default: one per GPU, or 2 on a machine without",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start clean; the default continues what is in --output"
    )


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Arguments of the check of hosts."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help=f"{RECIPE_HELP}; with it, its shards and checkpoint are checked too",
    )
    _add_overrides(parser)
    parser.add_argument(
        "--hostfile", metavar="HOSTS", type=Path, help="lines `NAME slots=N`; without it: this machine"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=local_path,
        help="the run's folder: is there room; doctor.json goes there",
    )
    parser.add_argument(
        "--master-port",
        metavar="PORT",
        type=positive,
        default=29500,
        help="of the first host (default 29500)",
    )
    parser.add_argument(
        "--master-addr", metavar="ADDRESS", help="of the first host; default: its first of `hostname -I`"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="for the ranks of all hosts to meet (default 60)",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Arguments of the planner."""
    add_recipe(parser)
    parser.add_argument("--gpus", metavar="N", type=positive, required=True, help="GPUs of each host")
    parser.add_argument(
        "--gpu-memory", metavar="GB", type=positive_number, required=True, help="of each GPU, in 10^9 bytes"
    )
    parser.add_argument("--nodes", metavar="M", type=positive, default=1, help="hosts (default 1)")
    parser.add_argument("--output", metavar="DIR", type=local_path, help="folder for results.json")


def positive_number(text: str) -> float:
    """An argument type: a number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def positive(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def local_path(text: str) -> Path:
    """An argument type: a path on this machine. A URL would be taken for a folder of that strange name."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL, but this must be a folder on this machine")
    return Path(text)


def module_parser(module: str, about: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, to be filled with one of the `add_…` functions."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    add_debug(parser)
    return parser


def _add_local_rank(parser: argparse.ArgumentParser) -> None:
    """The deepspeed launcher appends it to every command; the rank itself is read from the environment."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments; overrides may also stand after options (`RECIPE --output DIR train.lr=1e-4`)."""
    arguments, rest = parser.parse_known_args(argv)
    late = [each for each in rest if not each.startswith("-") and "=" in each]
    if len(late) < len(rest) or (late and not hasattr(arguments, "overrides")):
        parser.error(
            f"unrecognized arguments: {' '.join(each for each in rest if each not in late) or ' '.join(rest)}"
        )
    if late:
        arguments.overrides = [*arguments.overrides, *late]
    return arguments


def finish(command: Callable[[], object], debug: bool = False) -> int:
    """Run a command and turn its end into an exit status.

    An int that it returns is the status, anything else is 0. AuroraError becomes one paragraph on stderr and 2,
    an interrupt 130; any other exception is a defect of ours and keeps its stack trace.
    """
    try:
        result = command()
    except AuroraError as error:
        if debug:
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        print(f"aurora-ds{f' (rank {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("aurora-ds: interrupted", file=sys.stderr)
        return INTERRUPTED
    return result if isinstance(result, int) and not isinstance(result, bool) else 0

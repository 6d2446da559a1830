"""`python -m aurora_ds.multinode`: what scripts/train_multinode.sh runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aurora_ds import arguments
from aurora_ds.multinode.launch import Launch
from aurora_ds.multinode.supervise import supervise
from aurora_ds.recipe import load_config

_ABOUT = """Train on the hosts of a host file, through the `deepspeed` launcher, and start again what fails.

RECIPE, key=value and the options of `aurora-ds train` follow as they are there. Check the hosts first:
  aurora-ds doctor --hostfile HOSTS RECIPE key=value … --output DIR

SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks, which have --grace seconds to end."""


def build_parser() -> argparse.ArgumentParser:
    """The supervisor's own options; everything else is the training command's."""
    parser = argparse.ArgumentParser(
        prog="scripts/train_multinode.sh",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  scripts/train_multinode.sh --hostfile hosts --max-restarts 3 retrieval_coco \\\n"
        "    backbone.checkpoint=/data/model_base.pth --output /shared/runs/coco",
        allow_abbrev=False,
    )
    parser.add_argument("--hostfile", metavar="HOSTS", type=Path, required=True, help="lines `NAME slots=N`")
    parser.add_argument(
        "--max-restarts",
        metavar="N",
        type=int,
        default=0,
        help="start a failed run again with --resume auto, N times at most (default 0)",
    )
    parser.add_argument(
        "--master-addr", metavar="ADDRESS", help="of the first host; default: its first of `hostname -I`"
    )
    parser.add_argument(
        "--master-port",
        metavar="PORT",
        type=int,
        default=29500,
        help="free on the first host (default 29500)",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=float,
        default=120.0,
        help="for the ranks to end after a signal (default 120); then they are killed",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the training run's status, 0 when it is done."""
    chosen, train = build_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    parser = arguments.module_parser("aurora_ds.train", "Train Aurora prompts, heads or everything.")
    arguments.add_train(parser)
    known = arguments.parse(parser, train)  # a mistyped option ends here, and not on every host

    def command() -> int:
        # a mistake in the settings ends here, too
        unreachable = load_config(known.recipe, known.overrides).train.unreachable_seconds
        place = (chosen.hostfile, train, known.output, chosen.master_addr, chosen.master_port, unreachable)
        return supervise(Launch(*place), chosen.max_restarts, chosen.grace)

    return arguments.finish(command, debug=getattr(known, "debug", False))


if __name__ == "__main__":
    sys.exit(main())

"""`aurora-ds`: one sub-command per thing a user does. Arguments and tables are here, the work is in the modules called.

Modules that load torch are imported inside the command that needs them, so `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from aurora_ds import __version__, arguments, tables
from aurora_ds.cli_shards import add_shards


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the status: 0 done, 1 checked and found wrong, 2 wrong input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    chosen = arguments.parse(parser, argv)
    return arguments.finish(
        functools.partial(chosen.run, chosen, argv), debug=getattr(chosen, "debug", False)
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="aurora-ds",
        description="Aurora prompts for frozen vision-language backbones: shards, training, evaluation, export.",
        epilog="A first run: aurora-ds quickstart. Every command has --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"aurora_ds {__version__}")
    arguments.add_debug(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_quickstart(commands)
    add_shards(commands)
    _add_runs(commands)
    _add_adapter(commands)
    _add_plan(commands)
    _add_doctor(commands)
    _add_config(commands)
    return parser


# quickstart ----------------------------------------------------------------------------------------------------------


def _add_quickstart(commands) -> None:
    parser = arguments.command(
        commands,
        "quickstart",
        _quickstart,
        "the main job on the built-in toy world, with a results table",
        "aurora-ds quickstart --fresh",
    )
    arguments.add_quickstart(parser)


def _quickstart(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.quickstart.run import main as quickstart

    return quickstart(_after(argv, "quickstart"))


# train, evaluate, predict --------------------------------------------------------------------------------------------


def _add_runs(commands) -> None:
    train = arguments.command(
        commands,
        "train",
        _train,
        "fine-tune a frozen backbone with Aurora prompts",
        "aurora-ds train retrieval_coco backbone.checkpoint=model_base.pth --output runs/coco\n"
        "on 8 GPUs:\n"
        "  deepspeed --num_gpus 8 --module aurora_ds.train retrieval_coco --output runs/coco "
        "--deepspeed-config ds_configs/zero1.json\n"
        "on the hosts of a file (lines `NAME slots=8`), started again when a host fails:\n"
        "  scripts/train_multinode.sh --hostfile hosts --max-restarts 3 retrieval_coco --output runs/coco",
    )
    arguments.add_train(train)
    evaluate = arguments.command(
        commands,
        "evaluate",
        _evaluate,
        "judge a trained adapter, or the frozen backbone, on the evaluation split",
        "aurora-ds evaluate retrieval_coco --adapter runs/coco --output runs/coco/evaluation",
    )
    arguments.add_evaluate(evaluate)
    predict = arguments.command(
        commands,
        "predict",
        _predict,
        "what a trained adapter, or the frozen backbone, says about images or clips on disk",
        "aurora-ds predict --adapter runs/vqa --image photo.jpg --text 'what is on the table?'\n"
        "texts ranked for a clip, by the frozen backbone:\n"
        "  aurora-ds predict retrieval_msrvtt_9k backbone.checkpoint=model_base.pth data.video.frames=16 \\\n"
        "    --video clip.mp4 --text 'a man cooks' --text 'a dog runs'",
    )
    arguments.add_predict(predict)


def _train(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.train import main as train

    return train(_after(argv, "train"))


def _evaluate(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.evaluate import main as evaluate

    return evaluate(_after(argv, "evaluate"))


def _predict(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.predict import run as predict

    recipe, overrides = arguments.take_recipe(chosen)
    predict(
        recipe,
        overrides,
        chosen.adapter,
        chosen.image,
        chosen.video,
        chosen.text,
        chosen.output,
        chosen.json,
    )
    return 0


# export, verify ------------------------------------------------------------------------------------------------------


def _add_adapter(commands) -> None:
    export = arguments.command(
        commands,
        "export",
        _export,
        "write the backbone with the prompts merged into its weights",
        "aurora-ds export --adapter runs/coco --format merged --output exported/coco\n"
        "the run must have had prompts.query_transform=false, which no weight can hold",
    )
    export.add_argument(
        "--adapter", metavar="DIR", type=Path, required=True, help="a run's folder, checkpoint or adapter"
    )
    export.add_argument(
        "--format",
        choices=["merged", "transformers"],
        default="merged",
        help="merged (default): published names, one file; transformers: a directory of its "
        "BlipForImageTextRetrieval, BlipForQuestionAnswering or BlipForConditionalGeneration, with a processor",
    )
    export.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="a folder that is new or empty"
    )
    export.add_argument(
        "--backbone",
        metavar="PATH",
        type=Path,
        help="the frozen backbone's checkpoint, when it is no longer where it was in training",
    )

    verify = arguments.command(
        commands,
        "verify",
        _verify,
        "compare our numbers with golden folders, one line per output; exit status 1 when one is out",
        "aurora-ds verify goldens/blip/visible/blip_retrieval",
    )
    verify.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="folder with config.json and its tensors"
    )
    verify.add_argument(
        "--output", metavar="DIR", type=Path, default=None, help="also write every check to DIR/results.json"
    )


def _export(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.export import run as export

    return export(chosen.adapter, chosen.format, chosen.output, chosen.backbone)


def _verify(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.verify import run as verify

    return verify(chosen.folders, chosen.output)


# plan ----------------------------------------------------------------------------------------------------------------


def _add_plan(commands) -> None:
    plan = arguments.command(
        commands,
        "plan",
        _plan,
        "memory per GPU and bytes sent per step under every DeepSpeed setting, and which setting to take",
        "aurora-ds plan retrieval_coco train.precision=bf16 --gpus 8 --gpu-memory 24\n"
        "on 4 hosts, the whole backbone trained, written to runs/plan/results.json:\n"
        "  aurora-ds plan vqa train.method=full --gpus 8 --nodes 4 --gpu-memory 80 --output runs/plan\n"
        "Nothing is read or computed but the recipe: checkpoint, shards and GPUs need not be there.",
    )
    arguments.add_plan(plan)


def _plan(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.plan.run import run as plan

    return plan(chosen.recipe, chosen.overrides, chosen.gpus, chosen.gpu_memory, chosen.nodes, chosen.output)


# doctor --------------------------------------------------------------------------------------------------------------


def _add_doctor(commands) -> None:
    doctor = arguments.command(
        commands,
        "doctor",
        _doctor,
        "what would stop a run on this machine or on the hosts of a host file; exit status 1 when something is wrong",
        "aurora-ds doctor --hostfile hosts retrieval_coco backbone.checkpoint=model_base.pth --output runs/coco",
    )
    arguments.add_doctor(doctor)


def _doctor(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.doctor import run as doctor

    return doctor(
        chosen.hostfile,
        chosen.recipe,
        chosen.overrides,
        chosen.output,
        chosen.master_port,
        chosen.master_addr,
        chosen.timeout,
    )


# config --------------------------------------------------------------------------------------------------------------


def _add_config(commands) -> None:
    config = arguments.group(commands, "config", "look at run descriptions")
    show = arguments.command(
        config,
        "show",
        _show_config,
        "the complete run that a recipe and overrides describe, as YAML",
        "aurora-ds config show retrieval_coco train.lr=3e-5 > mine.yaml",
    )
    arguments.add_recipe(show)
    arguments.command(config, "list", _list_recipes, "the built-in recipes", "aurora-ds config list")


def _show_config(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.presets import with_preset
    from aurora_ds.recipe import fingerprint, load_config, to_yaml

    config = with_preset(load_config(chosen.recipe, chosen.overrides))
    print(
        f"# {' '.join([chosen.recipe, *chosen.overrides])}\n# fingerprint {fingerprint(config)}\n{to_yaml(config)}",
        end="",
    )
    return 0


def _list_recipes(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.recipe import load_config, recipe_names

    tables.print_table("Recipes", {name: load_config(name).description for name in recipe_names()})
    return 0


# shared --------------------------------------------------------------------------------------------------------------


def _after(argv: list[str], command: str) -> list[str]:
    """What was typed after the command; `--debug` before it is kept."""
    place = argv.index(command)
    return [*argv[:place], *argv[place + 1 :]]


if __name__ == "__main__":
    sys.exit(main())

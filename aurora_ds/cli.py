"""`aurora-ds`: one sub-command per thing a user does. Arguments and tables are here, the work is in the modules called.

Modules that load torch are imported inside the command that needs them, so `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from aurora_ds import __version__, arguments


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
    _add_shards(commands)
    _add_runs(commands)
    _add_adapter(commands)
    _add_doctor(commands)
    _add_config(commands)
    return parser


def _command(commands, name: str, run, about: str, example: str) -> argparse.ArgumentParser:
    """A sub-command with its one-line help, an example, and the function that runs it with (namespace, argv)."""
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_debug(parser)
    parser.set_defaults(run=run)
    return parser


def _group(commands, name: str, about: str):
    """A command that only has sub-commands."""
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


# quickstart ----------------------------------------------------------------------------------------------------------


def _add_quickstart(commands) -> None:
    parser = _command(
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


# shards --------------------------------------------------------------------------------------------------------------


def _add_shards(commands) -> None:
    shards = _group(commands, "shards", "turn a dataset into tar shards, and look at them")
    convert = _command(
        shards,
        "convert",
        _convert,
        "turn photos or clips and their annotations into tar shards with a manifest",
        "aurora-ds shards convert coco_retrieval --source /data/coco --output shards/coco_retrieval --workers 8\n"
        "a trial with 100 media of each split, counted and looked at:\n"
        "  aurora-ds shards convert msrvtt_9k --source /data/msrvtt --output /tmp/trial --limit 100\n"
        "  aurora-ds shards inspect /tmp/trial --contact-sheet trial.png\n"
        "8 frames of each clip in place of the clip, on a Ray cluster that sees the same folders:\n"
        "  aurora-ds shards convert msrvtt_9k --source /data/msrvtt --output shards/msrvtt_frames --workers 64 \\\n"
        "    --executor ray --ray-address auto --video-frames 8 --size 256\n"
        "Stopped at any moment, the same command continues. Recipes are in shards/ (a wrong name lists them);\n"
        "each says where its data comes from, its licence, and what the source folder must look like.",
    )
    convert.add_argument("recipe", metavar="RECIPE", help="a name in shards/ or a YAML path")
    convert.add_argument(
        "--source",
        metavar="DIR",
        type=arguments.local_path,
        required=True,
        help="folder with the raw dataset",
    )
    convert.add_argument(
        "--output", metavar="DIR", type=arguments.local_path, required=True, help="folder for the shards"
    )
    convert.add_argument(
        "--workers", metavar="N", type=arguments.positive, default=1, help="processes (default 1)"
    )
    convert.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="where the workers run: this machine (default), or a Ray cluster; the shards are the same",
    )
    convert.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a running cluster, or auto; without it one is started here",
    )
    convert.add_argument(
        "--limit", metavar="N", type=arguments.positive, help="only the first N media of each split"
    )
    convert.add_argument(
        "--max-rejects",
        metavar="N|P%",
        default="1%",
        help="more unusable samples than this are an error (default 1%%)",
    )
    convert.add_argument(
        "--strict", action="store_true", help="the recipe's expected counts must be met exactly"
    )
    convert.add_argument(
        "--check",
        choices=["header", "decode"],
        default="header",
        help="before a medium is stored: its header and end (default), or a full decode",
    )
    convert.add_argument(
        "--video-frames", metavar="N", type=arguments.positive, help="store N frames of each clip as JPEG"
    )
    convert.add_argument(
        "--video-reencode",
        action="store_true",
        help="store clips encoded again with close key frames, for fast seeking",
    )
    convert.add_argument(
        "--size",
        metavar="S",
        type=arguments.positive,
        help="with either of these: the shorter side in pixels, never enlarged",
    )

    inspect = _command(
        shards,
        "inspect",
        _inspect,
        "what is in a folder of shards, as a table and a picture",
        "aurora-ds shards inspect shards/coco_retrieval --contact-sheet coco.png",
    )
    inspect.add_argument("folder", metavar="DIR|URL", help="folder with manifest.json, or the URL of one")
    inspect.add_argument(
        "--contact-sheet", metavar="FILE.png", type=Path, help="write a picture of samples and annotations"
    )
    inspect.add_argument("--json", metavar="FILE", type=Path, help="write all figures there, as JSON")

    verify = _command(
        shards,
        "verify",
        _verify_shards,
        "check every checksum and count, and decode every sample",
        "aurora-ds shards verify shards/coco_retrieval --workers 8 --report damage.jsonl",
    )
    verify.add_argument("folder", metavar="DIR|URL", help="folder with manifest.json, or the URL of one")
    verify.add_argument(
        "--workers", metavar="N", type=arguments.positive, default=1, help="processes (default 1)"
    )
    verify.add_argument(
        "--report", metavar="FILE.jsonl", type=Path, help="write every problem there, one JSON object a line"
    )


def _convert(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.data.convert import convert

    results = convert(
        chosen.recipe,
        chosen.source,
        chosen.output,
        workers=chosen.workers,
        limit=chosen.limit,
        max_rejects=chosen.max_rejects,
        strict=chosen.strict,
        executor=chosen.executor,
        ray_address=chosen.ray_address,
        check=chosen.check,
        video_frames=chosen.video_frames,
        size=chosen.size,
        video_reencode=chosen.video_reencode,
    )
    notes = {
        "rejects": f"{results['rejects']:,}" + (", see rejects.jsonl" if results["rejects"] else ""),
        "time": f"{results['seconds']:.1f} s",
    }
    if results["files"]:
        notes["beside them"] = ", ".join(results["files"])
    if results["mismatches"]:
        notes["unexpected"] = "; ".join(results["mismatches"])
    _print_splits(f"{results['dataset']} in {chosen.output}", results["splits"])
    _print_table("", notes)
    return 0


def _print_splits(title: str, splits: dict[str, dict]) -> None:
    """A row per split: its media, its annotations of each kind, shards and size."""
    from rich.console import Console
    from rich.table import Table

    kinds = sorted({kind for split in splits.values() for kind in split["counts"]})
    table = Table(title=title, title_justify="left", title_style="")
    for heading in ("split", "media", *kinds, "shards", "MB"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for name, split in splits.items():
        numbers = [split["samples"], *(split["counts"].get(kind, 0) for kind in kinds), split["shards"]]
        table.add_row(name, *(f"{number:,}" for number in numbers), f"{split['bytes'] / 1e6:,.1f}")
    Console().print(table)


def _inspect(chosen: argparse.Namespace, argv: list[str]) -> object:
    from rich.console import Console

    from aurora_ds.data.inspect import inspect_shards, summary_tables

    summary = inspect_shards(chosen.folder, chosen.contact_sheet, chosen.json)
    Console().print(*summary_tables(summary))
    if chosen.contact_sheet is not None:
        print(f"contact sheet: {chosen.contact_sheet}")
    return 0


def _verify_shards(chosen: argparse.Namespace, argv: list[str]) -> object:
    from aurora_ds.data.shardcheck import verify_shards

    checked = verify_shards(chosen.folder, chosen.workers, chosen.report)
    _print_table("Shards as the manifest says", checked)
    return 0


# train, evaluate, predict --------------------------------------------------------------------------------------------


def _add_runs(commands) -> None:
    train = _command(
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
    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "judge a trained adapter, or the frozen backbone, on the evaluation split",
        "aurora-ds evaluate retrieval_coco --adapter runs/coco --output runs/coco/evaluation",
    )
    arguments.add_evaluate(evaluate)
    predict = _command(
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
    export = _command(
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

    verify = _command(
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


# doctor --------------------------------------------------------------------------------------------------------------


def _add_doctor(commands) -> None:
    doctor = _command(
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
    config = _group(commands, "config", "look at run descriptions")
    show = _command(
        config,
        "show",
        _show_config,
        "the complete run that a recipe and overrides describe, as YAML",
        "aurora-ds config show retrieval_coco train.lr=3e-5 > mine.yaml",
    )
    arguments.add_recipe(show)
    _command(config, "list", _list_recipes, "the built-in recipes", "aurora-ds config list")


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

    _print_table("Recipes", {name: load_config(name).description for name in recipe_names()})
    return 0


# shared --------------------------------------------------------------------------------------------------------------


def _after(argv: list[str], command: str) -> list[str]:
    """What was typed after the command; `--debug` before it is kept."""
    place = argv.index(command)
    return [*argv[:place], *argv[place + 1 :]]


def _print_table(title: str, rows: dict[str, object]) -> None:
    """Two columns: name and value."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

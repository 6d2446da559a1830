"""`aurora-ds shards …`: datasets into tar shards, and looking at them; as in cli.py, the work is done elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from aurora_ds import arguments, tables


def add_shards(commands) -> None:
    """The group `shards`."""
    shards = arguments.group(commands, "shards", "turn a dataset into tar shards, and look at them")
    convert = arguments.command(
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

    inspect = arguments.command(
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

    verify = arguments.command(
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
    tables.print_splits(f"{results['dataset']} in {chosen.output}", results["splits"])
    tables.print_table("", notes)
    return 0


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
    tables.print_table("Shards as the manifest says", checked)
    return 0

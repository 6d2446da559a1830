"""Clips of the toy world: one thing that moves from side to side or up and down, as shards.

A clip's frames are seen as a set (nothing in the model tells their order), so a way and its way back are one motion and
have one caption. Clips come in twins that differ by their motion alone, and in a still of their middle not at all.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from aurora_ds.data.convert import convert
from aurora_ds.quickstart.render import SIDE, Look, render
from aurora_ds.quickstart.scenes import COLOURS, KINDS, Group, Scene
from aurora_ds.quickstart.world import DOMAINS

RATE, FRAMES = 8, 8
WAYS = {
    "left": ("to the left and to the right", (-1, 0)),
    "right": ("to the left and to the right", (1, 0)),
    "up": ("above and below", (0, -1)),
    "down": ("above and below", (0, 1)),
}
PLACES = {
    "grass": "on the grass",
    "sand": "on the sand",
    "water": "on the water",
    "wood": "on a wooden floor",
}
HIDDEN = {("green", "grass"), ("yellow", "sand"), ("blue", "water"), ("orange", "wood")}
RECIPE = {
    **dict.fromkeys(("title", "licence", "obtain", "layout"), "made by a test"),
    "name": "moving",
    "family": "folder",
    "media": "video",
    "media_folders": ["clips"],
    "annotations": [{"format": "blip", "files": {"all": "annotations.json"}}],
    "samples_per_shard": 16,
}


def frames_of(
    kind: str, colour: str, setting: str, way: str, seed: int, look: Look, count: int = FRAMES
) -> np.ndarray:
    """uint8 (count, SIDE, SIDE, 3): the thing on its way through the middle of the picture."""
    _, (right, down) = WAYS[way]
    still = Group(kind, colour, 1, 0.5, 0.5, 0.3)
    frames = []
    for step in np.linspace(-0.3, 0.3, count):
        moved = replace(still, x=0.5 + right * step, y=0.5 + down * step)
        frames.append(np.asarray(render(Scene(setting, (moved,), (), seed), look)))
    return np.stack(frames)


def encode(frames: np.ndarray) -> bytes:
    """An mp4 of the frames, RATE a second, nearly without loss."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "10", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def write_clips(
    folder: Path, counts: dict[str, int], captions: int = 1, seed: int = 0, short: int = 0
) -> Path:
    """Writes `counts` clips per split and converts them. Returns the folder of shards.

    captions: of every third clip; others have one. short: frames of each split's first clip; 0: FRAMES like the others.
    """
    generator, rows = np.random.default_rng(seed), []
    (folder / "raw" / "clips").mkdir(parents=True)
    looks = [
        (kind, colour, place)
        for kind in KINDS
        for colour in COLOURS
        for place in PLACES
        if (colour, place) not in HIDDEN
    ]
    chosen = iter(generator.permutation(len(looks)))
    for split, count in counts.items():
        for number in range(count):
            if number % 2 == 0:
                kind, colour, place = looks[next(chosen)]
                still = int(generator.integers(2**31))
            way = str(generator.choice(list(WAYS)[:2] if number % 2 == 0 else list(WAYS)[2:]))
            frames = frames_of(
                kind,
                colour,
                place,
                way,
                still,
                DOMAINS["target"].look,
                short if short and not number else FRAMES,
            )
            name = f"{split}{number:04d}.mp4"
            (folder / "raw" / "clips" / name).write_bytes(encode(frames))
            thing, words = f"a {colour} {kind}", WAYS[way][0]
            told = [
                f"{thing} {words} {PLACES[place]}",
                f"{PLACES[place]} there is {thing} {words}",
                f"{words} {thing}",
            ]
            told = told[: captions if number % 3 == 0 else 1]
            rows += [{"image": name, "caption": told, "split": split}]
    (folder / "raw" / "annotations.json").write_text(json.dumps(rows))
    (folder / "moving.yaml").write_text(yaml.safe_dump(RECIPE))
    convert(folder / "moving.yaml", folder / "raw", folder / "shards")
    return folder / "shards"

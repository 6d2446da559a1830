"""Boxes on photos: of a prediction, and for TensorBoard the predicted beside the true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from aurora_ds.config import RunConfig
from aurora_ds.data.media import picture
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.placement import Box
from aurora_ds.data.reader import ShardReader
from aurora_ds.runtime.gallery import RIGHT, WRONG, Answer, Query, gallery
from aurora_ds.wiring.pointed import HIT, Found, Pointed

INNER, OUTER = (255, 255, 255), (214, 39, 40)  # two lines, one of which shows on any ground


def with_box(
    image: Image.Image, box: Box, colour: tuple[int, int, int] = OUTER, thickness: int | None = None
) -> Image.Image:
    """A copy of an RGB image with a box (left, top, right, bottom in pixels) drawn around what is in it."""
    image = image.copy()
    thickness = thickness or max(1, round(max(image.size) / 200))
    draw = ImageDraw.Draw(image)
    for width, ink in ((2 * thickness, INNER), (thickness, colour)):
        left, top, right, bottom = (round(each) for each in box)
        corners = (left - width, top - width, max(left, right - 1) + width, max(top, bottom - 1) + width)
        draw.rectangle(corners, outline=ink, width=thickness)
    return image


def box_gallery(config: RunConfig, pointed: Sequence[Pointed], found: Sequence[Found]) -> np.ndarray:
    """uint8 (3, height, width): `monitor.gallery_queries` phrases spread evenly over the judged ones, each with its
    image and the predicted box, then with the true one."""
    count = min(config.monitor.gallery_queries, len(pointed))
    chosen = np.linspace(0, len(pointed) - 1, count).round().astype(int) if count else []
    reader, queries = ShardReader(open_manifest(config)), []
    for number in chosen:
        asked, said = pointed[number], found[number]
        image = Image.fromarray(picture(config, reader, config.data.eval_split, asked.medium))
        right = said.overlap >= HIT
        drawings = [
            Answer(np.asarray(with_box(image, said.box, RIGHT if right else WRONG)), right, said.overlap),
            Answer(np.asarray(with_box(image, asked.phrase.box, RIGHT)), None, label="true box"),
        ]
        queries.append(Query(asked.phrase.text, drawings))
    reader.close()
    return gallery(queries, 2)

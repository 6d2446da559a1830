"""Scene -> picture: shaded objects with shadows on textured ground, then the camera (cast, blur, grain, vignette).

A `Look` is what differs between two domains as seen: one scene under two looks has the same true captions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aurora_ds.quickstart.scenes import Group, Scene

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of a picture

SIDE = 60  # pixels of a picture
_OVER = 3  # supersampling

# (red, green, blue) of a lit surface, 0..255.
PALETTE = {
    "red": (205, 38, 34),
    "orange": (236, 128, 24),
    "yellow": (240, 214, 48),
    "green": (44, 152, 58),
    "blue": (40, 84, 205),
    "purple": (134, 52, 168),
    "white": (238, 238, 236),
    "black": (34, 34, 38),
}
# Ground and back wall of a setting, and the kind of texture the ground has.
_SETTINGS = {
    "grass": ((92, 142, 60), (160, 196, 226), "blades"),
    "sand": ((208, 180, 128), (188, 212, 228), "grain"),
    "water": ((60, 112, 168), (176, 200, 220), "waves"),
    "snow": ((226, 232, 240), (176, 190, 210), "soft"),
    "wood": ((152, 104, 62), (196, 180, 160), "planks"),
    "brick": ((142, 76, 62), (150, 86, 70), "bricks"),
}


@dataclass(frozen=True)
class Look:
    """How a domain is seen. `cast` (rows: channel out) mixes the colours, `offset` is added; values are 0..1."""

    cast: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    offset: tuple[float, float, float] = (0, 0, 0)
    contrast: float = 1.0
    light_from: tuple[float, float] = (-0.6, -0.8)  # direction towards the light, x right, y down
    ambient: float = 0.72
    texture: float = 1.0
    horizon: tuple[float, float] = (0.30, 0.50)
    tilt: float = 0.0  # largest rotation of an object, degrees
    outline: float = 0.0  # opacity of a dark pen line around objects
    hatching: float = 0.0  # strength of diagonal print lines over the whole picture
    blur: tuple[float, float] = (0.0, 0.5)  # radius in pixels
    grain: tuple[float, float] = (0.01, 0.03)  # standard deviation
    vignette: float = 0.15


def _ellipse(x: float, y: float, rx: float, ry: float, points: int = 28) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / points for i in range(points)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    return [
        (0.5 + r * math.sin(math.pi * i / 5), 0.53 - r * math.cos(math.pi * i / 5))
        for i, r in ((i, 0.5 if i % 2 == 0 else 0.21) for i in range(10))
    ]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            0.5 + 0.030 * 16 * math.sin(a) ** 3,
            0.47 - 0.030 * (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)),
        )
        for a in angles
    ]


# Parts of a kind, painted in order in a unit square: (outline, tone). A tone multiplies the colour; None cuts a hole.
_PARTS: dict[str, list[tuple[list[tuple[float, float]], float | None]]] = {
    "ball": [(_ellipse(0.5, 0.5, 0.46, 0.46), 1.0)],
    "box": [
        ([(0.06, 0.30), (0.68, 0.30), (0.68, 0.94), (0.06, 0.94)], 0.95),
        ([(0.06, 0.30), (0.30, 0.08), (0.94, 0.08), (0.68, 0.30)], 1.25),
        ([(0.68, 0.30), (0.94, 0.08), (0.94, 0.70), (0.68, 0.94)], 0.6),
    ],
    "cone": [([(0.5, 0.02), (0.90, 0.86), (0.10, 0.86)], 1.0), (_ellipse(0.5, 0.86, 0.40, 0.11), 0.7)],
    "ring": [(_ellipse(0.5, 0.5, 0.48, 0.48), 1.0), (_ellipse(0.5, 0.5, 0.22, 0.22), None)],
    "star": [(_star(), 1.0)],
    "cup": [
        (_ellipse(0.76, 0.55, 0.22, 0.22), 0.8),
        (_ellipse(0.76, 0.55, 0.12, 0.12), None),
        ([(0.10, 0.20), (0.74, 0.20), (0.66, 0.94), (0.18, 0.94)], 1.0),
        (_ellipse(0.42, 0.20, 0.32, 0.10), 0.5),
    ],
    "heart": [(_heart(), 1.0)],
    "tree": [
        ([(0.42, 0.66), (0.58, 0.66), (0.58, 0.98), (0.42, 0.98)], 0.45),
        (_ellipse(0.5, 0.24, 0.24, 0.24), 1.1),
        (_ellipse(0.30, 0.48, 0.26, 0.22), 0.9),
        (_ellipse(0.70, 0.48, 0.26, 0.22), 1.0),
    ],
    "house": [
        ([(0.14, 0.46), (0.86, 0.46), (0.86, 0.96), (0.14, 0.96)], 1.05),
        ([(0.5, 0.02), (1.0, 0.48), (0.0, 0.48)], 0.6),
        ([(0.42, 0.62), (0.58, 0.62), (0.58, 0.96), (0.42, 0.96)], 0.35),
    ],
    "fish": [
        ([(0.62, 0.5), (0.98, 0.20), (0.98, 0.80)], 0.75),
        (_ellipse(0.38, 0.5, 0.36, 0.27), 1.0),
        (_ellipse(0.20, 0.44, 0.05, 0.05, 12), 0.15),
    ],
}


def _field(generator: np.random.Generator, coarse_x: int, coarse_y: int, side: int) -> np.ndarray:
    """Smooth noise in about -1..1, (side, side)."""
    small = Image.fromarray(generator.standard_normal((coarse_y, coarse_x)).astype(np.float32), mode="F")
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def _background(scene: Scene, look: Look, generator: np.random.Generator, side: int) -> np.ndarray:
    """Ground and wall with texture, (side, side, 3) in 0..1."""
    ground, wall, kind = _SETTINGS[scene.setting]
    rows = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, side, dtype=np.float32)[None, :]
    horizon = generator.uniform(*look.horizon)
    share = np.clip((rows - horizon) * 14 + 0.5, 0, 1)[..., None]
    picture = share * np.asarray(ground, np.float32) + (1 - share) * np.asarray(wall, np.float32)
    phase = generator.uniform(0, 6.28, 3)
    if kind == "blades":
        texture = 0.16 * _field(generator, 48, 12, side)
    elif kind == "grain":
        texture = 0.08 * _field(generator, 64, 64, side) + 0.06 * _field(generator, 5, 5, side)
    elif kind == "waves":
        ripples = np.sin(38 * rows + 3 * np.sin(7 * columns + phase[0]) + phase[1])
        texture = 0.13 * ripples + 0.05 * _field(generator, 12, 24, side)
    elif kind == "soft":
        texture = 0.05 * _field(generator, 6, 6, side)
    elif kind == "planks":
        planks = np.sign(np.sin(26 * rows + phase[0])) * 0.06
        texture = planks + 0.10 * _field(generator, 4, 40, side)
    else:
        courses = np.floor(rows * 9 + phase[0])
        joints = (np.mod(rows * 9 + phase[0], 1) < 0.16) | (
            np.mod(columns * 5 + 0.5 * np.mod(courses, 2), 1) < 0.10
        )
        texture = 0.35 * joints + 0.07 * _field(generator, 20, 20, side)
        share = np.ones_like(share)  # a wall up to the top edge
    picture = picture * (1 + look.texture * texture[..., None] * share)
    falling = 1 + 0.18 * (columns - 0.5) * look.light_from[0] + 0.18 * (rows - 0.5) * look.light_from[1]
    return picture / 255 * falling[..., None]


def places(group: Group) -> list[tuple[float, float]]:
    """Centres of the group's objects: alone, side by side, or two under one."""
    step = group.size * 0.5
    if group.count == 1:
        return [(group.x, group.y)]
    if group.count == 2:
        return [(group.x - step, group.y), (group.x + step, group.y)]
    return [
        (group.x, group.y - 0.8 * step),
        (group.x - step, group.y + 0.8 * step),
        (group.x + step, group.y + 0.8 * step),
    ]


def _paint(
    picture: np.ndarray, group: Group, place: tuple[float, float], look: Look, generator: np.random.Generator
) -> np.ndarray:
    """Paints one object with its shadow into `picture` (side, side, 3), in place. Returns left, top, right and bottom
    of the object without its shadow, also where it reaches past the picture or is painted over later."""
    whole = picture.shape[0]
    size = group.size * whole * generator.uniform(0.94, 1.06)
    # Only a window around the object is touched: painting is most of the work.
    window = int(size * 1.8)
    origin_x, origin_y = int(place[0] * whole) - window // 2, int(place[1] * whole) - window // 2
    left, top = place[0] * whole - size / 2 - origin_x, place[1] * whole - size / 2 - origin_y
    angle = math.radians(generator.uniform(-look.tilt, look.tilt))
    cosine, sine = math.cos(angle), math.sin(angle)
    tones_image = Image.new("F", (window, window), 0.0)
    mask = Image.new("L", (window, window), 0)
    draw_tones, draw_mask = ImageDraw.Draw(tones_image), ImageDraw.Draw(mask)
    corners = []
    for outline, tone in _PARTS[group.kind]:
        centred = [(x - 0.5, y - 0.5) for x, y in outline]
        points = [
            (left + size * (0.5 + cosine * x - sine * y), top + size * (0.5 + sine * x + cosine * y))
            for x, y in centred
        ]
        corners += [(x + origin_x, y + origin_y) for x, y in points]
        draw_mask.polygon(points, fill=0 if tone is None else 255)
        if tone is not None:
            draw_tones.polygon(points, fill=tone)
    shadow = Image.new("L", (window, window), 0)
    foot_x = left + size / 2 - look.light_from[0] * size * 0.16
    foot_y = top + size * 0.90 - look.light_from[1] * size * 0.10
    ImageDraw.Draw(shadow).polygon(_ellipse(foot_x, foot_y, size * 0.48, size * 0.15), fill=150)
    shade = np.asarray(shadow.filter(ImageFilter.BoxBlur(size * 0.07)), np.float32)[..., None] / 255

    alpha = np.asarray(mask, np.float32)[..., None] / 255
    tones = np.asarray(tones_image)
    rows = (np.arange(window, dtype=np.float32)[:, None] - top - size / 2) / size
    columns = (np.arange(window, dtype=np.float32)[None, :] - left - size / 2) / size
    towards = rows * look.light_from[1] + columns * look.light_from[0]
    light = look.ambient + 0.28 + (1.2 - look.ambient) * towards
    colour = np.asarray(PALETTE[group.colour], np.float32) / 255 + generator.normal(0, 0.025, 3).astype(
        np.float32
    )
    surface = colour * (light * tones)[..., None]
    spot = np.exp(
        -(((rows - 0.2 * look.light_from[1]) ** 2 + (columns - 0.2 * look.light_from[0]) ** 2) / 0.012)
    )
    surface += 0.35 * (spot * (tones > 0.9))[..., None]
    edge = (
        np.asarray(mask.filter(ImageFilter.MaxFilter(5)), np.float32)[..., None] / 255 - alpha
        if look.outline
        else 0.0
    )

    first_x, first_y = max(-origin_x, 0), max(-origin_y, 0)
    last_x, last_y = min(whole - origin_x, window), min(whole - origin_y, window)
    inside = (slice(first_y, last_y), slice(first_x, last_x))
    part = picture[origin_y + first_y : origin_y + last_y, origin_x + first_x : origin_x + last_x]
    part *= (1 - shade)[inside]
    part += alpha[inside] * (surface[inside] - part)
    if look.outline:
        part *= 1 - look.outline * np.clip(edge, 0, 1)[inside]
    return np.concatenate([np.min(corners, axis=0), np.max(corners, axis=0)])


def render(scene: Scene, look: Look) -> Image.Image:
    """The picture of a scene: RGB, SIDE x SIDE. All randomness comes from `scene.seed`."""
    return render_with_boxes(scene, look)[0]


def render_with_boxes(scene: Scene, look: Look) -> tuple[Image.Image, list[Box]]:
    """`render`, and the box of each group in pixels: all of its objects, also what another group covers of them."""
    generator = np.random.default_rng(scene.seed)
    side = SIDE * _OVER
    picture = _background(scene, look, generator, side)
    boxes: list[Box] = []
    for group in scene.groups:
        painted = (
            np.stack([_paint(picture, group, place, look, generator) for place in places(group)]) / _OVER
        )
        whole = np.concatenate([painted[:, :2].min(0), painted[:, 2:].max(0)]).clip(0, SIDE)
        boxes.append(tuple(whole.tolist()))
    picture = picture.reshape(SIDE, _OVER, SIDE, _OVER, 3).mean((1, 3))
    picture = picture * generator.uniform(0.88, 1.10)  # exposure
    picture = np.clip(picture, 0, 1) @ np.asarray(look.cast, np.float32).T + np.asarray(
        look.offset, np.float32
    )
    picture = (picture - 0.5) * look.contrast + 0.5
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    if look.hatching:
        picture += (
            look.hatching * np.sin((rows + columns) * SIDE * 2.1 + generator.uniform(0, 6.28))[..., None]
        )
    picture *= 1 - look.vignette * ((rows**2 + columns**2) * 2)[..., None]
    smooth = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(generator.uniform(*look.blur))
    )
    grain = generator.normal(0, generator.uniform(*look.grain), (SIDE, SIDE, 1))
    return Image.fromarray((np.clip(np.asarray(smooth) / 255 + grain, 0, 1) * 255).astype(np.uint8)), boxes

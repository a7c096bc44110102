"""Draw captioned pictures: shapes of a size and colour at a place, also in neon, and a character; and judge drawings.

Pictures are (64, 64, 3), float32, RGB in [0, 1]. The judges are plain code: they measure what a model draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Field = NDArray[np.float64]

SIDE = 64
FINE = 4
"""Points a pixel's side is sampled at."""

PAPER = (0.96, 0.95, 0.92)
NIGHT = (0.02, 0.02, 0.05)
COLOURS = {
    "red": (0.85, 0.13, 0.13),
    "orange": (0.96, 0.55, 0.08),
    "yellow": (0.95, 0.85, 0.10),
    "green": (0.13, 0.62, 0.22),
    "blue": (0.12, 0.32, 0.85),
    "purple": (0.55, 0.15, 0.68),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (8.0, 10.0), "large": (15.0, 18.0)}
"""Half the side of the box around a shape, in pixels, from and to."""

PLACES = {
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the middle": (0.5, 0.5),
}
CHARACTER = "blorp"
"""A dome with horns, feet, eyes and a smile, which the base model never sees."""


@dataclass(frozen=True)
class Scene:
    """Say what a picture shows."""

    shape: str
    colour: str
    size: str
    place: str
    neon: bool = False

    @property
    def caption(self) -> str:
        """Describe it as a prompt does; a style needs no word."""
        return f"a {self.size} {self.colour} {self.shape} {self.place}"


def random_scene(generator: np.random.Generator, shape: str | None = None, *, neon: bool = False) -> Scene:
    """Choose what to draw."""
    shape = shape or str(generator.choice(SHAPES))
    colour, size, place = (str(generator.choice([*names])) for names in (COLOURS, SIZES, PLACES))
    return Scene(shape, colour, size, place, neon)


def draw(scene: Scene, generator: np.random.Generator) -> Picture:
    """Draw a scene with a little play in place, size, angle and tone."""
    x, y = (np.array(PLACES[scene.place]) * SIDE + generator.uniform(-2, 2, 2)).tolist()
    half = min(generator.uniform(*SIZES[scene.size]), min(x, SIDE - x, y, SIDE - y) - 1)
    angle = generator.uniform(-0.12, 0.12)
    tone = np.clip(np.array(COLOURS[scene.colour]) * generator.uniform(0.94, 1.06), 0, 1)
    points = (np.arange(SIDE * FINE) + 0.5) / FINE
    u, v = _turned(*np.meshgrid((points - x) / half, (points - y) / half), angle)
    outline, layers = _blorp(u, v, tone) if scene.shape == CHARACTER else _plain(scene.shape, u, v, tone)
    if scene.neon:
        return _shrunk(_glowing(outline * half, tone))
    canvas = np.broadcast_to(np.array(PAPER), (*u.shape, 3)).copy()
    for distance, colour in layers:
        canvas[distance < 0] = colour
    return _shrunk(canvas)


def _turned(across: Field, down: Field, angle: float) -> tuple[Field, Field]:
    return across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)


Layers = list[tuple[Field, Field]]


def _plain(shape: str, u: Field, v: Field, tone: Field) -> tuple[Field, Layers]:
    distance = distance_to(shape, u, v)
    return distance, [(distance, tone)]


def distance_to(shape: str, u: Field, v: Field) -> Field:
    """Return signed distances to a shape's edge, negative inside; its box reaches from -1 to 1."""
    if shape == "circle":
        return np.asarray(np.hypot(u, v) - 1)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) - 0.88)
    if shape == "triangle":
        return np.asarray(np.maximum(np.abs(u) * 0.894 - (v + 1) * 0.447, v - 0.85))
    radius, turn = np.hypot(u, v), np.mod(np.arctan2(u, -v), 2 * np.pi / 5)
    turn = np.minimum(turn, 2 * np.pi / 5 - turn)
    return np.asarray(radius * (np.cos(turn) * 0.52 + np.sin(turn) * 0.85) - 0.52)


def _blorp(u: Field, v: Field, tone: Field) -> tuple[Field, Layers]:
    dome = np.hypot(u, v + 0.05) * 1.15
    body = np.where(v > -0.05, np.where(v < 0.6, np.abs(u) * 1.15, 9), dome) - 0.85
    feet = np.hypot(np.abs(u) - 0.42, v - 0.72) - 0.27
    horns = np.hypot((np.abs(u) - 0.5) * 2.2, v + 0.85) - 0.3
    shape = np.minimum(np.minimum(body, feet), horns)
    eyes = np.hypot(np.abs(u) - 0.3, v + 0.18) - 0.21
    pupils = np.hypot(np.abs(u) - 0.3, v + 0.14) - 0.1
    smile = np.maximum(np.abs(np.hypot(u, v - 0.12) - 0.3) - 0.06, 0.18 - v)
    white, black = np.array((0.98, 0.98, 0.98)), np.array((0.08, 0.06, 0.10))
    outline = np.minimum(np.minimum(np.abs(shape), np.abs(eyes)), np.abs(smile))
    return outline, [(shape, tone), (eyes, white), (pupils, black), (smile, black)]


def _glowing(distance: Field, tone: Field) -> Field:
    """Light the outline (distances in pixels) and its surroundings on a dark ground."""
    bright = 0.25 + 0.75 * tone / tone.max()
    glow = np.exp(-np.abs(distance) / 2.2)[..., None] * 0.6
    core = np.exp(-np.square(distance / 0.9))[..., None]
    return np.asarray(np.clip(np.array(NIGHT) + glow * bright + core * (0.3 + 0.7 * bright), 0, 1))


def _shrunk(canvas: Field) -> Picture:
    return np.asarray(canvas.reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3)), np.float32)


# -- judging what is drawn ----------------------------------------------------------------------------------


def foreground(picture: Picture) -> NDArray[np.bool_]:
    """Tell which pixels stand out from the picture's border."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.asarray(np.abs(picture - np.median(border, axis=0)).max(axis=2) > 0.22)


def box(picture: Picture) -> tuple[float, float, float, float] | None:
    """Return (top, bottom, left, right) of what is drawn, in pixels, or None for an empty picture."""
    rows, columns = np.nonzero(foreground(picture))
    if len(rows) < 20:
        return None
    (top, bottom), (left, right) = np.percentile(rows, [1, 99]), np.percentile(columns, [1, 99])
    return float(top), float(bottom) + 1, float(left), float(right) + 1


def place_of(picture: Picture) -> str:
    """Name the place nearest to the middle of what is drawn, or "none"."""
    if (found := box(picture)) is None:
        return "none"
    top, bottom, left, right = found
    middle = np.array((left + right, top + bottom)) / 2 / SIDE
    return min(PLACES, key=lambda name: float(np.square(middle - np.array(PLACES[name])).sum()))


def colour_of(picture: Picture) -> str:
    """Name the colour nearest to the foreground's median, or "none"."""
    if box(picture) is None:
        return "none"
    median = np.median(picture[foreground(picture)], axis=0)
    return min(COLOURS, key=lambda name: float(np.square(median - np.array(COLOURS[name])).sum()))


def shape_of(picture: Picture) -> str:
    """Name the shape whose drawing, at the foreground's place and size, overlaps it best, or "none"."""
    if (found := box(picture)) is None:
        return "none"
    inside, (top, bottom, left, right) = foreground(picture), found
    half = max(bottom - top, right - left) / 2
    points = np.arange(SIDE) + 0.5
    across, down = np.meshgrid((points - (left + right) / 2) / half, (points - (top + bottom) / 2) / half)
    overlaps: dict[str, float] = {}
    for shape, scale, angle, lift in product(SHAPES, (0.9, 1.0, 1.1), (-0.1, 0.0, 0.1), (-0.1, 0.0, 0.1)):
        ideal = distance_to(shape, *_turned(across / scale, down / scale + lift, angle)) < 0
        overlap = float((ideal & inside).sum() / (ideal | inside).sum())
        overlaps[shape] = max(overlap, overlaps.get(shape, 0.0))
    return max(overlaps, key=lambda shape: overlaps[shape])


def detail_of(picture: Picture) -> float:
    """Return the standard deviation of the brightest-varying channel in the middle of what is drawn.

    Circles and squares are even there, filled or as outlines (below 0.05 where they are large); a character has its
    eyes and its smile there (above 0.2).
    """
    if (found := box(picture)) is None:
        return 0.0
    top, bottom, left, right = found
    down, across = (bottom - top) / 4, (right - left) / 4
    part = picture[round(top + down) : round(bottom - down), round(left + across) : round(right - across)]
    return float(part.std(axis=(0, 1)).max())

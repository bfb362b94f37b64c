"""How things look: polygons painted into small anti-aliased sprites.

A sprite knows nothing of where it will stand, so nothing of its appearance can depend on its surroundings.

h, w: sprite height and width. Points: P×2 (x right, y down) in units of the thing, base line at y = 0.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[int, int, int]
SUBPIXEL_BITS = 4
CREAM: Colour = (240, 232, 210)
DARK: Colour = (42, 36, 40)
SKIN: Colour = (214, 164, 130)


@dataclass(frozen=True)
class Look:
    """What the eye can compare of a hull or disc, apart from its pose. Discs with equal looks are twins."""

    colour: Colour
    pattern: str
    size: float  # hull length or disc diameter, in pixels


@dataclass(frozen=True)
class Part:
    """One filled polygon."""

    points: np.ndarray
    colour: Colour


@dataclass(frozen=True)
class Sprite:
    """A painted thing: `rgb` float32 h×w×3, `alpha` float32 h×w in 0..1, `mask` bool h×w: alpha >= 0.5."""

    rgb: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB 0..255 of a hue in degrees, saturation and value in 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def rasterise(rng: np.random.Generator, parts: list[Part], scale: float, light: float) -> Sprite:
    """Paint `parts` in order, `scale` pixels per unit, with a little grain and shade.

    light: direction of the light in radians; the same for every thing of a scene.
    """
    points = [part.points * scale for part in parts]
    low = np.floor(np.min([p.min(axis=0) for p in points], axis=0)) - 1
    width, height = (np.ceil(np.max([p.max(axis=0) for p in points], axis=0)) + 2 - low).astype(int)
    # The canvas starts in the body's colour, so that soft edges do not pull in a foreign one.
    rgb = np.full((height, width, 3), parts[0].colour, np.uint8)
    alpha = np.zeros((height, width), np.uint8)
    for part, corners in zip(parts, points, strict=True):
        fixed = [np.round((corners - low) * 2**SUBPIXEL_BITS).astype(np.int32)]
        cv2.fillPoly(rgb, fixed, part.colour, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    grain = rng.standard_normal((height, width), np.float32)
    gain = 1 + 0.25 * (math.cos(light) * x + math.sin(light) * y) + 0.05 * grain
    return Sprite(rgb * gain[..., None], alpha.astype(np.float32) / 255, alpha >= 128)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _circle(x: float, y: float, radius: float, corners: int = 20) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


# A hull is one unit long. Patterns differ in what stands on deck.
HULL_DECKS: dict[str, list[Part]] = {
    "open": [],
    "cabin": [
        Part(_box(-0.24, -0.44, 0.10, -0.26), CREAM),
        Part(_box(-0.18, -0.40, -0.08, -0.31), DARK),
        Part(_box(-0.04, -0.40, 0.05, -0.31), DARK),
    ],
    "crates": [
        Part(_box(-0.28, -0.40, -0.06, -0.26), (176, 128, 74)),
        Part(_box(-0.02, -0.46, 0.20, -0.26), (150, 104, 60)),
    ],
}


def hull_parts(rng: np.random.Generator, look: Look) -> list[Part]:
    """A hull in a random pose (facing left or right, slightly tilted): of a boat and of a cart alike."""
    body = _polygon((-0.50, -0.30), (0.52, -0.34), (0.44, -0.14), (0.32, 0.0), (-0.34, 0.0), (-0.44, -0.10))
    rail = _polygon((-0.50, -0.30), (0.52, -0.34), (0.50, -0.26), (-0.48, -0.22))
    keel = _polygon((-0.42, -0.08), (0.38, -0.08), (0.32, 0.0), (-0.34, 0.0))
    parts = [Part(body, look.colour), *HULL_DECKS[look.pattern]]
    parts += [Part(rail, CREAM), Part(keel, _shade(look.colour, 0.5))]
    facing, tilt = rng.choice([-1, 1]), rng.uniform(-0.1, 0.1)
    return [Part(_turn(part.points * (facing, 1), tilt), part.colour) for part in parts]


# A disc has a diameter of one unit. The patterns are told apart whatever way the disc is turned.
DISC_MARKS: dict[str, list[np.ndarray]] = {
    "plain": [],
    "cross": [_box(-0.40, -0.10, 0.40, 0.10), _box(-0.10, -0.40, 0.10, 0.40)],
    "bullseye": [_circle(0, 0, 0.22)],
}


def disc_parts(rng: np.random.Generator, look: Look) -> list[Part]:
    """A disc turned by a random angle: of a ball and of a wheel alike."""
    angle = rng.uniform(0, 2 * np.pi)
    marks = [Part(_turn(mark, angle), CREAM) for mark in DISC_MARKS[look.pattern]]
    return [
        Part(_circle(0, 0, 0.5, 32), _shade(look.colour, 0.6)),
        Part(_circle(0, 0, 0.43, 32), look.colour),
        *marks,
    ]


def tree_parts(rng: np.random.Generator) -> list[Part]:
    """A tree one unit high, broad-leaved or conifer."""
    crown = hsv(rng.uniform(85, 150), rng.uniform(0.55, 0.8), rng.uniform(0.25, 0.42))
    trunk = Part(_box(-0.06, -0.40, 0.06, 0.0), (92, 62, 40))
    if rng.random() < 0.5:
        tiers = [
            _polygon((-w, -b), (0, -b - 0.42), (w, -b)) for w, b in ((0.32, 0.18), (0.26, 0.38), (0.19, 0.58))
        ]
        return [trunk, *(Part(tier, _shade(crown, 1 + 0.12 * i)) for i, tier in enumerate(tiers))]
    blobs = [(-0.17, -0.46, 0.21), (0.17, -0.48, 0.20), (0.0, -0.72, 0.26)]
    return [
        trunk,
        *(Part(_circle(x, y, r), _shade(crown, 1 + 0.12 * i)) for i, (x, y, r) in enumerate(blobs)),
    ]


def house_parts(rng: np.random.Generator) -> list[Part]:
    """A house one unit wide with a roof, a door and two windows."""
    front = hsv(rng.uniform(25, 60), rng.uniform(0.1, 0.4), rng.uniform(0.8, 0.98))
    roof = hsv(rng.uniform(-15, 20), rng.uniform(0.6, 0.85), rng.uniform(0.45, 0.7))
    parts = [
        Part(_box(-0.42, -0.52, 0.42, 0.0), front),
        Part(_polygon((-0.52, -0.48), (0, -0.92), (0.52, -0.48)), roof),
    ]
    holes = [_box(-0.09, -0.32, 0.09, 0.0), _box(-0.34, -0.40, -0.17, -0.20), _box(0.17, -0.40, 0.34, -0.20)]
    return parts + [Part(hole, DARK) for hole in holes]


def person_parts(rng: np.random.Generator) -> list[Part]:
    """A standing person one unit high in clothes of any colour."""
    shirt = hsv(rng.uniform(0, 360), rng.uniform(0.5, 0.9), rng.uniform(0.6, 0.95))
    trousers = hsv(rng.uniform(0, 360), rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.4))
    torso = _polygon((-0.20, -0.74), (0.20, -0.74), (0.17, -0.38), (-0.17, -0.38))
    legs = [
        _polygon((side * 0.01, -0.40), (side * 0.16, -0.40), (side * 0.18, 0), (side * 0.05, 0))
        for side in (-1, 1)
    ]
    return [Part(torso, shirt), *(Part(leg, trousers) for leg in legs), Part(_circle(0, -0.86, 0.14), SKIN)]


def crowd_parts(rng: np.random.Generator) -> list[Part]:
    """Many equal persons close together, each one unit high, so that the crowd is about three units wide."""
    person = person_parts(rng)
    parts = []
    for row, count in ((-0.45, 5), (0.0, 6)):
        for column in range(count):
            shift = ((column - count / 2) * 0.52 + rng.uniform(-0.1, 0.1), row + rng.uniform(-0.08, 0.08))
            parts += [Part(part.points + shift, part.colour) for part in person]
    return parts


# Things that their looks alone tell: their parts, and the range of their height or width; times the side.
LANDMARKS: dict[str, tuple[Callable[[np.random.Generator], list[Part]], tuple[float, float]]] = {
    "tree": (tree_parts, (0.20, 0.34)),
    "house": (house_parts, (0.18, 0.28)),
    "person": (person_parts, (0.17, 0.26)),
    "crowd": (crowd_parts, (0.09, 0.13)),
}

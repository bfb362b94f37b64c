"""How the background is laid out and textured.

Water and road are exchangeable: regions are drawn first, and which of them is which is a shuffle. So where
something stands, or how large its surface is, says nothing about which of the two it stands on.

regions: int H×W, index into `STUFF`. Fields (noise, patterns): float32 H×W, about 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from mask_former.data.toy_scenes.classes import STUFF
from mask_former.data.toy_scenes.sprites import hsv

Range = tuple[float, float]
Field = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """`regions` H×W and the row of the horizon."""

    regions: np.ndarray
    horizon: int

    def mask(self, surface: str) -> np.ndarray:
        """bool H×W: where `surface` lies."""
        return self.regions == STUFF.index(surface)


def noise(rng: np.random.Generator, size: int, across: int, down: int) -> np.ndarray:
    """Smooth noise with so many bumps across and down."""
    grid = rng.random((down + 1, across + 1), np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x as 1×W and y as H×1, both 0..1."""
    axis = np.linspace(0, 1, size, dtype=np.float32)
    return axis[None, :], axis[:, None]


def draw_layout(rng: np.random.Generator, size: int, sky: bool, wall: bool, grass: bool) -> Layout:
    """Sky or wall or both above the horizon; water, road and possibly grass below it."""
    horizon = int(size * rng.uniform(0.24, 0.34))
    regions = np.full((size, size), STUFF.index("sky" if sky else "wall"), np.int32)
    if sky and wall:
        left = int(rng.integers(-size // 6, size // 2))
        for _ in range(rng.integers(1, 4)):
            right = left + int(rng.integers(size // 5, size // 2))
            roof = int(horizon * rng.uniform(0.1, 0.65))
            regions[roof:horizon, max(left, 0) : right] = STUFF.index("wall")
            left = right
    surfaces = rng.permutation(["water", "road", "grass"] if grass else ["water", "road"])
    ground = np.zeros((size, size), bool)
    ground[horizon:] = True
    free = ground.copy()
    for left_over in range(len(surfaces), 1, -1):
        field = _divider(rng, size, horizon / size)
        share = rng.uniform(0.85, 1.15) / left_over
        chosen = free & (field <= np.quantile(field[free], share))
        regions[chosen] = STUFF.index(surfaces[left_over - 1])
        free &= ~chosen
    regions[free] = STUFF.index(surfaces[0])
    return Layout(regions, horizon)


def _divider(rng: np.random.Generator, size: int, horizon: float) -> np.ndarray:
    """A field whose level lines divide the ground: wavy lines of any direction or rings around a pond."""
    x, y = _axes(size)
    waves = 0.25 * noise(rng, size, 4, 4)
    if rng.random() < 0.25:
        return np.hypot(x - rng.uniform(0.15, 0.85), 1.4 * (y - rng.uniform(horizon + 0.2, 0.85))) + waves
    angle = rng.uniform(0, 2 * np.pi)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y + waves


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    _, y = _axes(size)
    return 0.6 * noise(rng, size, 4, 9) + 1.2 * y


def _bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    height, width = max(size // 24, 4), max(size // 12, 7)
    y, x = np.arange(size)[:, None], np.arange(size)[None, :]
    row = y // height
    column = (x + row % 2 * (width // 2)) // width
    tone = rng.random((size // height + 1, size // width + 2), np.float32)[row, column]
    mortar = (y % height == 0) | ((x + row % 2 * (width // 2)) % width == 0)
    return np.where(mortar, np.float32(1.2), 0.7 * tone)


def _blades(rng: np.random.Generator, size: int) -> np.ndarray:
    return 0.7 * noise(rng, size, size // 2, size // 6) + 0.3 * noise(rng, size, 6, 6)


def _ripples(rng: np.random.Generator, size: int) -> np.ndarray:
    _, y = _axes(size)
    phase = 2.0 * noise(rng, size, 8, 8) + rng.uniform(0, 1)
    crests = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(14, 20) * y + phase), dtype=np.float32)
    return 0.65 * crests**2 + 0.35 * noise(rng, size, 5, 12)


def _gravel(rng: np.random.Generator, size: int) -> np.ndarray:
    specks = rng.random((size, size), np.float32)
    return 0.5 * specks + 0.5 * noise(rng, size, 5, 5)


@dataclass(frozen=True)
class Texture:
    """Ranges of the darker colour's hue, saturation, value; how much lighter the other one is; a pattern."""

    hue: Range
    saturation: Range
    value: Range
    contrast: Range
    pattern: Field


TEXTURES: dict[str, Texture] = {
    "sky": Texture((195, 235), (0.15, 0.45), (0.70, 0.90), (0.10, 0.25), _clouds),
    "wall": Texture((0, 40), (0.10, 0.50), (0.40, 0.65), (0.15, 0.30), _bricks),
    "grass": Texture((70, 125), (0.40, 0.70), (0.25, 0.50), (0.20, 0.35), _blades),
    "water": Texture((175, 235), (0.40, 0.75), (0.30, 0.60), (0.20, 0.35), _ripples),
    "road": Texture((0, 360), (0.00, 0.12), (0.25, 0.55), (0.12, 0.25), _gravel),
}


def paint(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    """The textured background, float32 H×W×3, RGB 0..255."""
    size = len(layout.regions)
    blend = np.zeros((size, size), np.float32)
    dark, light = np.zeros((2, len(STUFF), 3), np.float32)
    for index, name in enumerate(STUFF):
        texture = TEXTURES[name]
        hue, saturation, value = (rng.uniform(*r) for r in (texture.hue, texture.saturation, texture.value))
        dark[index] = hsv(hue, saturation, value)
        lighter = min(1.0, value + rng.uniform(*texture.contrast))
        light[index] = hsv(hue + rng.uniform(-15, 15), 0.8 * saturation, lighter)
        np.copyto(blend, texture.pattern(rng, size), where=layout.regions == index)
    step = (light - dark)[layout.regions]
    return dark[layout.regions] + blend[..., None] * step

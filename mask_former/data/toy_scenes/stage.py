"""Where the things of a story stand: arranged until every hull and disc can be seen and told.

H = W = size. owners: int32 H×W, who is seen at a pixel: a stuff index below `len(STUFF)`, else `len(STUFF)`
plus the actor's number. Rows grow downwards: the lower a thing stands, the nearer it is, the later painted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from mask_former.data.toy_scenes.classes import HULL_SURFACES, STUFF
from mask_former.data.toy_scenes.sprites import (
    LANDMARKS,
    Look,
    Sprite,
    disc_parts,
    hull_parts,
    rasterise,
)
from mask_former.data.toy_scenes.story import Story
from mask_former.data.toy_scenes.surfaces import Layout, draw_layout

MIN_VISIBLE = 0.7  # share of every hull and disc that shows, so that no label hangs on something hidden
MIN_OWN_RING = 0.6  # share of the pixels around a hull that show the surface it is on
RING_WIDTH = 0.03  # of that ring, and of the margin that no other surface enters; times the side
PLACE_TRIES = 8  # of one thing, before a hull or disc asks for another layout and a landmark is left out
MAX_LAYOUTS = 1000


@dataclass
class Actor:
    """A thing with its place: `x`, `y` are the sprite's upper left corner."""

    name: str
    sprite: Sprite
    x: int
    y: int
    look: Look | None = None
    iscrowd: int = 0

    @property
    def base(self) -> int:
        """The row below its lowest one: the larger, the nearer."""
        return self.y + self.sprite.mask.shape[0]

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column."""
        height, width = self.sprite.mask.shape
        return self.y + height / 2, self.x + width / 2

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the picture that the sprite covers."""
        height, width = self.sprite.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


@dataclass(frozen=True)
class Stage:
    """A layout, the actors on it from far to near, and who is seen where."""

    layout: Layout
    actors: list[Actor]
    owners: np.ndarray

    def visible_share(self, number: int) -> float:
        """How much of actor `number` shows, 0..1."""
        actor = self.actors[number]
        shown = self.owners[actor.window] == len(STUFF) + number
        return float(shown.sum() / actor.sprite.mask.sum())


def arrange(rng: np.random.Generator, story: Story, size: int, light: float, disc_distance: float) -> Stage:
    """Place a story. A landmark for which no fit place is found is left out, hulls and discs never are.

    light: direction of the light in radians. disc_distance: the least between the centres of two discs, times
    the side. Raises RuntimeError when hulls and discs find no place.
    """
    for _ in range(MAX_LAYOUTS):
        stage = _stage(draw_layout(rng, size, story.sky, story.wall, story.grass), [])
        place_disc = partial(_place_disc, distance=disc_distance * size)
        for name, look in [*story.hulls, *story.discs]:
            place = _place_hull if name in HULL_SURFACES else place_disc
            extended = _extend(stage, partial(place, rng, stage, name, look, light))
            if extended is None:
                break
            stage = extended
        else:
            for name in story.landmarks:
                stage = _extend(stage, partial(_place_landmark, rng, stage, name, light)) or stage
            return stage
    raise RuntimeError(f"no place for hulls and discs in {MAX_LAYOUTS} layouts of size {size}: {story}")


def _extend(stage: Stage, place: Callable[[], Actor | None]) -> Stage | None:
    """The stage with one more actor, placed so that hulls and discs can still be told; None if in vain."""
    for _ in range(PLACE_TRIES):
        actor = place()
        if actor is None:
            return None
        extended = _stage(stage.layout, [*stage.actors, actor])
        if _can_be_told(extended):
            return extended
    return None


def _stage(layout: Layout, actors: list[Actor]) -> Stage:
    actors = sorted(actors, key=lambda actor: actor.base)
    owners = layout.regions.copy()
    for number, actor in enumerate(actors, len(STUFF)):
        owners[actor.window][actor.sprite.mask] = number
    return Stage(layout, actors, owners)


def _place_hull(rng: np.random.Generator, stage: Stage, name: str, look: Look, light: float) -> Actor | None:
    """A hull that lies wholly on its surface, with a margin; None when it fits nowhere."""
    size = len(stage.owners)
    margin = round(RING_WIDTH * size)
    sprite = rasterise(rng, hull_parts(rng, look), look.size, light)
    height, width = sprite.mask.shape
    kernel = np.ones((height + 2 * margin, width + 2 * margin), np.uint8)
    surface = stage.layout.mask(HULL_SURFACES[name]).astype(np.uint8)
    # With this anchor the erosion leaves the upper left corners at which the hull and its margin fit.
    corners = cv2.erode(
        surface, kernel, anchor=(margin, margin), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return _at_one_of(rng, corners, name, sprite, look)


def _place_disc(
    rng: np.random.Generator, stage: Stage, name: str, look: Look, light: float, *, distance: float
) -> Actor | None:
    """A disc below the horizon, far from all others and not only from its twin: distance tells nothing.

    None when it fits nowhere.
    """
    size = len(stage.owners)
    sprite = rasterise(rng, disc_parts(rng, look), look.size, light)
    height, width = sprite.mask.shape
    corners = np.zeros((size, size), bool)
    corners[stage.layout.horizon : size - height + 1, : size - width + 1] = True
    rows, columns = np.arange(size)[:, None] + height / 2, np.arange(size)[None, :] + width / 2
    for other in stage.actors:
        if other.look is not None and other.name not in HULL_SURFACES:
            row, column = other.centre
            corners &= np.hypot(rows - row, columns - column) >= distance
    return _at_one_of(rng, corners, name, sprite, look)


def _at_one_of(
    rng: np.random.Generator, corners: np.ndarray, name: str, sprite: Sprite, look: Look
) -> Actor | None:
    """The actor with its upper left corner where `corners` (H×W) is not 0; None when that is nowhere."""
    places = np.flatnonzero(corners)
    if not len(places):
        return None
    y, x = divmod(int(rng.choice(places)), corners.shape[1])
    return Actor(name, sprite, x, y, look)


def _place_landmark(rng: np.random.Generator, stage: Stage, name: str, light: float) -> Actor:
    """A landmark or crowd, the larger the nearer; moved inside the picture where it would stick out."""
    draw_parts, (smallest, largest) = LANDMARKS[name]
    size, horizon = len(stage.owners), stage.layout.horizon
    foot, middle = _draw_foot(rng, stage.layout, name)
    scale = size * (smallest + (largest - smallest) * (foot - horizon) / (size - horizon))
    sprite = rasterise(rng, draw_parts(rng), scale, light)
    height, width = sprite.mask.shape
    x, y = np.clip([middle - width // 2, foot - height], 0, [size - width, size - height])
    crowd = name == "crowd"
    return Actor("person" if crowd else name, sprite, int(x), int(y), iscrowd=int(crowd))


def _draw_foot(rng: np.random.Generator, layout: Layout, name: str) -> tuple[int, int]:
    """Row, column: trees and houses on grass or at the horizon, persons anywhere; blind to water and road."""
    size = len(layout.regions)
    row, column = int(rng.integers(layout.horizon + 2, size)), int(rng.integers(0, size))
    if name not in ("tree", "house"):
        return row, column
    grass = np.flatnonzero(layout.mask("grass"))
    if not len(grass):
        return layout.horizon + 2, column
    row, column = divmod(int(rng.choice(grass)), size)
    return row, column


def _can_be_told(stage: Stage) -> bool:
    """True when hulls and discs show, and hulls show enough of their surface around them."""
    margin = round(RING_WIDTH * len(stage.owners))
    for number, actor in enumerate(stage.actors):
        if actor.look is None:
            continue
        if stage.visible_share(number) < MIN_VISIBLE:
            return False
        if actor.name in HULL_SURFACES and _own_ring_share(stage, actor, margin) < MIN_OWN_RING:
            return False
    return True


def _own_ring_share(stage: Stage, hull: Actor, margin: int) -> float:
    """Share of the pixels within `margin` of a hull's outline that show the surface the hull is on."""
    outline = np.pad(hull.sprite.mask.astype(np.uint8), margin)
    ring = cv2.dilate(outline, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > outline
    rows, columns = hull.window  # the margin was found to lie inside the picture
    around = stage.owners[
        rows.start - margin : rows.stop + margin, columns.start - margin : columns.stop + margin
    ]
    return float((around[ring] == STUFF.index(HULL_SURFACES[hull.name])).mean())

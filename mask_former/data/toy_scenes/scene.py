"""One scene: the picture under its light, and the segments that can be seen in it.

H = W = size. See stage.py for `owners`.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np

from mask_former.data.id_map import measure_segments
from mask_former.data.toy_scenes.classes import STUFF, Vocabulary
from mask_former.data.toy_scenes.sprites import Look
from mask_former.data.toy_scenes.stage import Stage, arrange
from mask_former.data.toy_scenes.story import draw_story, genre_named
from mask_former.data.toy_scenes.surfaces import paint
from mask_former.errors import InputError

SPLITS: tuple[str, ...] = ("train", "val")
MIN_SIZE = 64
MIN_PIXELS = 16  # a segment of which less shows becomes void
ID_STEP = 100_003  # between categories: large and prime, so that all three bytes of the ids in a PNG are used


@dataclass(frozen=True)
class Segment:
    """One segment of the finished picture: COCO's fields, and for hulls and discs what decides their class.

    bbox: x, y, width, height. look, why, mistaken_for (a category id): None for what its own looks tell.
    twin: segment id of a wheel's twin.
    """

    id: int
    category_id: int
    iscrowd: int
    bbox: list[int]
    area: int
    look: Look | None = None
    why: str | None = None
    mistaken_for: int | None = None
    twin: int | None = None

    def to_coco(self) -> dict:
        """The entry of COCO panoptic `segments_info`."""
        return {key: getattr(self, key) for key in ("id", "category_id", "iscrowd", "bbox", "area")}


@dataclass(frozen=True)
class Scene:
    """`image` uint8 H×W×3 RGB; `ids` int32 H×W of segment ids, 0 = void; `segments` are those of `ids`."""

    image: np.ndarray
    ids: np.ndarray
    segments: list[Segment]


def render_scene(seed: int, split: str, index: int, size: int, genre: str = "marked") -> Scene:
    """Render one square scene of `size` pixels a side, a function of the arguments alone.

    `genre`: of GENRES. Raises InputError for an unknown split or genre, a negative seed or index, or a size
    below 64.
    """
    if split not in SPLITS:
        raise InputError(f"toy scenes: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if size < MIN_SIZE or seed < 0 or index < 0:
        raise InputError(
            f"toy scenes: size {size}, seed {seed}, index {index}: use a size of at least {MIN_SIZE}, "
            "and a seed and index of at least 0"
        )
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    light = rng.uniform(0, 2 * np.pi)
    chosen = genre_named(genre)
    stage = arrange(rng, draw_story(rng, size, chosen), size, light, chosen.disc_distance)
    ids, segments = visible_segments(stage, chosen.vocabulary)
    return Scene(_photograph(rng, stage, light), ids, segments)


def visible_segments(stage: Stage, vocabulary: Vocabulary) -> tuple[np.ndarray, list[Segment]]:
    """int32 H×W ids and segments of what is seen; specks of fewer than 16 pixels become void, id 0."""
    names = [*STUFF, *(vocabulary.name(a.name, a.look.pattern if a.look else None) for a in stage.actors)]
    used: dict[str, int] = defaultdict(int)
    owner_ids = np.zeros(len(names), np.int32)
    areas = np.bincount(stage.owners.ravel(), minlength=len(names))
    for owner, name in enumerate(names):
        if areas[owner] >= MIN_PIXELS:
            owner_ids[owner] = ID_STEP * vocabulary.ids[name] + used[name]
            used[name] += 1
    ids = owner_ids[stage.owners]
    measured = measure_segments(ids)
    segments = []
    for owner, name in enumerate(names):
        segment_id = int(owner_ids[owner])
        if segment_id:
            area, box = measured[segment_id]
            actor = stage.actors[owner - len(STUFF)] if owner >= len(STUFF) else None
            iscrowd = actor.iscrowd if actor else 0
            context = _context(stage, owner, name, owner_ids, vocabulary) if actor and actor.look else {}
            segments.append(Segment(segment_id, vocabulary.ids[name], iscrowd, box, area, **context))
    return ids, segments


def _context(stage: Stage, owner: int, name: str, owner_ids: np.ndarray, vocabulary: Vocabulary) -> dict:
    """The fields of a segment that say what decides the class `name` of a hull or disc."""
    number = owner - len(STUFF)
    actor = stage.actors[number]
    why, other = vocabulary.ambiguity(name)
    twins = [i for i, rival in enumerate(stage.actors) if i != number and rival.look == actor.look]
    return {
        "look": actor.look,
        "why": why,
        "mistaken_for": vocabulary.ids[other],
        "twin": int(owner_ids[len(STUFF) + twins[0]]) if twins else None,
    }


def _photograph(rng: np.random.Generator, stage: Stage, light: float) -> np.ndarray:
    """Paint background and actors, then light, lens and sensor: all of it blind to classes."""
    picture = paint(rng, stage.layout)
    for actor in stage.actors:
        alpha = actor.sprite.alpha[..., None]
        below = picture[actor.window]
        below += alpha * (actor.sprite.rgb - below)
    size = len(picture)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    slope, vignette, brightness = rng.uniform(0.05, 0.25), rng.uniform(0.0, 0.15), rng.uniform(0.75, 1.1)
    gain = (
        brightness
        * (1 + slope * (math.cos(light) * x + math.sin(light) * y))
        * (1 - vignette * (x**2 + y**2))
    )
    tint = rng.uniform(0.95, 1.05, 3)
    picture = picture * gain.astype(np.float32)[..., None] * tint.astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7) * size / 160)
    picture += np.float32(rng.uniform(2, 6)) * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture, 0, 255).round().astype(np.uint8)

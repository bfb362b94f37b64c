"""Which things appear in a scene, drawn before and apart from where they will stand.

A scene whose things do not fit is arranged again with the same story, so the odds below hold exactly:
whatever their number and looks, a hull is a boat or a cart, and a disc a ball or a wheel, with odds of 1:1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_former.data.toy_scenes.sprites import DISC_MARKS, HULL_DECKS, LANDMARKS, Look, hsv
from mask_former.errors import InputError

HULL_COUNT_ODDS: dict[int, float] = {0: 0.1, 1: 0.3, 2: 0.35, 3: 0.25}
DISC_COUNT_ODDS: dict[int, float] = {0: 0.1, 2: 0.3, 3: 0.3, 4: 0.3}
# Number of discs -> odds of no, one, two pairs of twins. For every number of discs half of them are expected
# to be wheels, so that counting does not tell wheels from balls. One disc alone could only be a ball.
TWIN_PAIR_ODDS: dict[int, list[float]] = {
    0: [1.0],
    2: [1 / 2, 1 / 2],
    3: [1 / 4, 3 / 4],
    4: [1 / 4, 1 / 2, 1 / 4],
}
LANDMARK_COUNTS = (2, 6)
CROWD_ODDS = 0.05
HULL_LENGTHS = (0.15, 0.24)


@dataclass(frozen=True)
class DiscLooks:
    """What discs may look like: `hues` in degrees, `patterns` of DISC_MARKS, `diameters` times the side."""

    hues: Sequence[int]
    patterns: Sequence[str]
    diameters: tuple[float, float]


# Twins among "plain" discs, larger and of four colours, are learnt by small networks; "marked" ones hardly.
DISC_LOOKS = {
    "marked": DiscLooks(hues=range(0, 360, 60), patterns=tuple(DISC_MARKS), diameters=(0.10, 0.15)),
    "plain": DiscLooks(hues=range(0, 360, 90), patterns=("plain",), diameters=(0.14, 0.19)),
}


def disc_looks(name: str) -> DiscLooks:
    """Those of a name in DISC_LOOKS; InputError for another."""
    if name not in DISC_LOOKS:
        raise InputError(f"toy scenes: unknown discs {name!r}; use one of {', '.join(DISC_LOOKS)}")
    return DISC_LOOKS[name]


@dataclass(frozen=True)
class Story:
    """Class and look of every ambiguous thing, and what else is there."""

    hulls: list[tuple[str, Look]]
    discs: list[tuple[str, Look]]
    landmarks: list[str]
    sky: bool
    wall: bool
    grass: bool


def draw_story(rng: np.random.Generator, size: int, discs: str) -> Story:
    """Draw what a scene of `size` pixels holds; `discs`: of DISC_LOOKS."""
    upper = rng.choice(["sky", "wall", "both"], p=[0.3, 0.15, 0.55])
    return Story(
        hulls=[
            (str(rng.choice(["boat", "cart"])), _hull_look(rng, size))
            for _ in range(_draw(rng, HULL_COUNT_ODDS))
        ],
        discs=_draw_discs(rng, size, disc_looks(discs)),
        landmarks=_draw_landmarks(rng),
        sky=upper != "wall",
        wall=upper != "sky",
        grass=bool(rng.random() < 0.75),
    )


def _draw(rng: np.random.Generator, odds: dict[int, float]) -> int:
    return int(rng.choice(list(odds), p=list(odds.values())))


def _draw_landmarks(rng: np.random.Generator) -> list[str]:
    single = [name for name in LANDMARKS if name != "crowd"]
    names = [str(name) for name in rng.choice(single, rng.integers(*LANDMARK_COUNTS))]
    return ["crowd", *names] if rng.random() < CROWD_ODDS else names


def _hull_look(rng: np.random.Generator, size: int) -> Look:
    colour = hsv(rng.uniform(0, 360), rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.9))
    return Look(colour, str(rng.choice(list(HULL_DECKS))), size * rng.uniform(*HULL_LENGTHS))


def _draw_discs(rng: np.random.Generator, size: int, looks: DiscLooks) -> list[tuple[str, Look]]:
    """Discs in random order. Looks that are not equal differ clearly: in pattern, or in hue by 40 degrees."""
    count = _draw(rng, DISC_COUNT_ODDS)
    pairs = int(rng.choice(len(TWIN_PAIR_ODDS[count]), p=TWIN_PAIR_ODDS[count]))
    kinds = [(hue, pattern) for hue in looks.hues for pattern in looks.patterns]
    discs: list[tuple[str, Look]] = []
    for number, kind in enumerate(rng.permutation(len(kinds))[: count - pairs]):
        hue, pattern = kinds[kind]
        colour = hsv(hue + rng.uniform(-10, 10), rng.uniform(0.65, 0.9), rng.uniform(0.6, 0.95))
        look = Look(colour, pattern, size * rng.uniform(*looks.diameters))
        discs += [("wheel", look)] * 2 if number < pairs else [("ball", look)]
    return [discs[i] for i in rng.permutation(len(discs))]

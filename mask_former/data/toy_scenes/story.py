"""Which things appear in a scene, drawn before and apart from where they will stand.

A scene whose things do not fit is arranged again with the same story, so the odds below hold exactly:
whatever their number and looks, a hull is a boat or a cart, and a disc a ball or a wheel, with odds of 1:1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mask_former.data.toy_scenes.classes import COARSE, FINE, Vocabulary
from mask_former.data.toy_scenes.sprites import DISC_MARKS, HULL_DECKS, LANDMARKS, Look, hsv
from mask_former.errors import InputError

# Number of discs -> odds of no, one, two … pairs of twins. For every number of discs half of them are
# expected to be wheels, so that counting does not tell wheels from balls. One disc alone could only be a
# ball.
TWIN_PAIR_ODDS: dict[int, list[float]] = {
    0: [1.0],
    2: [1 / 2, 1 / 2],
    3: [1 / 4, 3 / 4],
    4: [1 / 4, 1 / 2, 1 / 4],
    5: [1 / 8, 1 / 2, 3 / 8],
    6: [1 / 8, 3 / 8, 3 / 8, 1 / 8],
}
CROWD_ODDS = 0.05
HULL_LENGTHS = (0.15, 0.24)


@dataclass(frozen=True)
class DiscLooks:
    """What discs may look like: `hues` in degrees, `patterns` of DISC_MARKS, `diameters` times the side."""

    hues: Sequence[int]
    patterns: Sequence[str]
    diameters: tuple[float, float]


@dataclass(frozen=True)
class Genre:
    """What scenes have in common: the looks of discs, how many things there are, and what they are called.

    hulls, discs: odds of their number. landmarks: their smallest number, and the largest plus 1.
    disc_distance: between the centres of any two discs, twins or not; times the side.
    """

    looks: DiscLooks
    hulls: Mapping[int, float]
    discs: Mapping[int, float]
    landmarks: tuple[int, int]
    disc_distance: float
    vocabulary: Vocabulary = COARSE


def _few(looks: DiscLooks) -> Genre:
    return Genre(
        looks=looks,
        hulls={0: 0.1, 1: 0.3, 2: 0.35, 3: 0.25},
        discs={0: 0.1, 2: 0.3, 3: 0.3, 4: 0.3},
        landmarks=(2, 6),
        disc_distance=0.35,
    )


# Twins among "plain" discs, larger and of four colours, are learnt by small networks; "marked" ones hardly.
# "rich" scenes have more of everything, and a class for every pattern.
GENRES: dict[str, Genre] = {
    "marked": _few(DiscLooks(hues=range(0, 360, 60), patterns=tuple(DISC_MARKS), diameters=(0.10, 0.15))),
    "plain": _few(DiscLooks(hues=range(0, 360, 90), patterns=("plain",), diameters=(0.14, 0.19))),
    "rich": Genre(
        looks=DiscLooks(hues=range(0, 360, 90), patterns=tuple(DISC_MARKS), diameters=(0.13, 0.17)),
        hulls={2: 0.3, 3: 0.4, 4: 0.3},
        discs={3: 0.25, 4: 0.25, 5: 0.25, 6: 0.25},
        landmarks=(4, 9),
        disc_distance=0.25,
        vocabulary=FINE,
    ),
}


def genre_named(name: str) -> Genre:
    """That of a name in GENRES; InputError for another."""
    if name not in GENRES:
        raise InputError(f"toy scenes: unknown genre {name!r}; use one of {', '.join(GENRES)}")
    return GENRES[name]


@dataclass(frozen=True)
class Story:
    """Kind and look of every ambiguous thing, and what else is there."""

    hulls: list[tuple[str, Look]]
    discs: list[tuple[str, Look]]
    landmarks: list[str]
    sky: bool
    wall: bool
    grass: bool


def draw_story(rng: np.random.Generator, size: int, genre: Genre) -> Story:
    """Draw what a scene of `size` pixels holds."""
    upper = rng.choice(["sky", "wall", "both"], p=[0.3, 0.15, 0.55])
    return Story(
        hulls=[
            (str(rng.choice(["boat", "cart"])), _hull_look(rng, size)) for _ in range(_draw(rng, genre.hulls))
        ],
        discs=_draw_discs(rng, size, genre),
        landmarks=_draw_landmarks(rng, genre.landmarks),
        sky=upper != "wall",
        wall=upper != "sky",
        grass=bool(rng.random() < 0.75),
    )


def _draw(rng: np.random.Generator, odds: Mapping[int, float]) -> int:
    return int(rng.choice(list(odds), p=list(odds.values())))


def _draw_landmarks(rng: np.random.Generator, counts: tuple[int, int]) -> list[str]:
    single = [name for name in LANDMARKS if name != "crowd"]
    names = [str(name) for name in rng.choice(single, rng.integers(*counts))]
    return ["crowd", *names] if rng.random() < CROWD_ODDS else names


def _hull_look(rng: np.random.Generator, size: int) -> Look:
    colour = hsv(rng.uniform(0, 360), rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.9))
    return Look(colour, str(rng.choice(list(HULL_DECKS))), size * rng.uniform(*HULL_LENGTHS))


def _draw_discs(rng: np.random.Generator, size: int, genre: Genre) -> list[tuple[str, Look]]:
    """Discs in random order. Looks that are not equal differ clearly: in pattern, or in hue by 40 degrees."""
    looks, count = genre.looks, _draw(rng, genre.discs)
    pairs = int(rng.choice(len(TWIN_PAIR_ODDS[count]), p=TWIN_PAIR_ODDS[count]))
    kinds = [(hue, pattern) for hue in looks.hues for pattern in looks.patterns]
    discs: list[tuple[str, Look]] = []
    for number, kind in enumerate(rng.permutation(len(kinds))[: count - pairs]):
        hue, pattern = kinds[kind]
        colour = hsv(hue + rng.uniform(-10, 10), rng.uniform(0.65, 0.9), rng.uniform(0.6, 0.95))
        look = Look(colour, pattern, size * rng.uniform(*looks.diameters))
        discs += [("wheel", look)] * 2 if number < pairs else [("ball", look)]
    return [discs[i] for i in rng.permutation(len(discs))]

"""The categories of the toy scenes and the pairs that only context tells apart.

What a thing is in a scene ("boat", "tree") is its kind; which category that makes is the vocabulary's matter.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mask_former.data.toy_scenes.sprites import DISC_MARKS, HULL_DECKS


class AmbiguousPair(NamedTuple):
    """Two thing classes with one appearance; `why` names the context that decides."""

    first: str
    second: str
    why: str


def _category(category_id: int, name: str, supercategory: str, isthing: int) -> dict:
    return {"id": category_id, "name": name, "supercategory": supercategory, "isthing": isthing}


# The ids have gaps, as COCO's have, so that a mix-up of dataset ids and contiguous ids shows.
CATEGORIES: list[dict] = [
    _category(1, "boat", "hull", 1),
    _category(2, "cart", "hull", 1),
    _category(3, "ball", "disc", 1),
    _category(5, "wheel", "disc", 1),
    _category(6, "tree", "landmark", 1),
    _category(8, "house", "landmark", 1),
    _category(9, "person", "person", 1),
    _category(21, "sky", "background", 0),
    _category(22, "wall", "background", 0),
    _category(24, "grass", "ground", 0),
    _category(25, "water", "ground", 0),
    _category(28, "road", "ground", 0),
]
STUFF: tuple[str, ...] = tuple(category["name"] for category in CATEGORIES if not category["isthing"])

AMBIGUOUS_PAIRS: tuple[AmbiguousPair, ...] = (
    AmbiguousPair("boat", "cart", "surroundings"),
    AmbiguousPair("ball", "wheel", "twin"),
)
# The context that decides the kind of a hull: the surface all around it.
HULL_SURFACES: dict[str, str] = {"boat": "water", "cart": "road"}
PATTERNS: dict[str, tuple[str, ...]] = {"hull": tuple(HULL_DECKS), "disc": tuple(DISC_MARKS)}


@dataclass(frozen=True)
class Vocabulary:
    """Categories, the ambiguous pairs among them, and whether a hull or disc is called by its pattern too."""

    categories: list[dict]
    pairs: tuple[AmbiguousPair, ...]
    by_pattern: bool = False

    def name(self, kind: str, pattern: str | None = None) -> str:
        """The category of a thing; `pattern`: of a hull or disc."""
        return f"{pattern} {kind}" if self.by_pattern and pattern is not None else kind

    @cached_property
    def ids(self) -> dict[str, int]:
        """Category ids by name."""
        return {category["name"]: category["id"] for category in self.categories}

    def ambiguity(self, name: str) -> tuple[str, str]:
        """Why an ambiguous class is one, and the class it could be mistaken for. ValueError for another."""
        (pair,) = (pair for pair in self.pairs if name in (pair.first, pair.second))
        return pair.why, pair.second if name == pair.first else pair.first


def _fine() -> Vocabulary:
    """A class for every pattern of hulls and discs; their ids follow 30, with gaps."""
    categories = [c for c in CATEGORIES if c["supercategory"] not in PATTERNS]
    pairs: list[AmbiguousPair] = []
    for pair in AMBIGUOUS_PAIRS:
        (above,) = {c["supercategory"] for c in CATEGORIES if c["name"] in pair}
        for pattern in PATTERNS[above]:
            names = f"{pattern} {pair.first}", f"{pattern} {pair.second}"
            first = 31 + 3 * len(pairs)
            categories += [_category(first + i, name, above, 1) for i, name in enumerate(names)]
            pairs.append(AmbiguousPair(*names, pair.why))
    return Vocabulary(categories, tuple(pairs), by_pattern=True)


COARSE = Vocabulary(CATEGORIES, AMBIGUOUS_PAIRS)
FINE = _fine()

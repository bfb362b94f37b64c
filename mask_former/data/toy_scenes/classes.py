"""The categories of the toy scenes and the pairs that only context tells apart."""

from typing import NamedTuple


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
CATEGORY_IDS: dict[str, int] = {category["name"]: category["id"] for category in CATEGORIES}
STUFF: tuple[str, ...] = tuple(category["name"] for category in CATEGORIES if not category["isthing"])

AMBIGUOUS_PAIRS: tuple[AmbiguousPair, ...] = (
    AmbiguousPair("boat", "cart", "surroundings"),
    AmbiguousPair("ball", "wheel", "twin"),
)
# The context that decides the class of a hull: the surface all around it.
HULL_SURFACES: dict[str, str] = {"boat": "water", "cart": "road"}
# Ambiguous class -> why, and the class it could be mistaken for.
AMBIGUITY: dict[str, tuple[str, str]] = {
    name: (pair.why, other)
    for pair in AMBIGUOUS_PAIRS
    for name, other in ((pair.first, pair.second), (pair.second, pair.first))
}

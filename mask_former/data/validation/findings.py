"""What is wrong with a data set, by kind, in memory that does not grow with the number of problems."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "note"]
LEVELS: dict[Level, str] = {
    "error": "training or evaluation would stop",
    "warning": "works, but perhaps not as meant",
    "note": "worth knowing",
}


class Problem(NamedTuple):
    """One thing found. kind: what it is, the same words for all of its kind; text: file, what and mend."""

    level: Level
    kind: str
    text: str


@dataclass
class Group:
    """All problems of a kind: how many, and the first of them."""

    level: Level
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """The problems of any number of images; of each kind the number and the first `examples` are kept."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self._groups: dict[tuple[Level, str], Group] = {}

    def add(self, problems: Iterable[Problem]) -> None:
        """Count these, in the order found."""
        for level, kind, text in problems:
            group = self._groups.setdefault((level, kind), Group(level, kind))
            group.count += 1
            if len(group.examples) < self.examples:
                group.examples.append(text)

    def groups(self) -> list[Group]:
        """Errors first, then warnings, then notes; each level in the order in which its kinds came up."""
        order = list(LEVELS)
        return sorted(self._groups.values(), key=lambda group: order.index(group.level))

    def count(self, level: Level) -> int:
        return sum(group.count for group in self._groups.values() if group.level == level)

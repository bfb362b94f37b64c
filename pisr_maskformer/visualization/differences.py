"""Where two panoptic maps of one image disagree, and which segments of them are the same thing.

Shapes: H×W the image, N and M the segments of the first and the second map. A map is an H×W array of ids and
a list of segments {"id", "category_id"}; ids that no segment has are void. A box is (left, top, right,
bottom).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

Box = tuple[int, int, int, int]
VOID_CLASS = -1


class PanopticMap(NamedTuple):
    """Ids H×W and the segments that they stand for."""

    ids: np.ndarray
    segments: Sequence[Mapping[str, Any]]

    def positions(self) -> np.ndarray:
        """int64 H×W: 0 where void, else 1 + the position of the pixel's segment in the list."""
        ids = np.array([0, *(segment["id"] for segment in self.segments)], dtype=np.int64)
        order = ids.argsort(kind="stable")
        place = np.searchsorted(ids[order], self.ids).clip(max=len(ids) - 1)
        return np.where(ids[order][place] == self.ids, order[place], 0)

    def classes(self) -> np.ndarray:
        """int64 N+1: the class of each value of `positions`, VOID_CLASS of 0."""
        return np.array([VOID_CLASS, *(segment["category_id"] for segment in self.segments)], dtype=np.int64)


def overlap_counts(first: np.ndarray, second: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """int64 `shape`: how many pixels have each pair of values of two index maps."""
    pairs = first.ravel() * shape[1] + second.ravel()
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def matched_segments(first: PanopticMap, second: PanopticMap) -> np.ndarray:
    """int64 M: for each segment of the second map the position of its partner in the first, or -1.

    Partners are of one class, and each overlaps no other of that class more.
    """
    classes = first.classes(), second.classes()
    shape = (len(classes[0]), len(classes[1]))
    counts = overlap_counts(first.positions(), second.positions(), shape)
    counts = counts * (classes[0][:, None] == classes[1])
    counts[0], counts[:, 0] = 0, 0
    partner = counts.argmax(axis=0)
    mutual = (counts.argmax(axis=1)[partner] == np.arange(shape[1])) & (counts.max(axis=0) > 0)
    return np.where(mutual, partner - 1, -1)[1:]


def disagreement(first: PanopticMap, second: PanopticMap, things: Collection[int]) -> np.ndarray:
    """int64 H×W: 0 where both agree, else a number for each pair of segments that stand against each other.

    They agree where both have the same class and, for a thing, the same one, or both are void.
    """
    classes = first.classes(), second.classes()
    same = classes[0][:, None] == classes[1]
    partner = np.concatenate([[-1], matched_segments(first, second)])
    is_partner = partner + 1 == np.arange(len(classes[0]))[:, None]
    is_thing = np.isin(classes[1], list(things))
    pairs = 1 + np.arange(same.size).reshape(same.shape)
    return np.where(same & (is_partner | ~is_thing), 0, pairs)[first.positions(), second.positions()]


def difference_boxes(differs: np.ndarray, limit: int = 3, min_share: float = 0.004) -> list[Box]:
    """Boxes around the largest connected regions of one value in `differs` (int H×W, 0 agrees), by size.

    Strips as thin as an uncertain border do not count, nor regions below `min_share` of the image, nor one
    whose box is nearly that of a larger one.
    """
    least = max(1.0, min_share * differs.size)
    kernel = np.ones((2 * max(1, round(min(differs.shape) / 160)) + 1,) * 2, np.uint8)
    values, counts = np.unique(differs[differs > 0], return_counts=True)
    regions: list[tuple[int, Box]] = []
    for value in values[counts >= least]:
        solid = cv2.morphologyEx((differs == value).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        count, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
        for left, top, across, down, area in stats[1:count].tolist():
            if area >= least:
                regions.append((area, (left, top, left + across, top + down)))
    boxes: list[Box] = []
    for _, box in sorted(regions, key=lambda region: -region[0]):
        if len(boxes) < limit and all(_iou(box, other) <= 0.5 for other in boxes):
            boxes.append(box)
    return boxes


def _iou(box: Box, other: Box) -> float:
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(0, across) * max(0, down)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return shared / (sum(areas) - shared)

"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019) from two id maps, in numpy alone.

    PQ = Σ IoU of matches / (TP + FP/2 + FN/2) = SQ · RQ

The rules, and so the numbers, are panopticapi's; what it writes to PNGs and reads again in worker processes
is here one count over the pixels of both maps. Areas always come from the maps.

Shapes: H×W the image, G ground-truth segments, P predicted segments, C classes. An id map holds segment ids,
0 is void; segments are dicts with "id" and contiguous "category_id", those of the ground truth also "iscrowd"
(0 or 1).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mask_former.data.id_map import VOID_ID

MATCH_IOU = 0.5  # a match needs more; then no segment can have two
IGNORED_SHARE = 0.5  # a false positive lying in void and crowd by more than this share is forgiven

Segment = Mapping[str, Any]


class Match(NamedTuple):
    """A true positive: segment ids on both sides, their class and IoU (void left out of the union)."""

    gt_id: int
    pred_id: int
    category_id: int
    iou: float


@dataclass(frozen=True)
class Comparison:
    """What became of the segments of one image; crowd regions and forgiven predictions appear nowhere."""

    matches: list[Match]
    missed: list[Segment]  # false negatives, from the ground truth
    spurious: list[Segment]  # false positives, from the prediction


class Overlaps(NamedTuple):
    """Pixel counts of one image, in the order of the segment lists."""

    both: np.ndarray  # int64 G×P
    void: np.ndarray  # int64 P: void of the ground truth under each predicted segment
    gt_area: np.ndarray  # int64 G
    pred_area: np.ndarray  # int64 P


def compare_segments(
    gt_ids: np.ndarray, gt_segments: Sequence[Segment], pred_ids: np.ndarray, pred_segments: Sequence[Segment]
) -> Comparison:
    """Match predicted to ground-truth segments of one image (two H×W id maps and their segment lists).

    A ground-truth segment without pixels counts as missed, and pixels whose id no ground-truth segment has
    are neither void nor part of any; both as in panopticapi. Raises ValueError on maps of different sizes, an
    id listed twice, and a prediction whose list does not name exactly the ids of its map.
    """
    overlaps = count_overlaps(gt_ids, gt_segments, pred_ids, pred_segments)
    gt_class = np.array([segment["category_id"] for segment in gt_segments], dtype=np.int64)
    pred_class = np.array([segment["category_id"] for segment in pred_segments], dtype=np.int64)
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in gt_segments], dtype=bool)

    union = overlaps.gt_area[:, None] + overlaps.pred_area - overlaps.both - overlaps.void
    iou = overlaps.both / np.maximum(union, 1)  # the union is 0 only where the overlap is
    matched = (iou > MATCH_IOU) & (gt_class[:, None] == pred_class) & ~crowd[:, None]
    forgiven = _ignored_pixels(overlaps, gt_class, pred_class, crowd) / overlaps.pred_area > IGNORED_SHARE
    missed = ~matched.any(axis=1) & ~crowd
    spurious = ~matched.any(axis=0) & ~forgiven
    return Comparison(
        matches=[
            Match(gt_segments[g]["id"], pred_segments[p]["id"], int(gt_class[g]), float(iou[g, p]))
            for g, p in np.argwhere(matched)
        ],
        missed=[gt_segments[g] for g in np.flatnonzero(missed)],
        spurious=[pred_segments[p] for p in np.flatnonzero(spurious)],
    )


def _ignored_pixels(
    overlaps: Overlaps, gt_class: np.ndarray, pred_class: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """P: pixels of each prediction on void or on crowd of its class."""
    # of several crowd regions of one class panopticapi keeps the last one listed; so do we, for equal numbers
    crowd_of_class = {int(gt_class[g]): g for g in np.flatnonzero(crowd)}
    ignored = overlaps.void.copy()
    for p, category in enumerate(pred_class.tolist()):
        if category in crowd_of_class:
            ignored[p] += overlaps.both[crowd_of_class[category], p]
    return ignored


def count_overlaps(
    gt_ids: np.ndarray, gt_segments: Sequence[Segment], pred_ids: np.ndarray, pred_segments: Sequence[Segment]
) -> Overlaps:
    """Areas and overlaps of all segments of one image, in one pass; ValueError as `compare_segments`."""
    if gt_ids.shape != pred_ids.shape:
        raise ValueError(f"the prediction is {_size(pred_ids)}, the ground truth {_size(gt_ids)}")
    gt_values, pred_values, counts = _joint_counts(gt_ids.ravel(), pred_ids.ravel())
    _require_same_ids(pred_values, pred_segments)

    # rows and columns from ids in ascending order to the order of the lists, zeros for what has no pixels
    rows = _select(counts, gt_values, _listed_ids(gt_segments, "ground truth"))
    columns = _listed_ids(pred_segments, "prediction")
    return Overlaps(
        both=_select(rows.T, pred_values, columns).T,
        void=_select(_select(counts, gt_values, [VOID_ID]).T, pred_values, columns)[:, 0],
        gt_area=rows.sum(axis=1),
        pred_area=_select(counts.T, pred_values, columns).sum(axis=1),
    )


def _joint_counts(gt_ids: np.ndarray, pred_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sorted ids of both maps, given flat, and int64 how many pixels have each pair of them.

    Maps consist of runs in which both ids stay the same; runs are counted by their lengths.
    """
    new_run = np.ones(gt_ids.size, dtype=bool)
    new_run[1:] = (gt_ids[1:] != gt_ids[:-1]) | (pred_ids[1:] != pred_ids[:-1])
    starts = np.flatnonzero(new_run)
    lengths = np.diff(np.append(starts, gt_ids.size))
    gt_values, gt_position = np.unique(gt_ids[starts], return_inverse=True)
    pred_values, pred_position = np.unique(pred_ids[starts], return_inverse=True)
    shape = len(gt_values), len(pred_values)
    # weights are float64, which hold numbers of pixels exactly
    counts = np.bincount(gt_position * shape[1] + pred_position, lengths, minlength=shape[0] * shape[1])
    return gt_values, pred_values, counts.reshape(shape).astype(np.int64)


def _select(table: np.ndarray, values: np.ndarray, wanted: list[int]) -> np.ndarray:
    """The rows of `table` (one per value) that belong to the wanted values; zeros for a value it lacks."""
    row_of = {int(value): row for row, value in enumerate(values)}
    padded = np.concatenate([table, np.zeros_like(table[:1])])
    return padded[[row_of.get(value, -1) for value in wanted]]


def _listed_ids(segments: Sequence[Segment], side: str) -> list[int]:
    ids = [int(segment["id"]) for segment in segments]
    if len(set(ids)) < len(ids) or VOID_ID in ids:
        raise ValueError(
            f"the segments of the {side} need distinct ids other than {VOID_ID}, not {sorted(ids)}"
        )
    return ids


def _require_same_ids(pred_values: np.ndarray, pred_segments: Sequence[Segment]) -> None:
    in_map = set(pred_values.tolist()) - {VOID_ID}
    listed = set(_listed_ids(pred_segments, "prediction"))
    if in_map != listed:
        raise ValueError(
            f"the prediction's map and segment list disagree: ids {sorted(in_map - listed)} are in the "
            f"map only, {sorted(listed - in_map)} in the list only"
        )


def _size(ids: np.ndarray) -> str:
    return "×".join(map(str, ids.shape))


class PanopticQuality:
    """Sums over images from which PQ, SQ and RQ follow; those of several processes add up with `merge`."""

    def __init__(self, num_classes: int, thing_ids: Collection[int]) -> None:
        """`thing_ids`: contiguous ids of the thing classes, the other classes are stuff."""
        self.is_thing = np.zeros(num_classes, dtype=bool)
        self.is_thing[list(thing_ids)] = True
        self.images = 0
        self.iou = np.zeros(num_classes, dtype=np.float64)  # summed over matches
        self.tp = np.zeros(num_classes, dtype=np.int64)
        self.fp = np.zeros(num_classes, dtype=np.int64)
        self.fn = np.zeros(num_classes, dtype=np.int64)

    def update(
        self,
        gt_ids: np.ndarray,
        gt_segments: Sequence[Segment],
        pred_ids: np.ndarray,
        pred_segments: Sequence[Segment],
    ) -> Comparison:
        """Add one image; arguments and errors as `compare_segments`, and ValueError on an unknown class."""
        for side, segments in (("ground truth", gt_segments), ("prediction", pred_segments)):
            unknown = {s["category_id"] for s in segments} - set(range(len(self.tp)))
            if unknown:
                raise ValueError(
                    f"the {side} has classes {sorted(unknown)}, but there are only {len(self.tp)}"
                )
        comparison = compare_segments(gt_ids, gt_segments, pred_ids, pred_segments)
        self.images += 1
        for match in comparison.matches:
            self.tp[match.category_id] += 1
            self.iou[match.category_id] += match.iou
        for segment in comparison.missed:
            self.fn[segment["category_id"]] += 1
        for segment in comparison.spurious:
            self.fp[segment["category_id"]] += 1
        return comparison

    def merge(self, other: "PanopticQuality") -> None:
        """Add what another process, over the same classes, has counted."""
        self.images += other.images
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn

    @property
    def present(self) -> np.ndarray:
        """bool C: classes with a segment that counts, in the ground truth or the predictions."""
        return self.tp + self.fp + self.fn > 0

    def per_class(self) -> dict[str, np.ndarray]:
        """PQ, SQ, RQ (0..100) of every class, float64 C; nan where the class is not present."""
        support = np.where(self.present, self.tp + 0.5 * self.fp + 0.5 * self.fn, np.nan)
        quality = np.where(self.present, self.iou / np.maximum(self.tp, 1), np.nan)
        return {"PQ": 100 * self.iou / support, "SQ": 100 * quality, "RQ": 100 * self.tp / support}

    def summary(self) -> dict[str, float]:
        """PQ, SQ, RQ over the classes present, then _th over things and _st over stuff; nan where none is."""
        per_class = self.per_class()
        groups = {"": self.present, "_th": self.present & self.is_thing, "_st": self.present & ~self.is_thing}
        return {
            f"{name}{suffix}": float(values[chosen].mean()) if chosen.any() else float("nan")
            for suffix, chosen in groups.items()
            for name, values in per_class.items()
        }

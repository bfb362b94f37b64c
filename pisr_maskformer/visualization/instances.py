"""Instance heatmaps (Section 3.2, E.2), and which of two predictions show the same thing.

Shapes: Q queries · C classes · H×W the maps.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

SMALLEST = 1e-8


class Instance(NamedTuple):
    """A query that claims a thing."""

    query: int
    category: int
    score: float
    heatmap: np.ndarray  # float32 H×W in 0..1


def instance_heatmaps(class_probs: np.ndarray, masks: np.ndarray, things: Collection[int]) -> np.ndarray:
    """float32 Q×H×W: every mask times the probability that its pixel is a thing, T / (T + U).

    T and U are what all queries give to things and to stuff there: the soft background suppression, for both
    predictions alike, whatever MODEL.PISR.SUPPRESSION the model was trained with.
    """
    is_thing = np.isin(np.arange(class_probs.shape[1]), sorted(things))
    thing = np.tensordot(class_probs[:, is_thing].sum(axis=1), masks, axes=1)
    stuff = np.tensordot(class_probs[:, ~is_thing].sum(axis=1), masks, axes=1)
    return (masks * (thing / np.maximum(thing + stuff, SMALLEST))).astype(np.float32)


def find_instances(
    class_probs: np.ndarray, masks: np.ndarray, things: Collection[int], threshold: float, most: int
) -> list[Instance]:
    """The `most` queries of the highest score whose most probable class is a thing, above the threshold.

    Score = class probability × mean of the mask where it is at least 0.5, as for AP; "no object" takes part,
    its probability is what the classes leave. A query that shows what a better one shows already is left out.
    """
    if not things:
        return []
    heatmaps = instance_heatmaps(class_probs, masks, things)
    best = class_probs.argmax(axis=1)
    confident = masks >= 0.5
    certainty = (masks * confident).sum(axis=(1, 2)) / np.maximum(confident.sum(axis=(1, 2)), 1)
    scores = class_probs.max(axis=1) * certainty
    claimed = class_probs.max(axis=1) > 1 - class_probs.sum(axis=1)
    real = claimed & np.isin(best, sorted(things)) & (scores > threshold)
    found: list[Instance] = []
    for query in np.argsort(-scores, kind="stable").tolist():
        if len(found) == most:
            break
        if not real[query] or any(
            best[query] == other.category and soft_iou(heatmaps[query], other.heatmap) > 0.5
            for other in found
        ):
            continue
        found.append(Instance(query, int(best[query]), float(scores[query]), heatmaps[query]))
    return found


def soft_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Σ min / Σ max of two maps: the IoU of masks, for values 0..1; 0 when both are empty."""
    union = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / union if union > SMALLEST else 0.0


def closest(wanted: Instance, heatmaps: np.ndarray) -> tuple[int, float]:
    """The query whose heatmap (Q×H×W) overlaps an instance's most, and their soft IoU."""
    overlaps = [soft_iou(wanted.heatmap, heatmap) for heatmap in heatmaps]
    query = int(np.argmax(overlaps))
    return query, overlaps[query]

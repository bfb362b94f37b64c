"""What is counted on one image, as small numbers that add up, and what follows from all of them.

Shapes: H×W the image, C classes. A side is "baseline" or "pisr"; a record holds, for JSON:
    index, name, stem, width, height
    pq            side -> PQ of this image alone (None where nothing is to be found and nothing was)
    counts        side -> class -> [Σ IoU, TP, FP, FN]
    confusion     side -> [[predicted, true, pixels], ...], class C for pixels without a prediction
    classes       those in the ground truth or a prediction
    changed       share of the image on which the two sides disagree
    boxes         [[left, top, right, bottom], ...] of the largest disagreements, as shares of the sides
    pictures      kind -> file, relative to the output
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mask_former.errors import InputError
from mask_former.evaluation.instance import (
    average_precision,
    ground_truth_annotations,
    predicted_annotations,
)
from mask_former.evaluation.panoptic_quality import PanopticQuality
from mask_former.evaluation.semantic import confusion_matrix, per_class_scores, summarize
from pisr_maskformer.visualization.differences import PanopticMap
from tools.comparison.inputs import Truth
from tools.comparison.sources import Prediction

SIDES = ("baseline", "pisr")
PANOPTIC = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")


class Classes:
    """Names and things of the C classes."""

    def __init__(self, names: Sequence[str], things: Iterable[int]) -> None:
        self.names, self.things = list(names), sorted(things)


def panoptic_counts(
    truth: PanopticMap, predicted: PanopticMap, classes: Classes
) -> tuple[float, dict[str, list[float]]]:
    """PQ (0..100, nan where no class is present) of one image, and class -> [Σ IoU, TP, FP, FN]."""
    quality = PanopticQuality(len(classes.names), classes.things)
    try:
        quality.update(truth.ids, truth.segments, predicted.ids, predicted.segments)
    except ValueError as error:
        raise InputError(f"a prediction that cannot be scored: {error}") from error
    counts = {
        str(c): [float(quality.iou[c]), int(quality.tp[c]), int(quality.fp[c]), int(quality.fn[c])]
        for c in np.flatnonzero(quality.present).tolist()
    }
    return quality.summary()["PQ"], counts


def class_map(prediction: PanopticMap, num_classes: int) -> np.ndarray:
    """int64 H×W: the class of each pixel's segment, C where there is none."""
    classes = prediction.classes()
    classes[0] = num_classes
    return classes[prediction.positions()]


def confusion_entries(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> list[list[int]]:
    """The non-zero entries of the confusion matrix of two H×W class maps as [predicted, true, pixels]."""
    matrix = confusion_matrix(predicted, truth, num_classes + 1)
    return [[int(p), int(t), int(matrix[p, t])] for p, t in np.argwhere(matrix)]


def score_image(
    truth: Truth, predictions: Mapping[str, Prediction], classes: Classes, from_scores: bool, panoptic: bool
) -> dict[str, Any]:
    """pq, counts and confusion of both sides.

    `from_scores`: mIoU is that of the semantic scores, else of the panoptic maps. `panoptic`: the truth tells
    instances apart; without, there is no PQ.
    """
    scored: dict[str, Any] = {"pq": {}, "counts": {}, "confusion": {}}
    for side, prediction in predictions.items():
        if panoptic:
            scored["pq"][side], scored["counts"][side] = panoptic_counts(
                truth.panoptic, prediction.panoptic, classes
            )
        predicted = prediction.classes if from_scores else None
        if predicted is None:
            predicted = class_map(prediction.panoptic, len(classes.names))
        scored["confusion"][side] = confusion_entries(predicted, truth.classes, len(classes.names))
    return scored


def image_instances(
    index: int, truth: PanopticMap, predictions: Mapping[str, Prediction], classes: Classes
) -> dict[str, Any]:
    """The instances of one image as COCO annotations that JSON can hold."""
    found = {"truth": ground_truth_annotations(truth.ids, truth.segments, classes.things, index)}
    for side, prediction in predictions.items():
        assert prediction.instances is not None
        found[side] = predicted_annotations(prediction.instances, classes.things, index)
    for annotation in (entry for annotations in found.values() for entry in annotations):
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode("ascii")
    height, width = truth.ids.shape
    return {"height": height, "width": width, **found}


def total_quality(records: Iterable[Mapping[str, Any]], side: str, classes: Classes) -> PanopticQuality:
    """Panoptic quality over all images, as if it had been counted in one go."""
    quality = PanopticQuality(len(classes.names), classes.things)
    for record in records:
        quality.images += 1
        for key, (iou, tp, fp, fn) in record["counts"].get(side, {}).items():
            c = int(key)
            quality.iou[c] += iou
            quality.tp[c] += tp
            quality.fp[c] += fp
            quality.fn[c] += fn
    return quality


def total_confusion(records: Iterable[Mapping[str, Any]], side: str, num_classes: int) -> np.ndarray:
    """int64 (C+1)×(C+1), the last class for pixels without a prediction, which no pixel truly is."""
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for record in records:
        for predicted, true, pixels in record["confusion"].get(side, ()):
            matrix[predicted, true] += pixels
    return matrix


def summarise_side(
    records: Sequence[Mapping[str, Any]], side: str, classes: Classes, panoptic: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """PQ, SQ, RQ, PQ_th, PQ_st and mIoU over all images; "PQ" and "IoU" of every class (float64 C)."""
    confusion = total_confusion(records, side, len(classes.names))
    quality = total_quality(records, side, classes)
    summary = quality.summary() if panoptic else {}
    kept: dict[str, float] = {key: summary[key] for key in PANOPTIC if key in summary}
    per_class = {"PQ": quality.per_class()["PQ"]} if panoptic else {}
    per_class["IoU"] = per_class_scores(confusion)["IoU"][:-1]
    return {**kept, "mIoU": summarize(confusion)["mIoU"]}, per_class


def instance_precision(
    rows: Iterable[Mapping[str, Any]], side: str, classes: Classes
) -> tuple[float, np.ndarray]:
    """AP over all images and of every class (float64 C, nan for stuff)."""
    images: list[dict[str, int]] = []
    true: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for row in rows:
        images.append({"id": row["index"], "height": row["height"], "width": row["width"]})
        true += row["truth"]
        predicted += row[side]
    stats, of_things = average_precision(true, predicted, images, classes.things)
    per_class = np.full(len(classes.names), np.nan)
    per_class[classes.things] = of_things
    return stats["AP"], per_class

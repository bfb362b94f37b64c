"""Mean IoU and pixel accuracy of a data set, by detectron2's definitions.

Shapes: H×W the image, C classes. The confusion matrix counts pixels, confusion[predicted, true].
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from mask_former.data.segments import require_same_size, semantic_label_file
from mask_former.evaluation.ground_truth import GroundTruth
from mask_former.evaluation.metrics_file import write_json
from mask_former.evaluation.tables import class_table, summary_table

logger = logging.getLogger(__name__)

PER_CLASS_FILE = "per_class_semantic.json"


def confusion_matrix(predicted: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 C×C pixel counts of two H×W class maps; pixels with a negative true class are left out.

    Raises ValueError on maps of different sizes and on predictions outside 0..C-1.
    """
    if predicted.shape != true.shape:
        sizes = ["×".join(map(str, shape)) for shape in (predicted.shape, true.shape)]
        raise ValueError(f"the prediction is {sizes[0]}, the ground truth {sizes[1]}")
    if predicted.size and not 0 <= predicted.min() <= predicted.max() < num_classes:
        raise ValueError(f"predicted classes must be in 0..{num_classes - 1}, not {np.unique(predicted)}")
    # what is left out goes to a row of its own, which is cheaper than selecting the rest
    pairs = (np.maximum(true, -1).astype(np.int64) + 1) * num_classes + predicted
    counts = np.bincount(pairs.ravel(), minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[1:].T.astype(np.int64)


def per_class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and ACC (0..100) of every class; nan for a class without ground truth, as in detectron2."""
    correct, true, predicted = _sums(confusion)
    present = np.where(true > 0, 1.0, np.nan)
    union = np.maximum(true + predicted - correct, 1)
    return {"IoU": 100 * present * correct / union, "ACC": 100 * present * correct / np.maximum(true, 1)}


def summarize(confusion: np.ndarray) -> dict[str, float]:
    """mIoU, fwIoU (weighted by ground-truth pixels), mACC, pACC, 0..100; nan when nothing was counted."""
    correct, true, _ = _sums(confusion)
    scores = per_class_scores(confusion)
    if not true.any():
        return dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    return {
        "mIoU": float(np.nanmean(scores["IoU"])),
        "fwIoU": float(np.nansum(scores["IoU"] * true / true.sum())),
        "mACC": float(np.nanmean(scores["ACC"])),
        "pACC": float(100 * correct.sum() / true.sum()),
    }


def _sums(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct, true and predicted pixels of every class, float64 C each."""
    counts = confusion.astype(np.float64)
    return counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC, pACC, for models that return `sem_seg`."""

    def __init__(self, ground_truth: GroundTruth, output_dir: str | Path | None = None) -> None:
        """`output_dir` gets the numbers per class."""
        self.ground_truth = ground_truth
        self.num_classes = len(ground_truth.class_names)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        self.images = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: inputs with `file_name`, outputs with `sem_seg`, scores C×H×W or classes H×W."""
        for sample, output in zip(inputs, outputs, strict=True):
            record = self.ground_truth.record(sample)
            predicted: Tensor = output["sem_seg"]
            if predicted.ndim == 3:
                # the first of the largest as `argmax`, in half the time on a CPU; small to copy from a GPU
                predicted = predicted.max(dim=0).indices.to(torch.int32)
            true = self.ground_truth.semantic(record)
            # predictions have the size of the image in its file
            require_same_size(true.shape, predicted.shape, semantic_label_file(record), record["file_name"])
            try:
                self.confusion += confusion_matrix(predicted.cpu().numpy(), true, self.num_classes)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error
            self.images += 1

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC"}}, 0..100.

        Called by all processes; those other than the main one get None.
        """
        comm.synchronize()
        gathered = comm.gather((self.confusion, self.images))
        if not comm.is_main_process():
            return None
        confusion = np.sum([part[0] for part in gathered], axis=0)
        self._report(confusion, sum(part[1] for part in gathered))
        return OrderedDict(sem_seg=summarize(confusion))

    def _report(self, confusion: np.ndarray, images: int) -> None:
        self.ground_truth.warn_if_partial(images)
        name, names, scores = (
            self.ground_truth.name,
            self.ground_truth.class_names,
            per_class_scores(confusion),
        )
        logger.info("semantic segmentation by class, %s\n%s", name, class_table(names, scores))
        table = summary_table({"all": summarize(confusion)})
        logger.info("semantic segmentation, %s, %d images\n%s", name, images, table)
        if self.output_dir is not None:
            by_class = {c: {key: values[i] for key, values in scores.items()} for i, c in enumerate(names)}
            write_json(by_class, self.output_dir / PER_CLASS_FILE)

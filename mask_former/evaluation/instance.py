"""COCO average precision of instance masks, by pycocotools, against the things of panoptic ground truth.

H×W the image, n instances, C classes. Masks of panoptic maps never overlap and areas are counted on them, so
the numbers differ a little from those against COCO's instance polygons.
"""

import contextlib
import io
import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_former.data.segments import require_same_size
from mask_former.evaluation.ground_truth import GroundTruth
from mask_former.evaluation.metrics_file import write_json
from mask_former.evaluation.tables import class_table, summary_table

logger = logging.getLogger(__name__)

PER_CLASS_FILE = "per_class_instance.json"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of COCOeval's stats, in its order

Annotation = dict[str, Any]


def annotation(mask: np.ndarray, image: int, category_id: int, **more: Any) -> Annotation:
    """A COCO annotation (without id) of a bool H×W mask; `more`: iscrowd or score."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "image_id": image,
        "category_id": category_id,
        "segmentation": code,
        "area": float(rle.area(code)),
        "bbox": rle.toBbox(code).tolist(),
        "iscrowd": 0,
        **more,
    }


def ground_truth_annotations(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], thing_ids: Sequence[int], image: int
) -> list[Annotation]:
    """The things of an H×W id map, crowds marked; a segment without pixels is none."""
    found = []
    for segment in segments:
        if segment["category_id"] not in thing_ids:
            continue
        mask = ids == segment["id"]
        if mask.any():
            crowd = int(segment.get("iscrowd", 0))
            found.append(annotation(mask, image, segment["category_id"], iscrowd=crowd))
    return found


def predicted_annotations(instances: Instances, thing_ids: Sequence[int], image: int) -> list[Annotation]:
    """From `pred_masks` bool n×H×W, `scores`, `pred_classes`; ValueError on a class that is no thing."""
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    not_things = sorted(set(classes) - set(thing_ids))
    if not_things:
        raise ValueError(f"instances of classes {not_things}, which are not things")
    masks = instances.pred_masks.cpu().numpy()
    return [
        annotation(mask, image, category_id, score=score)
        for mask, category_id, score in zip(masks, classes, scores, strict=True)
    ]


def average_precision(
    true: Sequence[Annotation],
    predicted: Sequence[Annotation],
    images: Sequence[dict[str, int]],
    category_ids: Sequence[int],
) -> tuple[dict[str, float], np.ndarray]:
    """METRICS (0..100, nan where no ground truth is that large) and AP per category; no prediction means 0.

    nan stands for pycocotools' -1; it has left such categories out of the means itself.
    """
    with contextlib.redirect_stdout(io.StringIO()) as said:
        evaluation = COCOeval(
            _coco(true, images, category_ids), _coco(predicted, images, category_ids), "segm"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    logger.info("pycocotools:\n%s", said.getvalue())
    stats = {name: _percent(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}
    # precision: IoU thresholds × recalls × categories × areas (0 all) × detection limits (-1 the largest)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    of_category = np.moveaxis(precision, 2, 0).reshape(len(category_ids), -1)
    means = [values[values > -1].mean() if (values > -1).any() else -1.0 for values in of_category]
    return stats, np.array([_percent(value) for value in means])


def _percent(value: float) -> float:
    return float(100 * value) if value >= 0 else float("nan")


def _coco(
    annotations: Sequence[Annotation], images: Sequence[dict[str, int]], category_ids: Sequence[int]
) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": list(images),
        "categories": [{"id": category_id} for category_id in category_ids],
        # from 1, because pycocotools reads id 0 as "not matched"
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


class InstanceEvaluator(DatasetEvaluator):
    """AP of masks, for models that return `instances`; needs panoptic ground truth with thing classes."""

    def __init__(self, ground_truth: GroundTruth, output_dir: str | Path | None = None) -> None:
        """`output_dir` gets the AP per class."""
        self.ground_truth = ground_truth
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self.images: list[dict[str, int]] = []  # COCO image entries; positions in the data set are the ids
        self.true: list[Annotation] = []
        self.predicted: list[Annotation] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Encode a batch: inputs with `file_name`, outputs with `instances`."""
        things = self.ground_truth.thing_ids
        for sample, output in zip(inputs, outputs, strict=True):
            image = self.ground_truth.position(sample)
            record = self.ground_truth.records[image]
            ids, segments = self.ground_truth.panoptic(record)
            instances: Instances = output["instances"]
            # predictions have the size of the image in its file
            size = tuple(instances.image_size)
            require_same_size(ids.shape, size, record["pan_seg_file_name"], record["file_name"])
            try:
                self.predicted += predicted_annotations(instances, things, image)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error
            self.images.append({"id": image, "height": ids.shape[0], "width": ids.shape[1]})
            self.true += ground_truth_annotations(ids, segments, things, image)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"segm": {"AP", "AP50", "AP75", "APs", "APm", "APl"}}, 0..100, nan where nothing is to be found.

        Called by all processes; those other than the main one get None.
        """
        comm.synchronize()
        gathered = comm.gather((self.images, self.true, self.predicted))
        if not comm.is_main_process():
            return None
        images, true, predicted = (list(itertools.chain(*(part[i] for part in gathered))) for i in range(3))
        stats, per_class = average_precision(true, predicted, images, self.ground_truth.thing_ids)
        self._report(stats, per_class, len(images))
        return OrderedDict(segm=stats)

    def _report(self, stats: dict[str, float], per_class: np.ndarray, images: int) -> None:
        self.ground_truth.warn_if_partial(images)
        name = self.ground_truth.name
        names = [self.ground_truth.class_names[index] for index in self.ground_truth.thing_ids]
        logger.info("instance segmentation by class, %s\n%s", name, class_table(names, {"AP": per_class}))
        logger.info("instance segmentation, %s, %d images\n%s", name, images, summary_table({"all": stats}))
        if self.output_dir is not None:
            by_class = {c: {"AP": value} for c, value in zip(names, per_class, strict=True)}
            write_json(by_class, self.output_dir / PER_CLASS_FILE)

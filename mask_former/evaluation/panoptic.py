"""Panoptic quality of a data set as a detectron2 evaluator; the counting is in `panoptic_quality`."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from mask_former.data.segments import require_same_size
from mask_former.evaluation.ground_truth import GroundTruth
from mask_former.evaluation.metrics_file import write_json
from mask_former.evaluation.panoptic_quality import PanopticQuality
from mask_former.evaluation.predictions import PanopticWriter, unique_names
from mask_former.evaluation.tables import class_table, summary_table

logger = logging.getLogger(__name__)

PER_CLASS_FILE = "per_class_panoptic.json"


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ, RQ over all, thing and stuff classes, for models that return `panoptic_seg`."""

    def __init__(
        self, ground_truth: GroundTruth, output_dir: str | Path | None = None, keep_predictions: bool = False
    ) -> None:
        """`output_dir` gets the numbers per class, and with `keep_predictions` the PNGs and their JSON."""
        self.ground_truth = ground_truth
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.writer: PanopticWriter | None = None
        if keep_predictions:
            if self.output_dir is None:
                raise ValueError("keeping predictions needs an output_dir")
            self.writer = PanopticWriter(self.output_dir, ground_truth.metadata)
            self.names = unique_names([record["file_name"] for record in ground_truth.records])
        self.reset()

    def reset(self) -> None:
        self.quality = PanopticQuality(len(self.ground_truth.class_names), self.ground_truth.thing_ids)
        self.annotations: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: inputs with `file_name`, outputs with `panoptic_seg` (id map, segments)."""
        for sample, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            position = self.ground_truth.position(sample)
            record = self.ground_truth.records[position]
            true_ids, true_segments = self.ground_truth.panoptic(record)
            # predictions have the size of the image in its file
            require_same_size(true_ids.shape, ids.shape, record["pan_seg_file_name"], record["file_name"])
            try:
                self.quality.update(true_ids, true_segments, ids, segments)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error
            if self.writer is not None:
                name = self.names[position]
                entry = {"id": record.get("image_id", name), "file_name": Path(record["file_name"]).name}
                self.images.append({**entry, "height": ids.shape[0], "width": ids.shape[1]})
                self.annotations.append(self.writer.write(name, entry["id"], ids, segments))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ..., "RQ_st"}}, 0..100, nan where no class is present.

        Called by all processes; those other than the main one get None.
        """
        comm.synchronize()
        gathered = comm.gather((self.quality, self.annotations, self.images))
        if not comm.is_main_process():
            return None
        quality = PanopticQuality(len(self.ground_truth.class_names), self.ground_truth.thing_ids)
        for other, _, _ in gathered:
            quality.merge(other)
        if self.writer is not None:
            annotations, images = (list(itertools.chain(*(part[i] for part in gathered))) for i in (1, 2))
            logger.info("panoptic predictions: %s", self.writer.finish(annotations, images))
        self._report(quality)
        return OrderedDict(panoptic_seg=quality.summary())

    def _report(self, quality: PanopticQuality) -> None:
        self.ground_truth.warn_if_partial(quality.images)
        names, per_class = self.ground_truth.class_names, quality.per_class()
        columns = {**per_class, "TP": quality.tp, "FP": quality.fp, "FN": quality.fn}
        summary = quality.summary()
        groups = {"all": "", "things": "_th", "stuff": "_st"}
        rows = {group: {key: summary[key + end] for key in per_class} for group, end in groups.items()}
        logger.info("panoptic quality by class, %s\n%s", self.ground_truth.name, class_table(names, columns))
        logger.info(
            "panoptic quality, %s, %d images\n%s", self.ground_truth.name, quality.images, summary_table(rows)
        )
        if self.output_dir is not None:
            by_class = {
                name: {key: values[c] for key, values in columns.items()} for c, name in enumerate(names)
            }
            write_json(by_class, self.output_dir / PER_CLASS_FILE)

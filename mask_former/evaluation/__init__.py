"""Evaluation: which numbers a configuration asks for, and the evaluators that compute them.

`panoptic` PQ, SQ, RQ · `semantic` mIoU and accuracies · `instance` COCO AP · `context` accuracy on the things
that only their context tells, where the data set has such. Each gathers over processes and logs tables; all
but the last write their numbers per class to the output folder.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from mask_former.errors import InputError
from mask_former.evaluation.context import ContextEvaluator, declared_pairs
from mask_former.evaluation.ground_truth import GroundTruth
from mask_former.evaluation.instance import InstanceEvaluator
from mask_former.evaluation.metrics_file import write_metrics
from mask_former.evaluation.panoptic import PanopticEvaluator
from mask_former.evaluation.panoptic_quality import PanopticQuality, compare_segments
from mask_former.evaluation.semantic import SemanticEvaluator

__all__ = [
    "ContextEvaluator",
    "GroundTruth",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "PanopticQuality",
    "SemanticEvaluator",
    "build_evaluators",
    "compare_segments",
    "write_metrics",
]

logger = logging.getLogger(__name__)


def build_evaluators(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path, keep_predictions: bool = False
) -> DatasetEvaluators:
    """Evaluators of what the model returns (MODEL.MASK_FORMER.TEST.*_ON) and the data set is labelled for.

    `output_dir` gets the numbers per class, and with `keep_predictions` panoptic predictions in COCO's
    format. A result without ground truth is logged as such. InputError when the data set is unknown, has
    other classes than the model, or has ground truth for none of the results.
    """
    ground_truth = GroundTruth.of_dataset(dataset_name)
    _require_same_classes(cfg, ground_truth)
    builders: dict[str, tuple[bool, Callable[[], DatasetEvaluator]]] = {
        "PANOPTIC_ON": (
            ground_truth.has_panoptic,
            lambda: PanopticEvaluator(ground_truth, output_dir, keep_predictions),
        ),
        "SEMANTIC_ON": (ground_truth.has_semantic, lambda: SemanticEvaluator(ground_truth, output_dir)),
        "INSTANCE_ON": (ground_truth.has_instances, lambda: InstanceEvaluator(ground_truth, output_dir)),
    }
    wanted = [key for key in builders if cfg.MODEL.MASK_FORMER.TEST[key]]
    possible = [key for key in wanted if builders[key][0]]
    if not possible:
        raise InputError(
            f"data set {dataset_name}: nothing to evaluate, it has {ground_truth.labels()} ground truth and "
            f"MODEL.MASK_FORMER.TEST has {', '.join(wanted) or 'nothing'} switched on"
        )
    for key in set(wanted) - set(possible):
        logger.warning("%s has no ground truth for %s, which is not evaluated", dataset_name, key)
    if keep_predictions and "PANOPTIC_ON" not in possible:
        logger.warning("%s: only panoptic predictions can be kept, none will be", dataset_name)
    evaluators = [builders[key][1]() for key in possible]
    pairs = declared_pairs(ground_truth.metadata)
    if pairs and "INSTANCE_ON" in possible:
        evaluators.append(ContextEvaluator(ground_truth, pairs))
    return DatasetEvaluators(evaluators)


def _require_same_classes(cfg: CfgNode, ground_truth: GroundTruth) -> None:
    model, data = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, len(ground_truth.class_names)
    if model != data:
        raise InputError(
            f"data set {ground_truth.name} has {data} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{model}; evaluate on a data set of the model's classes"
        )

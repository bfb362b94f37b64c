"""Evaluating a model on the data sets of a configuration."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from mask_former.data import build_mapper, dataset_records
from mask_former.data.loader import bounded_workers
from mask_former.evaluation import build_evaluators
from mask_former.evaluation.metrics_file import write_metrics

logger = logging.getLogger(__name__)


def evaluate(cfg: CfgNode, model: nn.Module) -> "OrderedDict[str, Any]":
    """Results on DATASETS.TEST by kind of evaluation; with several data sets, by data set first.

    They also go to OUTPUT_DIR/inference/DATASET/metrics.json. All processes take part; the main one returns
    the results, the others nothing.
    """
    if cfg.TEST.AUG.ENABLED:
        logger.warning("TEST.AUG.ENABLED: there is no test-time augmentation here; evaluating without it")
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = evaluation_folder(cfg, name)
        loader = build_detection_test_loader(
            dataset_records(name), mapper=build_mapper(cfg, is_train=False), num_workers=bounded_workers(cfg)
        )
        evaluators = build_evaluators(cfg, name, str(folder), cfg.TEST.KEEP_PREDICTIONS)
        one = inference_on_dataset(model, loader, evaluators) or {}
        if comm.is_main_process():
            print_csv_format(one)
            write_metrics(one, folder / "metrics.json")
            results[name] = one
    return results if len(results) != 1 else next(iter(results.values()))


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where metrics and predictions on a data set go."""
    return Path(cfg.OUTPUT_DIR) / "inference" / dataset_name

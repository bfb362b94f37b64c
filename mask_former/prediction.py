"""A trained model as a function of one RGB image, and its result as a panoptic map with named classes.

Shapes: H×W the image, C classes. Tools that show or compare models start here.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from torch import nn

from mask_former.checkpoint import load_weights
from mask_former.data.catalog import class_colors, first_metadata
from mask_former.data.mappers import TestMapper
from mask_former.errors import InputError

logger = logging.getLogger(__name__)


class Predictor:
    """The configured model with its weights, at test resolution (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST)."""

    def __init__(self, cfg: CfgNode, weights: str | Path) -> None:
        """`weights`: a checkpoint of the whole model; MODEL.WEIGHTS and MODEL.TIMM.WEIGHTS are not looked at.

        InputError when the checkpoint is missing, unfit or holds a part of the model only (ImageNet weights),
        or MODEL.DEVICE is not to be had.
        """
        _require_device(cfg.MODEL.DEVICE)
        self.model = build_blank_model(cfg).eval()
        self.report = load_weights(self.model, weights, complete=True)
        self.mapper = TestMapper.from_config(cfg)

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray) -> dict[str, Any]:
        """The model's result for a uint8 H×W×3 image, at the image's size, on the model's device.

        Keys as configured: `sem_seg` float C×H×W scores, `panoptic_seg` (int32 H×W ids, segments),
        `instances`. InputError when the image is too narrow to be resized.
        """
        return self.model([self.mapper.from_image(rgb)])[0]


def build_blank_model(cfg: CfgNode) -> nn.Module:
    """The configured model with random weights, for a checkpoint that holds it whole, backbone included."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.WEIGHTS = ""
    return build_model(cfg)


def _require_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"MODEL.DEVICE {name!r} cannot be used ({reason}); cpu always can") from error


def panoptic_map(result: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """int32 H×W ids (0 void) and segments of a model's result; without `panoptic_seg`, of its semantic map.

    A semantic map has one segment per class that wins a pixel. InputError when the model returns neither.
    """
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        return ids.cpu().numpy(), [dict(segment) for segment in segments]
    if "sem_seg" not in result:
        raise InputError(
            "the model returns no map: set MODEL.MASK_FORMER.TEST.PANOPTIC_ON or SEMANTIC_ON to True"
        )
    classes = result["sem_seg"].argmax(dim=0).cpu().numpy()
    segments = [{"id": int(c) + 1, "category_id": int(c)} for c in np.unique(classes)]
    return (classes + 1).astype(np.int32), segments


def class_metadata(cfg: CfgNode) -> Metadata:
    """Names (`stuff_classes`), colours (`stuff_colors`) and ids of the model's C classes.

    Those of the first data set of DATASETS.TEST, then TRAIN, that this machine has; where none is named the
    classes are called by number.
    """
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not datasets:
        logger.warning("the configuration names no data set: classes are called by their numbers")
        return Metadata(stuff_classes=[f"class {c}" for c in range(count)], stuff_colors=class_colors(count))
    known = first_metadata(datasets)
    if len(known.get("stuff_classes") or ()) != count:
        raise InputError(
            f"data set {known.name} does not have the {count} classes of MODEL.SEM_SEG_HEAD.NUM_CLASSES; "
            "name one in DATASETS.TEST that has"
        )
    entries = known.as_dict()
    return Metadata(**{"stuff_colors": class_colors(count), **entries})

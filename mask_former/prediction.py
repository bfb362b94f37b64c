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

from mask_former.checkpoint import load_weights
from mask_former.data.catalog import class_colors, dataset_metadata
from mask_former.data.mappers import TestMapper
from mask_former.errors import InputError

logger = logging.getLogger(__name__)


class Predictor:
    """The configured model with its weights, at test resolution (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST)."""

    def __init__(self, cfg: CfgNode, weights: str | Path) -> None:
        """`weights`: a checkpoint of the configured architecture; cfg.MODEL.WEIGHTS is not looked at.

        InputError when the checkpoint is missing or unfit, or MODEL.DEVICE is not to be had. Entries of the
        model that the checkpoint lacks are named in a warning: they stay random.
        """
        _require_device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).eval()
        self.report = load_weights(self.model, weights)
        missing = [name for name in self.report.missing if not name.startswith("criterion.")]
        if missing:
            logger.warning(
                "%s lacks %d entries of the model, which stay random: %s ...",
                weights,
                len(missing),
                missing[0],
            )
        self.mapper = TestMapper.from_config(cfg)

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray) -> dict[str, Any]:
        """The model's result for a uint8 H×W×3 image, at the image's size, on the model's device.

        Keys as configured: `sem_seg` float C×H×W scores, `panoptic_seg` (int32 H×W ids, segments),
        `instances`. InputError when the image is too narrow to be resized.
        """
        height, width = rgb.shape[:2]
        resize = self.mapper.resize.get_transform(rgb)
        if min(getattr(resize, "new_h", 1), getattr(resize, "new_w", 1)) < 1:
            raise InputError(f"an image of {width}×{height} pixels is too narrow for this model")
        resized = resize.apply_image(rgb)
        if self.mapper.image_format == "BGR":
            resized = resized[..., ::-1]
        image = torch.from_numpy(np.array(resized.transpose(2, 0, 1), dtype=np.uint8, order="C"))
        return self.model([{"image": image, "height": height, "width": width}])[0]


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

    Those of the first data set of DATASETS.TEST, else TRAIN; without any the classes are called by number.
    """
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not datasets:
        logger.warning("the configuration names no data set: classes are called by their numbers")
        return Metadata(stuff_classes=[f"class {c}" for c in range(count)], stuff_colors=class_colors(count))
    known = dataset_metadata(datasets[0])
    if len(known.get("stuff_classes") or ()) != count:
        raise InputError(
            f"data set {datasets[0]} does not have the {count} classes of MODEL.SEM_SEG_HEAD.NUM_CLASSES; "
            "name one in DATASETS.TEST that has"
        )
    entries = known.as_dict()
    return Metadata(**{"stuff_colors": class_colors(count), **entries})

"""MaskFormer as a detectron2 meta-architecture: images in, losses or results out.

Shapes: B batch · Q queries · C classes · Hp Wp padded image size · H W predicted mask size (stride 4).
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.criterion import LossTotals, SetCriterion, weigh
from mask_former.data.catalog import require_same_classes, thing_ids
from mask_former.data.coco_panoptic import register_from_config
from mask_former.errors import InputError
from mask_former.frozen_norms import fold_frozen_norms
from mask_former.image_batch import image_batch
from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_inference_then_resize,
)
from mask_former.matcher import Target
from mask_former.predictor import Predictions
from mask_former.registries import CRITERION_REGISTRY, choose
from mask_former.resizing import Resizing
from mask_former.transfer import queued


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for semantic, panoptic and instance segmentation (arXiv 2107.06278)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        thing_ids: list[int],
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int = 32,
        semantic_on: bool = True,
        panoptic_on: bool = False,
        instance_on: bool = False,
        object_mask_threshold: float = 0.0,
        overlap_threshold: float = 0.0,
        resize_before_mixing: bool = False,
    ) -> None:
        """`thing_ids`: contiguous thing classes. `size_divisibility` ≤ 0: what the backbone asks for.

        `resize_before_mixing`: masks are brought to the requested size before classes are mixed.
        """
        super().__init__()
        self.backbone = fold_frozen_norms(backbone)
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.thing_ids = frozenset(thing_ids)
        self.size_divisibility = size_divisibility if size_divisibility > 0 else backbone.size_divisibility
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.resize_before_mixing = resize_before_mixing
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        test = cfg.MODEL.MASK_FORMER.TEST
        criterion_name = cfg.MODEL.MASK_FORMER.CRITERION_NAME
        criterion_class = choose(CRITERION_REGISTRY, criterion_name, "MODEL.MASK_FORMER.CRITERION_NAME")
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": criterion_class(cfg),
            "thing_ids": checked_thing_ids(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "semantic_on": test.SEMANTIC_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "resize_before_mixing": test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or test.PANOPTIC_ON
            or test.INSTANCE_ON,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def loss_totals(self, batched_inputs: Sequence[dict[str, Any]]) -> LossTotals:
        """What the losses of a batch divide by, from all samples that this process has of it.

        For a batch in several micro-batches, whose `forward` gets it; all processes call this together.
        """
        labels = [sample["instances"].gt_classes for sample in batched_inputs]
        head: Any = self.sem_seg_head
        return self.criterion.totals(labels, head.predictor.num_queries)

    def forward(
        self, batched_inputs: list[dict[str, Any]], totals: LossTotals | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Weighted losses by name in training, a result per image in evaluation.

        `totals`: of the whole batch, if these samples are not all that this process has of it.

        Each input has `image` (3×h×w, 0..255, in cfg.INPUT.FORMAT); in training also `instances` with
        `gt_classes` (int64) and `gt_masks` (bool n×h×w), n may be 0; in evaluation `height`, `width`: the
        size wanted, in pixels (default: the image's own).
        Results, each if switched on: `sem_seg` float C×height×width class scores; `panoptic_seg` (int32 id
        map, segments) as `panoptic_inference` gives; `instances`.
        """
        images = self.preprocess(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor), unpadded_sizes(batched_inputs, images))
        if self.training:
            targets = self.prepare_targets(batched_inputs, images)
            return weigh(self.criterion(outputs, targets, totals), self.criterion.weight_dict)
        return self.results(batched_inputs, images, outputs)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images in one batch, padded with zeros to a common size."""
        images = [sample["image"] for sample in batched_inputs]
        return image_batch(images, self.pixel_mean, self.pixel_std, self.size_divisibility)

    def prepare_targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[Target]:
        """Ground truth of every image with masks of the padded size; padding belongs to no mask."""
        height, width = images.tensor.shape[-2:]
        targets: list[Target] = []
        for sample in batched_inputs:
            instances = sample["instances"]
            masks, labels = (queued(each, self.device) for each in (instances.gt_masks, instances.gt_classes))
            right, bottom = width - masks.shape[-1], height - masks.shape[-2]
            if right or bottom:  # else there is nothing to copy
                masks = F.pad(masks, (0, right, 0, bottom))
            targets.append({"labels": labels, "masks": masks})
        return targets

    def results(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, outputs: Predictions
    ) -> list[dict[str, Any]]:
        """What evaluation asks for, image by image."""
        height, width = images.tensor.shape[-2:]
        results = []
        for i, (sample, image_size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            size = (sample.get("height", image_size[0]), sample.get("width", image_size[1]))
            resizing = Resizing((height, width), image_size, size)
            logits, masks = outputs["pred_logits"][i].float(), outputs["pred_masks"][i].float()
            results.append(self.image_result(logits, masks, resizing))
        return results

    def image_result(self, logits: Tensor, masks: Tensor, resizing: Resizing) -> dict[str, Any]:
        """Results of one image from class logits Q×(C+1) and mask logits Q×H×W as predicted."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            mix = semantic_inference if self.resize_before_mixing else semantic_inference_then_resize
            result["sem_seg"] = mix(logits, masks, resizing)
        if self.panoptic_on:
            thresholds = self.object_mask_threshold, self.overlap_threshold
            result["panoptic_seg"] = panoptic_inference(logits, masks, self.thing_ids, *thresholds, resizing)
        if self.instance_on:
            result["instances"] = instance_inference(logits, masks, self.thing_ids, resizing=resizing)
        return result


def unpadded_sizes(batched_inputs: list[dict[str, Any]], images: ImageList) -> list[tuple[int, int]]:
    """(height, width) of what each image shows: without the batch's padding, nor the training mapper's."""
    return [
        sample.get("unpadded_size", size)
        for sample, size in zip(batched_inputs, images.image_sizes, strict=True)
    ]


def checked_thing_ids(cfg: CfgNode) -> list[int]:
    """Thing classes of the data; InputError unless all data sets have the same NUM_CLASSES classes."""
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        return []
    register_from_config(cfg)
    metadata = require_same_classes(names)
    if len(metadata.stuff_classes) != num_classes:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but data set {metadata.name} has "
            f"{len(metadata.stuff_classes)} classes; set it to {len(metadata.stuff_classes)}"
        )
    return thing_ids(metadata)

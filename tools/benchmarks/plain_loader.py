"""The straightforward panoptic mapper, of what detectron2 offers: `mask_former.data` is measured against it.

Shape legend: H×W the image after augmentation and padding, n the segments that are left in it.
Files are read by Pillow, label and image resized by Pillow as a whole and cropped then, colours jittered by
detectron2, the image normalised as float32 on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional

Lap = Callable[[str], None]  # told the name of what has just been done


def no_lap(_: str) -> None:
    """Nobody takes the time."""


class PlainPanopticMapper:
    """Samples with a float image that is normalised; otherwise those of `mask_former.data.mappers`.

    masks_first: make the mask of every segment at the size of the file and take each through the
    augmentations, instead of the coded label.
    """

    def __init__(
        self,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        crop: tuple[str, Sequence[int]],
        color_jitter: bool,
        pad_divisor: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        masks_first: bool = False,
    ) -> None:
        steps: list[Any] = [
            T.ResizeShortestEdge(list(min_sizes), max_size, "choice"),
            T.RandomCrop(crop[0], tuple(crop[1])),
        ]
        if color_jitter:
            steps.append(ColorAugSSDTransform("RGB"))
        self.augmentations = T.AugmentationList([*steps, T.RandomFlip()])
        self.pad_divisor = pad_divisor
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (pixel_mean, pixel_std))
        self.masks_first = masks_first

    def __call__(self, record: Mapping[str, Any], lap: Lap = no_lap) -> dict[str, Any]:
        """The sample of a record: image float32 3×H×W, instances with gt_classes (n,) and gt_masks n×H×W."""
        pixels = read_image(record["file_name"], "RGB")
        lap("read image")
        label = read_image(record["pan_seg_file_name"], "RGB")
        lap("read label")
        augmented, transforms = T.AugInput(pixels), []
        for step in self.augmentations.augs:
            transforms.append(step(augmented))
            lap(type(transforms[-1]).__name__)
        segments = [segment for segment in record["segments_info"] if not segment.get("iscrowd", 0)]
        masks, classes = self._masks(label, segments, T.TransformList(transforms), lap)
        below, right = (-size % self.pad_divisor for size in augmented.image.shape[:2])
        targets = Instances((masks.shape[1] + below, masks.shape[2] + right))
        targets.gt_classes = torch.tensor(classes, dtype=torch.int64)
        targets.gt_masks = functional.pad(masks, (0, right, 0, below))
        lap("targets")
        image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        image = functional.pad(image, (0, right, 0, below), value=128)
        image = (image.float() - self.mean) / self.std
        lap("tensor")
        return {"image": image, "instances": targets}

    def _masks(
        self, label: np.ndarray, segments: Sequence[Mapping[str, Any]], transforms: T.TransformList, lap: Lap
    ) -> tuple[Tensor, list[int]]:
        """Masks n×h×w before the padding, and the class of each; segments without a pixel are left out."""
        if self.masks_first:
            ids = id_map(label)
            whole = [(ids == segment["id"]).astype(np.uint8) for segment in segments]
            masks = [transforms.apply_segmentation(mask).astype(bool) for mask in whole]
        else:
            label = transforms.apply_segmentation(label)
            lap("augment label")
            ids = id_map(label)
            masks = [ids == segment["id"] for segment in segments]
        present = [index for index, mask in enumerate(masks) if mask.any()]
        classes = [segments[index]["category_id"] for index in present]
        if not present:
            height, width = transforms.apply_segmentation(np.zeros(label.shape[:2], np.uint8)).shape
            return torch.zeros(0, height, width, dtype=torch.bool), classes
        tensors = [torch.from_numpy(np.ascontiguousarray(masks[index])) for index in present]
        return torch.stack(tensors), classes


def id_map(label: np.ndarray) -> np.ndarray:
    """int32 H×W of R + 256 G + 65536 B from a label's uint8 H×W×3."""
    wide = label.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]

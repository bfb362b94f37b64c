"""Whether a training batch is what the model can take, checked on the CPU with the file named.

On a GPU the same faults show as a "device-side assert" with no word of the file.

Shapes: n segments of an image · H×W its size.
"""

from collections.abc import Sequence
from typing import Any

import torch

from mask_former.errors import InputError


def check_samples(samples: Sequence[dict[str, Any]], num_classes: int) -> None:
    """InputError at the first sample whose image, classes or masks a model of `num_classes` cannot take."""
    for sample in samples:
        problem = _problem(sample, num_classes)
        if problem:
            where = sample.get("file_name", f"image {sample.get('image_id', '?')}")
            raise InputError(f"{where} (image id {sample.get('image_id', '?')}): {problem}")


def _problem(sample: dict[str, Any], num_classes: int) -> str | None:
    image, instances = sample["image"], sample["instances"]
    classes, masks = instances.gt_classes, instances.gt_masks
    if image.ndim != 3 or image.shape[0] != 3:
        return f"the image has shape {tuple(image.shape)} instead of 3×H×W; correct the mapper"
    if image.is_floating_point() and not image.isfinite().all():
        return "the image has values that are not finite; correct the file or the mapper"
    wrong = (classes < 0) | (classes >= num_classes)
    if wrong.any():
        return (
            f"segment {int(wrong.nonzero()[0])} has class {int(classes[wrong][0])}, but the model has "
            f"classes 0..{num_classes - 1}; correct the label or set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        )
    if masks.dtype != torch.bool or masks.shape != (len(classes), *image.shape[-2:]):
        return (
            f"gt_masks are {masks.dtype} of shape {tuple(masks.shape)}, but bool of "
            f"{(len(classes), *image.shape[-2:])} is wanted; correct the mapper"
        )
    return None

"""Images of a micro-batch as the network takes them: on its device, normalised, padded to one size.

Shapes: B batch · h w size of one image · Hp Wp size of the batch, at least every h and w.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import ImageList
from torch import Tensor


def image_batch(images: Sequence[Tensor], mean: Tensor, std: Tensor, size_divisibility: int = 0) -> ImageList:
    """(image − mean) / std of 3×h×w `images`, padded with zeros on the right and below to B×3×Hp×Wp.

    `mean`, `std`: 3×1×1, on the device that the batch is wanted on. Hp and Wp are multiples of
    `size_divisibility` where that is above 1. Images cross to a GPU as they are, usually uint8, in one copy
    that the host does not wait for.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (padded_side(max(sides), size_divisibility) for sides in zip(*sizes, strict=True))
    packed = torch.empty(
        (len(images), images[0].shape[0], height, width),
        dtype=images[0].dtype if len({image.dtype for image in images}) == 1 else torch.float32,
        device=images[0].device,
        pin_memory=images[0].device.type == "cpu" and mean.device.type == "cuda",
    )
    for place, image, (h, w) in zip(packed, images, sizes, strict=True):
        place[:, :h, :w] = image
    batch = (packed.to(mean.device, non_blocking=True) - mean).div_(std)
    for place, (h, w) in zip(batch, sizes, strict=True):  # what lies beside an image is zero now, not before
        if h < height:
            place[:, h:] = 0
        if w < width:
            place[:, :h, w:] = 0
    return ImageList(batch, sizes)


def padded_side(side: int, divisibility: int) -> int:
    """`side`, or the next multiple of `divisibility` (1 or less: any number is one)."""
    return side if divisibility <= 1 else -(-side // divisibility) * divisibility

"""Resizing an image and its label together, with no more work than a crop of the result needs.

Shape legend: h×w the size before, new_h×new_w after.
"""

import math

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform
from torch.nn import functional

from mask_former.errors import InputError


class AlignedResize(Transform):
    """Resize h×w to new_h×new_w and keep `crop` of that, or all; most of what is not kept is never computed.

    Images are resized as detectron2 does it, bilinear with antialiasing, but by PyTorch, which is faster than
    Pillow and rounds some values the other way (1 of 255 at most). Labels take the pixel under a new pixel's
    centre. (detectron2 resizes labels other than uint8 from the corner of the pixel, half a pixel off the
    image.)
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, crop: CropTransform | None = None) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.crop = crop or CropTransform(0, 0, new_w, new_h)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """uint8 H×W×3."""
        crop = self.crop
        rows, height, top = _source(crop.y0, crop.h, self.h, self.new_h)
        columns, width, left = _source(crop.x0, crop.w, self.w, self.new_w)
        channels_first = torch.from_numpy(np.ascontiguousarray(img[None, rows, columns])).permute(0, 3, 1, 2)
        resized = functional.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
        return resized[0, :, top : top + crop.h, left : left + crop.w].permute(1, 2, 0).numpy()

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        rows = _centres(self.crop.y0, self.crop.h, self.h / self.new_h)
        columns = _centres(self.crop.x0, self.crop.w, self.w / self.new_w)
        return segmentation.take(rows, axis=0).take(columns, axis=1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.crop.apply_coords(coords * (self.new_w / self.w, self.new_h / self.h))


def _centres(start: int, length: int, scale: float) -> np.ndarray:
    """The old pixels under the centres of `length` new ones from `start` on."""
    return ((np.arange(start, start + length) + 0.5) * scale).astype(np.int64)


def _source(start: int, length: int, old: int, new: int) -> tuple[slice, int, int]:
    """What of a side of `old` pixels its resize to `new` needs for `length` pixels from `start` on.

    Returns the slice of old pixels, the size it is resized to, and where `start` lies in that. By itself it
    becomes the same as within the whole, for it begins and ends where old and new pixels both do.
    """
    parts = math.gcd(old, new)
    old_part, new_part = old // parts, new // parts
    reach = math.ceil(max(old / new, 1)) + 1  # of the kernel, in old pixels
    first = max(0, start * old // new - reach) // old_part
    last = min(parts, math.ceil(((start + length) * old // new + 1 + reach) / old_part))
    return slice(first * old_part, last * old_part), (last - first) * new_part, start - first * new_part


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's ResizeShortestEdge with labels that stay aligned with the image."""

    def get_transform(self, image: np.ndarray) -> Transform:
        resize = super().get_transform(image)
        if isinstance(resize, NoOpTransform):
            return resize
        require_pixels(resize, image)
        return AlignedResize(resize.h, resize.w, resize.new_h, resize.new_w)


def require_pixels(resize: Transform, image: np.ndarray) -> None:
    """InputError when nothing would be left of the image."""
    if min(getattr(resize, "new_h", 1), getattr(resize, "new_w", 1)) < 1:
        height, width = image.shape[:2]
        raise InputError(f"an image of {width}×{height} pixels is too narrow to be resized; crop it")

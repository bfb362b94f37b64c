"""Augmentations of an image together with its segments, on top of detectron2's.

The label travels as one H×W map of segment indices (`SegmentMap.index`), in the place detectron2 calls
"sem_seg"; masks are built from it after the last step, so that what costs memory is made once, at the final
size. What a crop drops is not resized before.
"""

import random
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, PadTransform, Transform

from mask_former.data.resize import AlignedResize, ResizeShortestEdge
from mask_former.data.segments import VOID_INDEX, SegmentMap
from mask_former.errors import InputError

IMAGE_PAD_VALUE = 128  # mid grey
CROP_TRIES = 10
DETR_SIZES_BEFORE_CROP = (400, 500, 600)
LEVELS = np.arange(256, dtype=np.uint8)

Step: TypeAlias = T.Augmentation | Transform


class SegmentInput(T.AugInput):
    """An image (uint8 H×W×3), its segment index map, and the segments' classes for augmentations to read."""

    def __init__(self, image: np.ndarray, segments: SegmentMap) -> None:
        super().__init__(image, sem_seg=segments.index)
        self.segment_classes = segments.classes


class CategoryAreaCrop(T.Augmentation):
    """Random crop with two classes or more, none of which covers `max_area` or more of the labelled pixels.

    The last of ten tries is taken as it is. Same rule as detectron2's RandomCrop_CategoryAreaConstraint,
    which wants a class map; the classes of the segments are added up here instead. The crop depends on the
    size of `image` alone, not on its pixels.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float], max_area: float) -> None:
        super().__init__()
        self.crop = T.RandomCrop(crop_type, tuple(crop_size))
        self.max_area = max_area

    def get_transform(
        self, image: np.ndarray, sem_seg: np.ndarray, segment_classes: np.ndarray
    ) -> CropTransform:
        for _ in range(CROP_TRIES):
            crop = self.crop.get_transform(image)
            pixels = np.bincount(crop.apply_segmentation(sem_seg).ravel(), minlength=len(segment_classes) + 1)
            areas = np.bincount(segment_classes, weights=pixels[VOID_INDEX + 1 :])
            if np.count_nonzero(areas) > 1 and areas.max() < areas.sum() * self.max_area:
                break
        return crop


class ResizeAndCrop(T.Augmentation):
    """One after the other, drawn in this order and done at once."""

    def __init__(self, resize: ResizeShortestEdge, crop: T.RandomCrop | CategoryAreaCrop) -> None:
        super().__init__()
        self.resize, self.crop = resize, crop

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray, segment_classes: np.ndarray) -> Transform:
        resize = self.resize.get_transform(image)
        if isinstance(self.crop, CategoryAreaCrop):
            label = resize.apply_segmentation(sem_seg)
            crop = self.crop.get_transform(label, label, segment_classes)
        else:
            size = (resize.new_h, resize.new_w) if isinstance(resize, AlignedResize) else image.shape[:2]
            crop = self.crop.get_transform(np.broadcast_to(LEVELS[0], size))  # reads the size only
        if isinstance(resize, NoOpTransform):
            return crop
        return AlignedResize(resize.h, resize.w, resize.new_h, resize.new_w, crop)


class ColorJitter(ColorAugSSDTransform):
    """detectron2's colour jitter of RGB images, value for value, from tables instead of computed by pixel."""

    def __init__(self) -> None:
        super().__init__("BGR")  # it shall not swap channels: what follows takes them as RGB

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return cv2.LUT(img, super().convert(LEVELS, alpha, beta))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        factor = random.uniform(self.saturation_low, self.saturation_high)
        return _change_hsv(img, 1, super().convert(LEVELS, alpha=factor))

    def hue(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        shift = random.randint(-self.hue_delta, self.hue_delta)
        return _change_hsv(img, 0, ((LEVELS.astype(int) + shift) % 180).astype(np.uint8))


def _change_hsv(rgb: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """The image with one channel of its hue, saturation and value replaced by what the table says of it."""
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


class RandomFlip(T.RandomFlip):
    """detectron2's RandomFlip; left and right are exchanged by OpenCV, not in a view that is slow to read."""

    def get_transform(self, image: np.ndarray) -> Transform:
        flip = super().get_transform(image)
        return Mirror(flip.width) if isinstance(flip, HFlipTransform) else flip


class Mirror(HFlipTransform):
    """Left becomes right."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.flip(img, 1) if img.dtype == np.uint8 else super().apply_image(img)


class PadToMultiple(T.Augmentation):
    """Pad right and bottom to a multiple of `divisor` pixels: the image with grey, the label with void."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        below, right = -height % self.divisor, -width % self.divisor
        if not below and not right:
            return NoOpTransform()
        return PadTransform(0, 0, right, below, width, height, IMAGE_PAD_VALUE, VOID_INDEX)


def size_before_padding(transforms: T.TransformList, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image before a padding that came last; `size`, that after all, without one."""
    last = transforms.transforms[-1] if transforms.transforms else None
    return (last.orig_h, last.orig_w) if isinstance(last, PadTransform) else size


def crop_augmentations(
    *,
    min_sizes: Sequence[int],
    max_size: int,
    sampling: str,
    crop: tuple[str, Sequence[float]] | None,
    single_category_max_area: float,
    color_jitter: bool,
    flip: str,
    pad_divisor: int,
) -> list[Step]:
    """MaskFormer's training augmentation: resize, crop, colour jitter of SSD, flip, padding.

    crop: detectron2's (type, size), None for no crop; larger than the image it is the whole image. sampling:
    "choice" or "range" of min_sizes. flip: as INPUT.RANDOM_FLIP. pad_divisor: 0 or less for no padding.
    """
    resize = ResizeShortestEdge(list(min_sizes), max_size, sampling)
    augmentations: list[Step] = [resize]
    if crop is not None and single_category_max_area < 1.0:
        augmentations = [ResizeAndCrop(resize, CategoryAreaCrop(*crop, single_category_max_area))]
    elif crop is not None:
        augmentations = [ResizeAndCrop(resize, T.RandomCrop(crop[0], tuple(crop[1])))]
    if color_jitter:
        # brightness ±32, contrast and saturation ×0.5..1.5, hue ±18, each with probability 1/2
        augmentations.append(ColorJitter())
    augmentations += flip_augmentations(flip)
    if pad_divisor > 0:
        augmentations.append(PadToMultiple(pad_divisor))
    return augmentations


def detr_augmentations(
    *,
    min_sizes: Sequence[int],
    max_size: int,
    sampling: str,
    crop: tuple[str, Sequence[float]] | None,
    flip: str,
) -> list[Step]:
    """DETR's training augmentation: flip; half of the time a crop of a smaller copy; resize. No padding."""
    augmentations = flip_augmentations(flip)
    if crop is not None:
        smaller = ResizeShortestEdge(list(DETR_SIZES_BEFORE_CROP), sample_style="choice")
        cropping = ResizeAndCrop(smaller, T.RandomCrop(crop[0], tuple(crop[1])))
        augmentations.append(T.RandomApply(cropping, prob=0.5))
    return [*augmentations, ResizeShortestEdge(list(min_sizes), max_size, sampling)]


def flip_augmentations(flip: str) -> list[Step]:
    """INPUT.RANDOM_FLIP as augmentations: "horizontal", "vertical" (each with probability 1/2) or "none"."""
    kinds = {"horizontal": (True, False), "vertical": (False, True)}
    if flip == "none":
        return []
    if flip not in kinds:
        raise InputError(f"INPUT.RANDOM_FLIP is {flip!r}, but must be one of {', '.join([*kinds, 'none'])}")
    horizontal, vertical = kinds[flip]
    return [RandomFlip(horizontal=horizontal, vertical=vertical)]

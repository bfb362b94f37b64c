import random

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import NoOpTransform

from mask_former.data.augmentations import (
    CROP_TRIES,
    CategoryAreaCrop,
    ColorJitter,
    PadToMultiple,
    RandomFlip,
    ResizeAndCrop,
    SegmentInput,
    crop_augmentations,
    detr_augmentations,
    flip_augmentations,
)
from mask_former.data.resize import AlignedResize, ResizeShortestEdge
from mask_former.data.segments import SegmentMap
from mask_former.errors import InputError


def image_of(height: int, width: int, value: int = 50) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def area_crop(index: np.ndarray, classes: list[int], max_area: float, monkeypatch) -> tuple[np.ndarray, int]:
    """The label in the crop of 4 columns that is chosen, and the number of crops tried."""
    augmentation = CategoryAreaCrop("absolute", (1, 4), max_area)
    tried = []
    original = augmentation.crop.get_transform
    monkeypatch.setattr(augmentation.crop, "get_transform", lambda image: tried.append(1) or original(image))
    augmented = SegmentInput(image_of(*index.shape), SegmentMap(index, np.array(classes, np.int64)))
    augmentation(augmented)
    return augmented.sem_seg[0], len(tried)


def test_area_crop_finds_the_window_with_two_classes(monkeypatch):
    np.random.seed(0)
    index = np.array([[1] * 4 + [2] * 4], np.int32)
    for _ in range(10):
        window, _ = area_crop(index, [0, 1], 0.8, monkeypatch)
        assert 1 <= (window == 1).sum() <= 3  # a quarter at least of each: three of the five windows


def test_area_crop_adds_up_segments_of_one_class(monkeypatch):
    index = np.array([[1, 2] * 6], np.int32)  # two segments, but one class: no window can be right
    assert area_crop(index, [7, 7], 0.8, monkeypatch)[1] == CROP_TRIES
    assert area_crop(index, [7, 8], 0.8, monkeypatch)[1] == 1


def test_area_crop_does_not_count_void(monkeypatch):
    index = np.array([[0, 0, 1, 2]], np.int32)
    assert area_crop(index, [0, 1], 0.6, monkeypatch)[1] == 1  # half and half of what is labelled
    assert area_crop(index * 0, [], 0.6, monkeypatch)[1] == CROP_TRIES


def test_padding_is_grey_and_void_at_the_right_and_the_bottom():
    augmented = SegmentInput(image_of(3, 5), SegmentMap(np.ones((3, 5), np.int32), np.zeros(1, np.int64)))
    PadToMultiple(4)(augmented)
    assert augmented.image.shape == (4, 8, 3) and augmented.sem_seg.shape == (4, 8)
    assert (augmented.image[:3, :5] == 50).all() and (augmented.sem_seg[:3, :5] == 1).all()
    assert (augmented.image[3:] == 128).all() and (augmented.image[:, 5:] == 128).all()
    assert augmented.sem_seg.sum() == 15
    assert isinstance(PadToMultiple(4).get_transform(image_of(8, 4)), NoOpTransform)


def steps(**changes) -> list[T.Augmentation]:
    arguments = {
        "min_sizes": [8],
        "max_size": 100,
        "sampling": "choice",
        "crop": ("absolute", (8, 8)),
        "single_category_max_area": 1.0,
        "color_jitter": True,
        "flip": "horizontal",
        "pad_divisor": 16,
    }
    return crop_augmentations(**{**arguments, **changes})


def names(augmentations: list) -> list[str]:
    return [type(step).__name__ for step in augmentations]


def test_steps_and_their_order():
    assert names(steps()) == ["ResizeAndCrop", "ColorJitter", "RandomFlip", "PadToMultiple"]
    assert type(steps()[0].crop) is T.RandomCrop
    by_area = steps(single_category_max_area=0.75)
    assert names(by_area) == names(steps())
    assert type(by_area[0].crop) is CategoryAreaCrop and by_area[0].crop.max_area == 0.75
    assert names(steps(crop=None, color_jitter=False, flip="none", pad_divisor=-1)) == ["ResizeShortestEdge"]


def test_resize_and_crop_at_once_draw_and_give_what_they_give_one_after_the_other():
    pixels = np.random.default_rng(0)
    image = pixels.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    segments = SegmentMap(
        pixels.integers(0, 4, (5, 7), dtype=np.uint8).repeat(10, 0).repeat(10, 1), np.array([3, 3, 8])
    )
    resize = ResizeShortestEdge([0, 30, 61, 80], 200, "choice")
    for crop in (T.RandomCrop("absolute", (32, 20)), CategoryAreaCrop("absolute_range", (9, 20), 0.7)):
        one_by_one = T.AugmentationList([resize, crop])
        at_once = T.AugmentationList([ResizeAndCrop(resize, crop)])
        for seed in range(20):
            results, following = [], []
            for augmentations in (one_by_one, at_once):
                np.random.seed(seed)
                augmented = SegmentInput(image, segments)
                augmentations(augmented)
                results.append(augmented)
                following.append(np.random.rand())
            np.testing.assert_array_equal(results[0].image, results[1].image)
            np.testing.assert_array_equal(results[0].sem_seg, results[1].sem_seg)
            assert following[0] == following[1]


def test_a_crop_larger_than_the_image_is_the_image():
    augmented = SegmentInput(image_of(8, 6), SegmentMap(np.zeros((8, 6), np.int32), np.zeros(0, np.int64)))
    T.AugmentationList(steps(crop=("absolute", (640, 640)), min_sizes=[0]))(augmented)
    assert augmented.image.shape == (16, 16, 3)


@pytest.mark.parametrize("seed", range(24))
def test_colour_jitter_is_detectron2_s_value_for_value(seed):
    image = np.random.default_rng(seed).integers(0, 256, (41, 37, 3), dtype=np.uint8)[:, 3:]
    jittered = []
    for jitter in (ColorAugSSDTransform("RGB"), ColorJitter()):
        random.seed(seed)
        jittered.append((jitter.apply_image(image), random.random()))
    np.testing.assert_array_equal(jittered[0][0], jittered[1][0])
    assert jittered[0][1] == jittered[1][1]  # and both drew as much


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_flips_exchange_left_and_right_of_image_and_label(dtype):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    label = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], dtype)
    augmented = SegmentInput(image, SegmentMap(label, np.arange(7)))
    RandomFlip(prob=1.0)(augmented)
    np.testing.assert_array_equal(augmented.image, image[:, ::-1])
    np.testing.assert_array_equal(augmented.sem_seg, [[3, 2, 1, 0], [7, 6, 5, 4]])
    assert augmented.sem_seg.dtype == dtype


def test_colour_jitter_changes_the_image_only():
    np.random.seed(0)
    label = np.arange(64, dtype=np.int32).reshape(8, 8) % 3
    changed = 0
    for _ in range(8):
        augmented = SegmentInput(image_of(8, 8, 90), SegmentMap(label, np.zeros(2, np.int64)))
        T.AugmentationList(steps(crop=None, flip="none", min_sizes=[0], pad_divisor=0))(augmented)
        np.testing.assert_array_equal(augmented.sem_seg, label)
        assert augmented.image.dtype == np.uint8
        changed += not (augmented.image == 90).all()
    assert changed >= 4


def test_detr_crops_a_smaller_copy_half_of_the_time():
    np.random.seed(0)
    augmentations = detr_augmentations(
        min_sizes=[16], max_size=40, sampling="choice", crop=("absolute_range", (8, 12)), flip="horizontal"
    )
    assert names(augmentations) == ["RandomFlip", "RandomApply", "ResizeShortestEdge"]
    cropped = 0
    for _ in range(60):
        augmented = SegmentInput(
            image_of(8, 8), SegmentMap(np.zeros((8, 8), np.int32), np.zeros(0, np.int64))
        )
        transforms = T.AugmentationList(augmentations)(augmented)
        *before, resize = (step for step in transforms.transforms if isinstance(step, AlignedResize))
        cropped += len(before)
        assert all(8 <= size <= 12 for step in before for size in (step.crop.w, step.crop.h))
        assert (resize.crop.w, resize.crop.h) == (resize.new_w, resize.new_h)
        assert min(augmented.image.shape[:2]) == 16 and augmented.sem_seg.shape == augmented.image.shape[:2]
    assert 18 <= cropped <= 42


def test_detr_without_crop_and_flip_only_resizes():
    augmentations = detr_augmentations(min_sizes=[16], max_size=40, sampling="choice", crop=None, flip="none")
    assert names(augmentations) == ["ResizeShortestEdge"]


def test_an_unknown_flip_lists_the_valid_ones():
    assert flip_augmentations("vertical")[0].vertical
    with pytest.raises(InputError, match="'both', but must be one of horizontal, vertical, none"):
        flip_augmentations("both")

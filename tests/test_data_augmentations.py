import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform
from PIL import Image

from mask_former.data.augmentations import (
    CROP_TRIES,
    AlignedResize,
    CategoryAreaCrop,
    PadToMultiple,
    ResizeShortestEdge,
    SegmentInput,
    crop_augmentations,
    detr_augmentations,
    flip_augmentations,
)
from mask_former.data.segments import SegmentMap
from mask_former.errors import InputError


def image_of(height: int, width: int, value: int = 50) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_labels_take_the_pixel_under_the_centre():
    label = np.array([[0, 1, 70000]], np.int32)
    # centres of four new pixels in the old row of three: 0.375, 1.125, 1.875, 2.625
    resized = AlignedResize(1, 3, 2, 4).apply_segmentation(label)
    np.testing.assert_array_equal(resized, [[0, 1, 1, 70000]] * 2)
    assert resized.dtype == np.int32
    np.testing.assert_array_equal(AlignedResize(1, 3, 1, 1).apply_segmentation(label), [[1]])


def test_labels_agree_with_pillow_where_it_can_resize_them():
    label = np.random.default_rng(0).integers(0, 200, (17, 23), dtype=np.uint8)
    for height, width in ((31, 50), (11, 7)):  # no centre falls on the border of two pixels
        theirs = Image.fromarray(label).resize((width, height), Image.NEAREST)
        ours = AlignedResize(17, 23, height, width).apply_segmentation(label.astype(np.int32))
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_shortest_edge_of_zero_leaves_the_image():
    assert isinstance(ResizeShortestEdge(0, 100, "choice").get_transform(image_of(3, 4)), NoOpTransform)
    resize = ResizeShortestEdge([6], 100, "choice").get_transform(image_of(3, 4))
    assert isinstance(resize, AlignedResize) and (resize.new_h, resize.new_w) == (6, 8)


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
    jitter_flip_pad = ["ColorAugSSDTransform", "RandomFlip", "PadToMultiple"]
    assert names(steps()) == ["ResizeShortestEdge", "RandomCrop", *jitter_flip_pad]
    assert names(steps(single_category_max_area=0.75)) == [
        "ResizeShortestEdge",
        "CategoryAreaCrop",
        *jitter_flip_pad,
    ]
    assert names(steps(crop=None, color_jitter=False, flip="none", pad_divisor=-1)) == ["ResizeShortestEdge"]


def test_a_crop_larger_than_the_image_is_the_image():
    augmented = SegmentInput(image_of(8, 6), SegmentMap(np.zeros((8, 6), np.int32), np.zeros(0, np.int64)))
    T.AugmentationList(steps(crop=("absolute", (640, 640)), min_sizes=[0]))(augmented)
    assert augmented.image.shape == (16, 16, 3)


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
        crops = [step for step in transforms.transforms if isinstance(step, CropTransform)]
        cropped += len(crops)
        assert all(8 <= size <= 12 for crop in crops for size in (crop.w, crop.h))
        assert min(augmented.image.shape[:2]) == 16 and augmented.sem_seg.shape == augmented.image.shape[:2]
    assert 18 <= cropped <= 42


def test_detr_without_crop_and_flip_only_resizes():
    augmentations = detr_augmentations(min_sizes=[16], max_size=40, sampling="choice", crop=None, flip="none")
    assert names(augmentations) == ["ResizeShortestEdge"]


def test_an_unknown_flip_lists_the_valid_ones():
    assert flip_augmentations("vertical")[0].vertical
    with pytest.raises(InputError, match="'both', but must be one of horizontal, vertical, none"):
        flip_augmentations("both")

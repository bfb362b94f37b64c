import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform
from PIL import Image

from mask_former.data.resize import AlignedResize, ResizeShortestEdge
from mask_former.errors import InputError
from tests.real_data import real_data


def noise(*shape: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, shape, dtype=np.uint8)


def test_labels_take_the_pixel_under_the_centre():
    label = np.array([[0, 1, 70000]], np.int32)
    # centres of four new pixels in the old row of three: 0.375, 1.125, 1.875, 2.625
    resized = AlignedResize(1, 3, 2, 4).apply_segmentation(label)
    np.testing.assert_array_equal(resized, [[0, 1, 1, 70000]] * 2)
    assert resized.dtype == np.int32
    np.testing.assert_array_equal(AlignedResize(1, 3, 1, 1).apply_segmentation(label), [[1]])


def test_labels_agree_with_pillow_where_it_can_resize_them():
    label = noise(17, 23, most=200)
    for height, width in ((31, 50), (11, 7)):  # no centre falls on the border of two pixels
        theirs = Image.fromarray(label).resize((width, height), Image.NEAREST)
        ours = AlignedResize(17, 23, height, width).apply_segmentation(label.astype(np.int32))
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_coordinates_are_scaled_and_then_cropped():
    resize = AlignedResize(10, 20, 30, 40, CropTransform(5, 7, 8, 9))
    given = np.array([[1.0, 2.0], [20.0, 10.0]])
    np.testing.assert_allclose(resize.apply_coords(given), [[-3, -1], [35, 23]])
    np.testing.assert_array_equal(given, [[1, 2], [20, 10]])


SIZES = [  # old and new height and width
    (512, 683, 1280, 1708),
    (512, 683, 320, 427),  # smaller
    (427, 640, 960, 1439),  # heights without a common divisor
    (300, 40, 60, 8),  # a fifth
    (64, 64, 64, 96),  # one side stays
    (1, 5, 7, 35),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_images_differ_from_pillow_s_by_one_of_255_in_few_values(sizes):
    few = 0.15 if sizes == (300, 40, 60, 8) else 0.01  # a whole factor has many means that end in a half
    height, width, new_height, new_width = sizes
    image = noise(height, width, 3)
    theirs = T.ResizeTransform(*sizes, Image.BILINEAR).apply_image(image)
    ours = AlignedResize(*sizes).apply_image(image)
    assert ours.dtype == np.uint8 and ours.shape == (new_height, new_width, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < few


@pytest.mark.parametrize("sizes", SIZES)
def test_a_crop_is_the_crop_of_the_whole(sizes):
    height, width, new_height, new_width = sizes
    image, label = noise(height, width, 3), noise(height, width)
    image = image[:, ::-1]  # as a flip leaves it
    whole = AlignedResize(*sizes)
    image_whole, label_whole = whole.apply_image(image), whole.apply_segmentation(label)
    random = np.random.default_rng(0)
    for _ in range(12):
        h, w = random.integers(1, (new_height + 1, new_width + 1))
        y, x = random.integers(0, (new_height - h + 1, new_width - w + 1))
        part = AlignedResize(*sizes, CropTransform(x, y, w, h))
        expected = image_whole[y : y + h, x : x + w]
        np.testing.assert_array_equal(part.apply_image(image), expected)
        np.testing.assert_array_equal(part.apply_segmentation(label), label_whole[y : y + h, x : x + w])


def test_photographs_differ_from_pillow_s_by_one_of_255_in_few_values():
    for path in sorted(real_data("coco", "val2017").glob("*.jpg"))[:3]:
        image = np.array(Image.open(path).convert("RGB"))
        for side in (320, 640, 832):
            resize = T.ResizeShortestEdge([side], 2560, "choice").get_transform(image)
            ours = AlignedResize(resize.h, resize.w, resize.new_h, resize.new_w).apply_image(image)
            difference = np.abs(ours.astype(int) - resize.apply_image(image))
            assert difference.max() <= 1 and (difference > 0).mean() < 0.01, (path.name, side)


def test_shortest_edge_of_zero_leaves_the_image():
    image = noise(3, 4, 3)
    assert isinstance(ResizeShortestEdge(0, 100, "choice").get_transform(image), NoOpTransform)
    resize = ResizeShortestEdge([6], 100, "choice").get_transform(image)
    assert isinstance(resize, AlignedResize) and (resize.new_h, resize.new_w) == (6, 8)


def test_an_image_that_nothing_would_be_left_of_is_refused():
    with pytest.raises(InputError, match="an image of 900×1 pixels is too narrow to be resized; crop it"):
        ResizeShortestEdge([32], 100, "choice").get_transform(noise(1, 900, 3))

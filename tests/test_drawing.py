"""The panoptic picture: what is painted, which shades, and where labels may stand."""

import itertools

import numpy as np
import pytest

from mask_former.drawing import draw_panoptic, label_text, place_labels, segment_colors

NAMES = ["sky", "cat"]
COLORS = [[0, 0, 200], [200, 40, 40]]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def segments(**class_of_id: int) -> list[dict]:
    return [{"id": int(key[1:]), "category_id": category} for key, category in class_of_id.items()]


def test_colours_are_blended_and_void_is_left_alone():
    ids = np.zeros((8, 40), np.int32)
    ids[:, :20] = 7
    picture = draw_panoptic(grey(8, 40), ids, segments(_7=0), ["x" * 50, "cat"], COLORS, alpha=0.25)
    assert picture.dtype == np.uint8 and picture.shape == (8, 40, 3)
    assert picture[4, 5].tolist() == [75, 75, 125], "3/4 of the image and 1/4 of the colour"
    assert picture[4, 35].tolist() == [100, 100, 100]
    assert picture[4, 20].tolist() == [224, 224, 224], "a line between them"
    assert picture[4, 22:].tolist() == [[100] * 3] * 18


def test_unlisted_ids_are_treated_as_void():
    ids = np.full((8, 8), 3, np.int32)
    assert np.array_equal(draw_panoptic(grey(8, 8), ids, [], NAMES, COLORS), grey(8, 8))


def test_input_is_not_changed():
    image, ids = grey(40, 90), np.ones((40, 90), np.int32)
    picture = draw_panoptic(image, ids, segments(_1=1), NAMES, COLORS)
    assert np.array_equal(image, grey(40, 90)) and np.all(ids == 1)
    assert not np.array_equal(picture, image)


def test_instances_of_a_class_get_distinct_shades_and_the_first_keeps_its_colour():
    shades = segment_colors([0, 1, 1, 0, *[1] * 20], COLORS)
    assert shades[:2] == [tuple(COLORS[0]), tuple(COLORS[1])]
    assert len(set(shades)) == len(shades)
    cats = [shade for shade, category in zip(shades, [0, 1, 1, 0, *[1] * 20], strict=True) if category == 1]
    assert all(red > max(green, blue) for red, green, blue in cats), "a red class stays red"
    for first, second in itertools.pairwise(cats):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 30, "neighbours differ visibly"


def test_grey_class_colour_has_shades_too():
    assert len(set(segment_colors([0] * 8, [[128, 128, 128]]))) == 8


def overlapping(first: tuple, second: tuple) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def test_label_stands_inside_the_largest_component():
    index = np.full((100, 200), -1, np.int32)
    index[10:60, 20:120] = 0
    index[80:95, 150:195] = 0  # a smaller part of the same segment
    (label,) = place_labels(index, ["cat"])
    left, top, right, bottom = label.box
    assert 20 <= left < right <= 120 and 10 <= top < bottom <= 60
    assert abs((top + bottom) / 2 - 35) <= 2, "half way up"


def test_labels_neither_overlap_nor_leave_the_image():
    rng = np.random.default_rng(0)
    index = np.kron(rng.permutation(200).reshape(10, 20), np.ones((24, 32), np.int64)).astype(np.int32)
    labels = place_labels(index, [f"category {number}" for number in range(200)])
    assert len(labels) > 60
    for label in labels:
        assert 0 <= label.box[0] < label.box[2] <= 640 and 0 <= label.box[1] < label.box[3] <= 240
    for first, second in itertools.combinations(labels, 2):
        assert not overlapping(first.box, second.box)


def test_a_label_makes_way_for_one_with_less_room():
    index = np.zeros((120, 400), np.int32)
    index[50:70, 180:220] = 1
    large, small = sorted(place_labels(index, ["sky", "cat"]), key=lambda label: label.segment)
    assert 170 <= small.box[0] < small.box[2] <= 230
    assert not overlapping(large.box, small.box)


def test_segments_too_small_get_no_label_and_texts_too_long_are_shortened():
    index = np.zeros((100, 100), np.int32)
    index[50, 50] = 1
    assert [label.segment for label in place_labels(index, ["sky", "cat"])] == [0]
    (short,) = place_labels(index, ["s" * 200, "cat"])
    assert short.text[0] == "s" and short.text[-1] == "…" and 5 < len(short.text) < 40
    assert 0 <= short.box[0] < short.box[2] <= 100, "as much as there is room for"
    assert short.box[2] - short.box[0] > 85
    assert place_labels(np.zeros((100, 8), np.int32), ["s" * 200]) == [], "no room for a letter"


@pytest.mark.parametrize("text", ["猫 и кошка", "🐈", "a\nb", "", "\ud800", "قطة"])
def test_any_text_can_be_drawn(text):
    picture = draw_panoptic(grey(60, 120), np.ones((60, 120), np.int32), segments(_1=0), [text], COLORS)
    assert picture.shape == (60, 120, 3)


def test_label_text():
    assert label_text("traffic\n light ", 0.934) == "traffic light 93%"
    assert label_text("cat") == "cat"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 3)])
def test_tiny_images(size):
    picture = draw_panoptic(grey(*size), np.ones(size, np.int32), segments(_1=0), NAMES, COLORS)
    assert picture[0, 0].tolist() == [50, 50, 150]


def test_segment_without_pixels_and_score():
    listed = [*segments(_1=0, _2=1), {"id": 3, "category_id": 1, "score": 0.5}]
    ids = np.ones((50, 100), np.int32)
    ids[:, 60:] = 3
    scored = draw_panoptic(grey(50, 100), ids, listed, NAMES, COLORS)
    unscored = draw_panoptic(grey(50, 100), ids, [*listed[:2], {"id": 3, "category_id": 1}], NAMES, COLORS)
    assert not np.array_equal(scored, unscored)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="uint8 image"):
        draw_panoptic(grey(4, 5), np.zeros((4, 4), np.int32), [], NAMES, COLORS)
    with pytest.raises(ValueError, match="float64"):
        draw_panoptic(grey(4, 4).astype(float), np.zeros((4, 4), np.int32), [], NAMES, COLORS)

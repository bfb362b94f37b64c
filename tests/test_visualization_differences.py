"""Where two panoptic maps disagree, by hand."""

import numpy as np

from pisr_maskformer.visualization.differences import (
    PanopticMap,
    difference_boxes,
    disagreement,
    matched_segments,
)

SKY, CAT, DOG = range(3)
THINGS = [CAT, DOG]


def panoptic(ids, **class_of_id):
    segments = [{"id": int(key[1:]), "category_id": value} for key, value in class_of_id.items()]
    return PanopticMap(np.array(ids, dtype=np.int32), segments)


def test_positions_follow_the_list_and_unlisted_ids_are_void():
    found = panoptic([[0, 9, 70000], [5, 9, 4]], _70000=CAT, _9=SKY, _4=DOG)
    assert found.positions().tolist() == [[0, 2, 1], [0, 2, 3]]
    assert found.classes().tolist() == [-1, CAT, SKY, DOG]


def test_a_map_without_segments():
    nothing = panoptic([[0, 3]])
    other = panoptic([[1, 1]], _1=SKY)
    assert nothing.positions().tolist() == [[0, 0]]
    assert matched_segments(nothing, other).tolist() == [-1]
    assert (disagreement(nothing, other, THINGS) > 0).all()
    assert (disagreement(nothing, nothing, THINGS) == 0).all(), "void and void agree"


def test_partners_are_mutual_and_of_one_class():
    first = panoptic([[1, 1, 1, 2, 2, 3]], _1=CAT, _2=CAT, _3=DOG)
    second = panoptic([[7, 7, 8, 8, 8, 9]], _7=CAT, _8=CAT, _9=CAT)
    assert matched_segments(first, second).tolist() == [0, 1, -1], "a dog is no partner of a cat"


def test_agreement_needs_the_same_thing_but_only_the_same_stuff():
    first = panoptic([[1, 1, 2, 2, 4, 4]], _1=CAT, _2=CAT, _4=SKY)
    merged = panoptic([[5, 5, 5, 5, 6, 7]], _5=CAT, _6=SKY, _7=SKY)
    # cat 5 is the partner of cat 1 (two pixels each: the first); sky is one class however it is cut
    differs = disagreement(first, merged, THINGS)
    assert (differs > 0).tolist() == [[False, False, True, True, False, False]]


def test_pairs_of_segments_are_told_apart():
    first = panoptic([[1, 1, 2, 2, 2]], _1=CAT, _2=SKY)
    second = panoptic([[3, 3, 3, 4, 0]], _3=DOG, _4=CAT)
    assert len(set(disagreement(first, second, THINGS)[0].tolist())) == 4


def differing(*boxes, shape=(100, 200)):
    """A map of disagreement: 0, and 1, 2, ... in the boxes."""
    made = np.zeros(shape, np.int64)
    for value, (left, top, right, bottom) in enumerate(boxes, start=1):
        made[top:bottom, left:right] = value
    return made


def test_boxes_around_the_largest_regions_largest_first():
    assert difference_boxes(differing((10, 10, 30, 30), (100, 50, 160, 90))) == [
        (100, 50, 160, 90),
        (10, 10, 30, 30),
    ]


def test_neighbours_are_boxed_each_for_itself():
    """Where everything differs, one box around the whole image would say nothing."""
    assert difference_boxes(differing((0, 0, 120, 100), (120, 0, 200, 100))) == [
        (0, 0, 120, 100),
        (120, 0, 200, 100),
    ]


def test_parts_of_one_pair_are_regions_of_their_own():
    differs = differing((10, 10, 30, 30))
    differs[60:80, 100:130] = 1
    assert difference_boxes(differs) == [(100, 60, 130, 80), (10, 10, 30, 30)]


def test_borders_specks_and_agreement_get_no_box():
    assert difference_boxes(differing((50, 0, 52, 100))) == [], "two pixels wide: an uncertain border"
    assert difference_boxes(differing((50, 50, 51, 51))) == []
    assert difference_boxes(differing()) == []


def test_no_more_boxes_than_wanted():
    regions = [(20 * i, 0, 20 * i + 10, 10 + i) for i in range(9)]
    assert difference_boxes(differing(*regions), limit=3) == regions[:5:-1]


def test_a_box_within_a_larger_one_stays_unless_it_is_nearly_the_same():
    large, within, nearly = (10, 10, 190, 90), (40, 30, 80, 70), (20, 15, 180, 85)
    assert difference_boxes(differing(large, within)) == [large, within]
    frame = differing(large)
    frame[15:85, 20:180] = 2
    frame[30:70, 40:160] = 0
    assert difference_boxes(frame) == [nearly], "the frame around it is thinner, its box almost the same"

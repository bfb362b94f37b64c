"""Instance centres: centroids, non-maximum suppression, the mask of the class, the blur."""

import numpy as np

from pisr_maskformer.visualization.centers import (
    center_map,
    centers_of_class,
    centroids,
    suppress,
    thing_scores,
)


def mask(height, width, *boxes):
    made = np.zeros((height, width), np.float32)
    for top, left, bottom, right, value in boxes:
        made[top:bottom, left:right] = value
    return made


def test_a_centroid_is_the_weighted_mean_position():
    uneven = mask(5, 9, (2, 1, 3, 2, 0.25), (2, 5, 3, 6, 0.75))
    positions = centroids(np.stack([uneven, mask(5, 9)]))
    assert positions[0].tolist() == [2, 4], "three quarters of the way from column 1 to 5"
    assert np.isnan(positions[1]).all(), "an empty mask has none"


def test_scores_are_those_of_things():
    probabilities = np.array([[0.7, 0.2, 0.05], [0.1, 0.3, 0.6]])
    assert thing_scores(probabilities, [1, 2]).tolist() == [0.2, 0.6]
    assert thing_scores(probabilities, []).tolist() == [0, 0]


def test_the_best_of_two_queries_at_one_place_stands_there():
    masks = np.stack([mask(5, 5, (1, 1, 4, 4, 1)), mask(5, 5, (0, 0, 5, 5, 0.5)), mask(5, 5)])
    points = center_map(masks, np.array([0.3, 0.8, 0.9]))
    assert np.argwhere(points).tolist() == [[2, 2]] and points[2, 2] == np.float32(0.8)


def test_suppression_keeps_the_higher_of_two_near_peaks():
    points = np.zeros((9, 20), np.float32)
    points[4, 3], points[4, 6], points[4, 15] = 0.5, 0.9, 0.4
    assert np.argwhere(suppress(points, 3)).tolist() == [[4, 6], [4, 15]]
    assert np.argwhere(suppress(points, 2)).tolist() == [[4, 3], [4, 6], [4, 15]]


def test_centres_of_other_classes_are_masked_and_a_lone_one_keeps_its_height():
    masks = np.stack([mask(30, 60, (10, 10, 21, 21, 1)), mask(30, 60, (10, 40, 21, 51, 1))])
    target = np.zeros((30, 60), bool)
    target[:, :30] = True
    shown = centers_of_class(masks, np.array([0.6, 0.9]), target)
    assert np.unravel_index(shown.argmax(), shown.shape) == (15, 15)
    np.testing.assert_allclose(shown.max(), 0.6, rtol=1e-4)
    assert shown[15, 45] == 0
    assert 0 < shown[15, 18] < 0.4, "a Gaussian around it"


def test_a_faint_tail_does_not_move_a_centre_and_an_unsure_query_has_none():
    peak = np.full((20, 60), 0.05, np.float32)
    peak[3:6, 4:7] = 0.9
    points = center_map(np.stack([peak, np.full_like(peak, 0.4)]), np.array([0.7, 0.9]))
    assert np.argwhere(points).tolist() == [[4, 5]]

"""Instance heatmaps by hand, which queries are instances, and the same thing in two predictions."""

import numpy as np
import pytest

from pisr_maskformer.visualization.instances import closest, find_instances, instance_heatmaps, soft_iou

STUFF, CAT, DOG = 0, 1, 2
THINGS = [CAT, DOG]


def half(left, value=0.9):
    made = np.full((2, 4), 0.0, np.float32)
    made[:, :2] = value if left else 0
    made[:, 2:] = 0 if left else value
    return made


def test_suppression_by_hand():
    probabilities = np.array([[0.0, 0.8, 0.0], [0.5, 0.0, 0.0]])
    masks = np.stack([np.full((1, 2), 0.5), np.array([[0.0, 0.8]])])
    heatmaps = instance_heatmaps(probabilities, masks, THINGS)
    # second pixel: T = 0.8·0.5 = 0.4, U = 0.5·0.8 = 0.4, so half remains
    np.testing.assert_allclose(heatmaps[0], [[0.5, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(heatmaps[1], [[0.0, 0.4]], rtol=1e-6)


def test_instances_are_confident_things_best_first():
    probabilities = np.array(
        [
            [0.1, 0.6, 0.1],  # a cat, left
            [0.9, 0.05, 0.0],  # stuff
            [0.0, 0.1, 0.85],  # a dog, right
            [0.0, 0.4, 0.0],  # more probably nothing
            [0.0, 0.9, 0.0],  # a cat without a confident pixel
        ]
    )
    masks = np.stack([half(True), half(False), half(False), half(True), half(True, 0.4)])
    found = find_instances(probabilities, masks, THINGS, threshold=0.3, most=9)
    assert [(instance.query, instance.category) for instance in found] == [(2, DOG), (0, CAT)]
    assert found[0].score == pytest.approx(0.85 * 0.9), "class probability times certainty of the mask"
    assert len(find_instances(probabilities, masks, THINGS, threshold=0.3, most=1)) == 1
    assert find_instances(probabilities, masks, THINGS, threshold=0.8, most=9) == []
    assert find_instances(probabilities, masks, [], threshold=0.0, most=9) == []


def test_two_queries_on_one_thing_are_one_instance():
    probabilities = np.array([[0.0, 0.9, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.8]])
    masks = np.stack([half(True)] * 3)
    found = find_instances(probabilities, masks, THINGS, threshold=0.3, most=9)
    assert [instance.query for instance in found] == [0, 2], "the dog there is another claim"


def test_soft_iou_by_hand():
    assert soft_iou(np.array([0.5, 1.0]), np.array([1.0, 0.0])) == 0.25  # 0.5 / 2
    assert soft_iou(np.zeros(2), np.zeros(2)) == 0


def test_the_closest_query_shows_the_same_thing():
    (cat,) = find_instances(np.array([[0.0, 0.9, 0.0]]), half(True)[None], THINGS, 0.1, 9)
    query, overlap = closest(cat, np.stack([half(False), half(True, 0.45)]))
    assert query == 1
    np.testing.assert_allclose(overlap, 0.5, rtol=1e-6)

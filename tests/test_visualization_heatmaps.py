"""Heatmaps: the values before they become colours, and the colours at known values."""

import numpy as np
import pytest

from pisr_maskformer.visualization.heatmaps import colorize, glow, min_max, on_image, overlay


def test_min_max_by_hand():
    values = min_max(np.array([[-2.0, 0.0], [3.0, 8.0]]))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[0, 0.2], [0.5, 1]], rtol=1e-6)


def test_a_constant_map_has_no_heat_and_an_empty_one_none_at_all():
    assert min_max(np.full((2, 3), 7.0)).tolist() == [[0, 0, 0]] * 2
    assert min_max(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        min_max(np.array([0.0, bad]))


def test_blue_is_low_and_red_is_high():
    low, middle, high = colorize(np.array([[0.1, 0.5, 0.9]]))[0].astype(int)
    assert low[2] > 200 and low[0] == 0, "suppressed: blue"
    assert high[0] > 200 and high[2] == 0, "detected: red"
    assert middle[1] > 200, "green lies between"
    assert colorize(np.array([[-1.0, 2.0]])).tolist() == colorize(np.array([[0.0, 1.0]])).tolist()


def test_overlay_mixes_colours_with_a_grey_image():
    image = np.full((1, 2, 3), (200, 0, 0), np.uint8)
    grey = round(0.299 * 200)
    assert overlay(image, np.zeros((1, 2)), alpha=0)[0, 0].tolist() == [grey] * 3
    assert overlay(image, np.ones((1, 2)), alpha=1).tolist() == colorize(np.ones((1, 2))).tolist()
    half = overlay(image, np.full((1, 2), 0.5), alpha=0.5)[0, 0].astype(float)
    green = colorize(np.full((1, 1), 0.5))[0, 0].astype(float)
    np.testing.assert_allclose(half, (green + grey) / 2, atol=1)


def test_glow_is_white_where_it_is_one():
    picture = np.full((1, 3, 3), 100, np.uint8)
    assert glow(picture, np.array([[0.0, 0.5, 1.0]]))[0, :, 0].tolist() == [100, 178, 255]


def test_a_map_of_features_is_cut_to_the_image_before_it_is_resized():
    values = np.zeros((4, 4))
    values[:, 2:] = 1  # the right half: padding
    shown = on_image(values, padded=(16, 16), resized=(16, 8), size=(32, 16))
    assert shown.shape == (32, 16)
    assert shown.max() == 0, "the padding does not shine into the image"


def test_a_map_keeps_its_place():
    values = np.zeros((4, 6))
    values[1, 4] = 1
    shown = on_image(values, padded=(16, 24), resized=(16, 24), size=(16, 24))
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert 4 <= row < 8 and 16 <= column < 20, "stride 4"

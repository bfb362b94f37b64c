"""What the reweighting attends to: by hand."""

import numpy as np

from pisr_maskformer.visualization.weights import attention_map, bars, per_encoding
from tools.views.look import figure_pixels


def test_weights_per_channel_are_averaged():
    np.testing.assert_allclose(per_encoding(np.array([[0.2, 0.4], [1.0, 0.0]])), [0.3, 0.5], rtol=1e-6)


def test_a_pixel_has_the_mean_weight_of_what_claims_it():
    heatmaps = np.array([[[1.0, 0.5, 0.0]], [[0.0, 1.5, 0.0]]])
    np.testing.assert_allclose(attention_map(np.array([0.8, 0.4]), heatmaps), [[0.8, 0.5, 0]], rtol=1e-6)


def test_bars_have_the_weights_lengths():
    figure = bars([0.9, 0.2], ["cat", "a_b $"], [[255, 0, 0], [0, 255, 0]], "title", width=600)
    assert [round(patch.get_width(), 6) for patch in figure.axes[0].patches] == [0.9, 0.2]
    assert figure_pixels(figure).shape[1] == 600


def test_no_encoding_no_bar():
    assert figure_pixels(bars([], [], [], "nothing", width=300)).shape[1] == 300

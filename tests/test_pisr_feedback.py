"""Feedback by hand: F' = F + O_f(norm(F_pan)) and q' = q + O_q(norm(p)), however small the deviations."""

import pytest
import torch

from pisr_maskformer.feedback import PixelFeedback, QueryFeedback
from tests.pisr_data import build, prediction, run

# What a new model has: deviations far below 0.003, the root of PyTorch's default eps.
TINY = 1e-4


def set_layers(module, scale, shift, weight, bias):
    """Norm and projection with known values, float64."""
    with torch.no_grad():
        for parameter, values in (
            (module.norm.weight, scale),
            (module.norm.bias, shift),
            (module.project.weight, weight),
            (module.project.bias, bias),
        ):
            parameter.copy_(torch.tensor(values).reshape(parameter.shape))
    return module.double()


def test_pixel_feedback_by_hand():
    # two channels, a group of its own each; two pixels at 5 ± tiny and 7 ∓ 3 tiny: normed (1, -1), (-1, 1)
    module = PixelFeedback(channels=2)
    set_layers(module, [2.0, 1.0], [0.5, 0.0], [[1.0, 0.0], [3.0, -1.0]], [0.0, 10.0])
    panoptic = torch.tensor([[[[5 + TINY, 5 - TINY]], [[7 - 3 * TINY, 7 + 3 * TINY]]]], dtype=torch.float64)
    # normed, scaled and shifted: (2.5, -1.5), (-1, 1); O_f: first, and 3 · first - second + 10
    expected = torch.tensor([[[[2.5, -1.5]], [[18.5, 4.5]]]], dtype=torch.float64)
    torch.testing.assert_close(module(panoptic, None), expected, rtol=1e-3, atol=1e-3)
    # a third pixel, padded, changes nothing of the other two
    padded = torch.cat([panoptic, torch.full_like(panoptic[..., :1], 99)], dim=-1)
    valid = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    torch.testing.assert_close(module(padded, valid)[..., :2], expected, rtol=1e-3, atol=1e-3)


def test_query_feedback_by_hand():
    module = QueryFeedback(channels=4, query_channels=1)
    set_layers(module, [1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [[1.0, 1.0, 2.0, 1.0]], [-0.5])
    means = 3 + TINY * torch.tensor([[[1.0, -1.0, 1.0, -1.0]]], dtype=torch.float64)
    # normed (1, -1, 1, -1), scaled and shifted (1, -2, 1, 0); 1 - 2 + 2 + 0 - 0.5
    expected = torch.tensor([[[0.5]]], dtype=torch.float64)
    torch.testing.assert_close(module(means), expected, rtol=1e-3, atol=1e-3)


def standardised(values, dim, inside=None):
    """(x - mean) / standard deviation over `dim`, counting only where `inside` is 1."""
    inside = torch.ones_like(values) if inside is None else inside.expand_as(values)
    count = inside.sum(dim, keepdim=True)
    centred = values - (values * inside).sum(dim, keepdim=True) / count
    return centred / ((centred * inside).pow(2).sum(dim, keepdim=True) / count).sqrt()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_output_is_features_and_queries_plus_their_feedback(spread, padded):
    module, given = build().double(), prediction()
    first = given["features"][:, :, :1, :1].clone()
    given["features"] = first + spread * (given["features"] - first)  # nearly constant where spread is small
    valid = None
    if padded:
        valid = torch.ones(2, 1, 7, 6, dtype=torch.bool)
        valid[0, :, 4:] = False
    result = run(module, given, valid, internals=True)
    panoptic = result.internals.panoptic_features
    inside = torch.ones(2, 1, 7, 6, dtype=torch.float64) if valid is None else valid.double()

    pixel, query = module.pixel_feedback, module.query_feedback
    grouped = panoptic.reshape(2, 32, 2, 42)  # 64 channels in 32 groups
    assert grouped.std(-1).mean() < (0.5 if spread == 1 else 0.0003)
    normed = standardised(grouped, (2, 3), inside.reshape(2, 1, 1, 42)).reshape(2, 64, 7, 6)
    normed = normed * pixel.norm.weight[:, None, None] + pixel.norm.bias[:, None, None]
    weight = pixel.project.weight[:, :, 0, 0]
    fed_back = torch.einsum("dc,bchw->bdhw", weight, normed) + pixel.project.bias[:, None, None]
    torch.testing.assert_close(
        result.features.on_pixels(), given["features"] + fed_back, rtol=1e-3, atol=1e-3
    )

    maps = given["mask_logits"].sigmoid() * inside
    means = torch.einsum("bqhw,bdhw->bqd", maps, panoptic) / maps.sum((2, 3))[..., None]
    normed = standardised(means, -1) * query.norm.weight + query.norm.bias
    fed_back = normed @ query.project.weight.T + query.project.bias
    torch.testing.assert_close(result.queries, given["queries"] + fed_back, rtol=1e-3, atol=1e-3)
    assert fed_back.abs().mean() > 0.1  # so that a wrong sign or a missing norm would show

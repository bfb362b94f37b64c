"""Relational attention: the relations by hand, the associative form against the definition, its range."""

import math

import pytest
import torch
from torch import nn

from pisr_maskformer.attention import RELATIONS, AffineFeatures, ConstantRelation, PanopticRelationalAttention
from pisr_maskformer.config import SettingError
from pisr_maskformer.encodings import pool
from tests.pisr_data import relative_error

ROWS = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])  # two rows
PIXELS = torch.tensor([[[[3.0, 4.0]], [[4.0, -3.0]]]])  # pixels (3, 4) and (4, -3)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("matmul", [[25 / math.sqrt(2), 0.0], [0.0, 0.0]]),
        ("cosine", [[1.0, 0.0], [0.0, 0.0]]),
        ("l2", [[0.0, math.sqrt(50)], [5.0, 5.0]]),
    ],
)
def test_relations_by_hand(name, expected):
    torch.testing.assert_close(RELATIONS[name](ROWS, PIXELS), torch.tensor(expected)[None, :, None])


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_have_finite_gradients_where_vectors_are_equal_or_zero(name):
    rows, pixels = ROWS.clone().requires_grad_(), PIXELS.clone().requires_grad_()
    RELATIONS[name](rows, pixels).sum().backward()
    assert rows.grad.isfinite().all() and pixels.grad.isfinite().all()


def attention(f1="matmul", f2="matmul", direct=False, channels=6, encodings=5):
    torch.manual_seed(3)
    return PanopticRelationalAttention(
        channels=channels, num_encodings=encodings, f1=f1, f2=f2, direct=direct
    )


def test_one_encoding_one_channel_by_hand():
    module = attention(channels=1, encodings=1)
    for layer, weight, bias in (
        (module.g_s, 2, 1),
        (module.h, 3, 0),
        (module.g_p, 1, 2),
        (module.h_prime, 1, -1),
    ):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    spatial, panoptic = module.maps(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[4.0]]]))
    # g_s = 9, h(F) = (3, 6); g_p = 6, h'(F_sp) = (26, 53); F_pan = 162 F - 6, divided by the norm of (162,
    # -6)
    torch.testing.assert_close(spatial, torch.tensor([[[[27.0, 54.0]]]]))
    torch.testing.assert_close(panoptic, torch.tensor([[[[156.0, 318.0]]]]) / math.hypot(162, 6))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("batch, size", [(1, (3, 4)), (3, (1, 2))])
def test_associative_form_is_the_definition(dtype, tolerance, batch, size):
    torch.manual_seed(0)
    features = torch.randn(batch, 6, *size, dtype=dtype)
    encodings = torch.randn(batch, 5, 6, dtype=dtype)
    encodings[0, 3:] = 0  # empty slots
    maps = torch.rand(batch, 4, *size, dtype=dtype)
    maps[0, 0] = 0
    target = torch.randn(batch, 6, *size, dtype=dtype)
    results = []
    for direct in (False, True):
        module = attention(direct=direct).to(dtype)
        inputs = [value.clone().requires_grad_() for value in (features, encodings, maps)]
        form = module(*inputs[:2])
        panoptic, means = form.on_pixels(inputs[0]), form.under_maps(pool(inputs[0], inputs[2]), inputs[2])
        ((panoptic * target).sum() + means.square().sum()).backward()
        assert not means[0, 0].any()  # the mean under an empty map is 0, whatever b is
        gradients = [value.grad for value in (*inputs, *module.parameters())]
        results.append([panoptic.detach(), means.detach(), *gradients])
    assert isinstance(attention()(features.float(), encodings.float()), AffineFeatures)
    for fast, definition in zip(*results, strict=True):
        assert relative_error(fast, definition) < tolerance


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_size_of_panoptic_features_is_bounded_by_that_of_features(scale):
    torch.manual_seed(0)
    features, encodings = scale * torch.randn(2, 6, 5, 5), scale * torch.randn(2, 5, 6)
    panoptic = attention()(features, encodings).on_pixels(features)
    limit = (features.square().sum(1, keepdim=True) + 1).sqrt()
    assert (panoptic.abs() <= limit * 1.0001).all()
    assert panoptic.abs().max() > 0.05 * min(1.0, limit.max().item())


def test_no_encodings_and_no_biases_give_zero_not_nan():
    module = attention()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    features = torch.ones(1, 6, 2, 2)
    assert not module(features, torch.zeros(1, 5, 6)).on_pixels(features).any()


def test_constant_relation_is_a_learned_convolution_up_to_one_factor():
    torch.manual_seed(0)
    module, features = ConstantRelation(channels=6), torch.randn(2, 6, 3, 3)
    ratio = module(features).on_pixels(features) / module.convolution(features)
    torch.testing.assert_close(ratio, ratio[0, 0, 0, 0].expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in module.parameters()) < sum(
        parameter.numel() for parameter in attention().parameters()
    )


def test_constant_relation_has_the_rank_it_is_given():
    torch.manual_seed(0)
    module, features = ConstantRelation(channels=6, rank=2), torch.randn(2, 6, 3, 3)
    assert torch.linalg.matrix_rank(module(features).matrix).tolist() == [2, 2]
    assert torch.linalg.matrix_rank(ConstantRelation(channels=6)(features).matrix).tolist() == [6, 6]
    assert 0 < module.convolution.bias.abs().max() <= 6**-0.5
    assert set(ConstantRelation(channels=6).state_dict()) == {"convolution.weight", "convolution.bias"}
    ratio = module(features).on_pixels(features) / module.convolution(
        nn.functional.conv2d(features, module.reduction.weight[..., None, None])
    )
    torch.testing.assert_close(ratio, ratio[0, 0, 0, 0].expand_as(ratio), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["f1", "f2"])
def test_unknown_relation_lists_the_valid_ones(which):
    with pytest.raises(
        SettingError, match=f"MODEL.PISR.{which.upper()} is 'dot'; use one of: matmul, cosine, l2"
    ):
        attention(**{which: "dot"})

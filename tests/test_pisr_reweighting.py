"""The four reweightings: what they compute, what they build."""

import pytest
import torch
from torch import nn

from pisr_maskformer.reweighting import REWEIGHTING, less_mean

SIZES = {"channels": 4, "hidden_layers": 2, "weight_per_channel": False, "num_classes": 3, "num_instances": 2}
ENCODINGS = torch.arange(40.0).reshape(2, 5, 4) / 10


def build(name, **sizes):
    torch.manual_seed(0)
    return REWEIGHTING[name](**{**SIZES, **sizes})


def linear_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("per_channel, width", [(False, 1), (True, 4)])
def test_explicit_multiplies_by_a_weight_between_0_and_1(per_channel, width):
    result, weights = build("explicit", weight_per_channel=per_channel)(ENCODINGS)
    assert weights.shape == (2, 5, width)
    assert ((weights > 0) & (weights < 1)).all()
    assert torch.equal(result, weights * ENCODINGS)


@pytest.mark.parametrize("name", ["explicit", "implicit"])
@pytest.mark.parametrize("hidden", [0, 2, 4])
def test_hidden_layers_are_the_papers_count(name, hidden):
    assert len(linear_layers(build(name, hidden_layers=hidden))) == hidden + 1


def test_explicit_by_hand():
    module = build("explicit", channels=1, hidden_layers=1)
    for layer, weight, bias in zip(linear_layers(module), (2.0, -1.0), (1.0, 0.5), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    result, weights = module(torch.tensor([[[3.0], [-2.0]]]))
    # relu(2·3 + 1) = 7 -> sigmoid(-6.5); relu(2·(-2) + 1) = 0 -> sigmoid(0.5)
    expected = torch.tensor([[[-6.5], [0.5]]]).sigmoid()
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(result, expected * torch.tensor([[[3.0], [-2.0]]]))


def test_separate_treats_the_two_kinds_by_layers_of_their_own():
    module = build("separate")
    nn.init.zeros_(module.instance.weight)
    changed = ENCODINGS.clone()
    changed[:, 3:] += 1
    assert torch.equal(module(changed)[0], module(ENCODINGS)[0])  # instances are cut off, semantics are not
    changed[:, :3] += 1
    assert not torch.isclose(module(changed)[0][:, :3], module(ENCODINGS)[0][:, :3]).all()


def test_separate_without_instances_builds_no_layer_for_them():
    assert len(linear_layers(build("separate"))) == 5
    module = build("separate", num_instances=0)
    assert len(linear_layers(module)) == 4
    assert module(ENCODINGS[:, :3])[0].shape == (2, 3, 4)


def test_none_changes_nothing():
    result, weights = build("none")(ENCODINGS)
    assert torch.equal(result, ENCODINGS) and weights is None
    assert not list(build("none").parameters())


def test_less_mean_by_hand_leaves_empty_slots_out():
    encodings = torch.tensor([[[1.0, 2.0], [3.0, 8.0], [0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]])
    encodings.requires_grad_()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    mean = torch.tensor([[[2.0, 5.0]], [[3.0, 1.0]]])
    result = less_mean(encodings, valid)
    torch.testing.assert_close(result, (encodings - mean) * valid[..., None])
    result[:, 0].sum().backward()  # of the first alone: what it gains, the mean takes from all in equal parts
    of_images = torch.tensor([[0.5, -0.5, -0.5], [2 / 3, -1 / 3, -1 / 3]])[..., None]
    torch.testing.assert_close(encodings.grad[valid], of_images.expand(-1, -1, 2)[valid])

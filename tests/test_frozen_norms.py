"""A frozen norm in its convolution's weights: values, gradients and names of the two apart, less memory."""

import copy
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.frozen_norms import FoldedConv2d, fold_frozen_norms
from tests.tiny import resnet, tiny_model
from tools.benchmarks.measure import peak_memory


def convolution(seed: int = 0, **options: Any) -> Conv2d:
    """6 to 8 channels, 3×3, with a frozen norm whose numbers are all different from those of the identity."""
    torch.manual_seed(seed)
    conv = Conv2d(6, 8, 3, bias=False, norm=get_norm("FrozenBN", 8), **options)
    norm = conv.norm
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 1.5)
    return conv


def results(conv: Conv2d, x: Tensor) -> list[Tensor]:
    """Output, and gradients of input and weights for some gradient of the output."""
    x = x.clone().requires_grad_()
    output = conv(x)
    wanted = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output, *torch.autograd.grad(output, [x, conv.weight], wanted)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "groups": 2},
        {"padding": 1, "activation": F.relu},
    ],
)
def test_output_and_gradients_are_those_of_the_two_apart(options: dict[str, Any]) -> None:
    apart = convolution(**options).double()
    folded = fold_frozen_norms(copy.deepcopy(apart))
    assert type(folded) is FoldedConv2d
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    for mine, theirs in zip(results(folded, x), results(apart, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), apart(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"norm": None}, {"norm": get_norm("BN", 8)}])
def test_what_it_cannot_fold_stays(options: dict[str, Any]) -> None:
    conv = Conv2d(6, 8, 3, **{"bias": False, "norm": get_norm("FrozenBN", 8), **options})
    assert type(fold_frozen_norms(conv)) is Conv2d


def test_frozen_weights_still_pass_a_gradient_on() -> None:
    apart = convolution().double()
    apart.weight.requires_grad_(False)
    folded = fold_frozen_norms(copy.deepcopy(apart))
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    (mine,), (theirs,) = (torch.autograd.grad(conv(x).square().sum(), x) for conv in (folded, apart))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_autocast_rounds_as_it_does_for_a_convolution() -> None:
    apart = convolution(padding=1)
    folded = fold_frozen_norms(copy.deepcopy(apart))
    x = torch.randn(2, 6, 9, 7)
    exact = results(apart, x)
    with torch.autocast("cpu", torch.bfloat16):
        mine = results(folded, x)
    assert mine[0].dtype == torch.bfloat16 and mine[1].dtype == mine[2].dtype == torch.float32
    for rounded, value in zip(mine, exact, strict=True):
        assert (rounded - value).abs().max() < 0.02 * value.abs().max()  # bfloat16 has 8 bits


def test_every_convolution_of_a_resnet_is_folded_and_keeps_its_names() -> None:
    model = tiny_model(resnet(50))
    apart = copy.deepcopy(model)
    for part in apart.modules():
        if isinstance(part, FoldedConv2d):
            part.__class__ = Conv2d
    norms = [part for part in model.modules() if isinstance(part, FrozenBatchNorm2d)]
    assert len(norms) == sum(isinstance(part, FoldedConv2d) for part in model.modules()) == 53
    assert list(model.state_dict()) == list(apart.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in apart.named_parameters()]


def test_no_scaled_weights_are_kept_for_the_backward_pass() -> None:
    conv = Conv2d(256, 256, 3, padding=1, bias=False, norm=get_norm("FrozenBN", 256))
    chain = nn.Sequential(*(copy.deepcopy(conv) for _ in range(8)))
    x = torch.randn(1, 256, 4, 4)
    weights = 8 * 4 * conv.weight.numel()  # 18.9 MB; activations are 16 kB each
    folded = peak_memory(lambda: fold_frozen_norms(chain)(x))
    assert folded < weights / 2

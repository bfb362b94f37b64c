"""Convolutions that take the frozen batch norm after them into their weights: one pass instead of three.

With statistics and affine parameters fixed, norm(conv(x, W)) = conv(x, s·W) + b with s and b of the norm. The
product s·W is made anew in every forward pass, so W trains and the norm loads as before, under their names.

Shapes: O C output and input channels · k×k kernel.
"""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class ScaledConvolution(torch.autograd.Function):
    """conv(x, s·W) + b, for W alone and x differentiable; s·W is made again for the gradient, not kept.

    That product is as large as the weights, which is 90 MB in a ResNet-50.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: tuple[Any, ...]
    ) -> Tensor:
        """`weight` O×C×k×k, `scale` O×1×1×1, `bias` O; `geometry`: stride, padding, dilation, groups."""
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry
        return F.conv2d(x, product(weight, scale, x.dtype), bias.to(x.dtype), *geometry)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_product, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            product(weight, scale, x.dtype),
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            wanted,
        )
        of_weight = of_product * scale if wanted[1] else None  # in the wider type of the two
        return of_x, of_weight, None, None, None


def product(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """s·W rounded to `dtype` in one pass; without a graph."""
    if dtype == weight.dtype:
        return weight * scale
    return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))


class FoldedConv2d(Conv2d):
    """detectron2's convolution with a frozen norm, computed as one convolution; equal up to rounding."""

    norm: FrozenBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if type(norm) is not FrozenBatchNorm2d:  # somebody has put another in its place
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        weight_scale = scale[:, None, None, None]
        if torch.is_grad_enabled() and self.weight.requires_grad:
            if torch.is_autocast_enabled(x.device.type):  # a function of our own is not cast by itself
                x = x.to(torch.get_autocast_dtype(x.device.type))
            x = ScaledConvolution.apply(x, self.weight, weight_scale, bias, geometry)
        else:
            x = F.conv2d(x, self.weight * weight_scale, bias, *geometry)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(module: nn.Module) -> Any:
    """`module` itself, with every such convolution in it computing the short way."""
    for part in module.modules():
        is_such = type(part) is Conv2d and type(part.norm) is FrozenBatchNorm2d
        if is_such and part.bias is None and not isinstance(part.padding, str):
            part.__class__ = FoldedConv2d  # the same parameters, hooks and names; only `forward` differs
    return module

"""Focal and dice losses of upsampled masks without ever keeping an upsampled mask.

Shapes: N mask pairs · h w size of the predicted masks · H W size of the ground truth.

The plain form (`focal_loss` and `dice_loss` of `F.interpolate`d logits) keeps a dozen N×H×W tensors for its
gradient. Here a few masks at a time are upsampled, both losses and their derivatives with respect to the
upsampled logits are computed in closed form, and the derivatives are brought back to h×w at once, so that
only N×h×w is kept whatever the number of targets. With z = ±x (+ inside the mask), s = σ(z), c = −log s,
weight a:

    focal = a (1−s)² c                   d focal/dz = −a (1−s)² (2 s c + 1 − s)
    dice  = 1 − (2I + 1)/(A + T + 1)     d dice/dp  = ((2I + 1) − 2t (A + T + 1)) / (A + T + 1)²

where p = σ(x) with dp/dx = s (1−s), t the mask, I, A and T the sums of pt, p and t.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask_former.losses import DICE_SMOOTH, FOCAL_ALPHA, FOCAL_GAMMA

PIXELS_AT_ONCE = 2**22  # a dozen tensors of this many numbers live at a time: 200 MB in float32


def upsampled_mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over pairs of the focal and of the dice loss of bilinearly upsampled logits.

    `logits` N×h×w, `masks` N×H×W bool; returns two scalars, zeros for N = 0. Differentiable once with respect
    to `logits`.
    """
    focal, dice = UpsampledMaskLosses.apply(logits, masks)
    return focal, dice


class UpsampledMaskLosses(torch.autograd.Function):
    """Both sums, with their low-resolution derivatives computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        assert FOCAL_GAMMA == 2, "the derivative below is that of γ = 2"
        size = (int(masks.shape[-2]), int(masks.shape[-1]))
        step = max(1, PIXELS_AT_ONCE // max(1, size[0] * size[1]))
        needs_gradient = ctx.needs_input_grad[0]
        focal, dice = logits.new_zeros(()), logits.new_zeros(())
        slopes = logits.new_empty((2, *logits.shape)) if needs_gradient else None
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            part_focal, part_dice, derivatives = _losses(logits[part], masks[part], size, needs_gradient)
            focal += part_focal
            dice += part_dice
            if slopes is not None:
                slopes[:, part] = _downsample(derivatives, logits[part].shape)
        ctx.save_for_backward(slopes)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal_gradient: Tensor, dice_gradient: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return focal_gradient * slopes[0] + dice_gradient * slopes[1], None


def _losses(
    logits: Tensor, masks: Tensor, size: tuple[int, int], needs_gradient: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Sums of both losses of n masks, and their derivatives (n×H×W each) if asked for."""
    x = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    z = torch.where(masks, x, -x)
    correct = z.sigmoid()  # s, the probability of being right
    wrong = 1 - correct
    log_loss = F.softplus(-z)  # c
    weight = torch.where(masks, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * wrong.square() / (size[0] * size[1])
    focal = (weight * log_loss).sum()

    probability = torch.where(masks, correct, wrong)
    overlap = (correct * masks).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + masks.sum(dim=(1, 2)) + DICE_SMOOTH
    doubled = 2 * overlap + DICE_SMOOTH
    dice = (1 - doubled / total).sum()
    if not needs_gradient:
        return focal, dice, (x, x)

    slope = weight * (2 * correct * log_loss + wrong)
    focal_slope = torch.where(masks, -slope, slope)
    outside = (doubled / total**2)[:, None, None]
    inside = outside - (2 / total)[:, None, None]
    dice_slope = torch.where(masks, inside, outside) * (correct * wrong)
    return focal, dice, (focal_slope, dice_slope)


def _downsample(derivatives: tuple[Tensor, Tensor], shape: torch.Size) -> Tensor:
    """Transposed bilinear upsampling of both derivatives: n×H×W to 2×n×h×w."""
    stacked = torch.stack(derivatives)
    low = [2, *shape]
    return torch.ops.aten.upsample_bilinear2d_backward(stacked, stacked.shape[-2:], low, False, None, None)

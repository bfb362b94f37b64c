"""Mask losses, and the matching costs made of the same expressions.

Focal: arXiv 1708.02002; dice: arXiv 1606.04797.

Shapes: N mask pairs · Q predicted and T true masks of one image · P pixels. All in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
DICE_SMOOTH = 1.0


def focal_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss of every pixel if it belonged to the mask, and if it did not; shapes as `logits`."""
    probability = logits.sigmoid()
    inside = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * F.softplus(-logits)
    outside = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * F.softplus(logits)
    return inside, outside


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss of each pair, mean over pixels: `logits` N×P and 0/1 `masks` N×P to N."""
    inside, outside = focal_terms(logits)
    return torch.where(masks > 0.5, inside, outside).mean(dim=1)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 − dice of each pair, smoothed by 1: `logits` N×P and 0/1 `masks` N×P to N."""
    probability = logits.sigmoid()
    overlap = (probability * masks).sum(dim=1)
    return 1 - _dice(overlap, probability.sum(dim=1), masks.sum(dim=1))


def focal_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """`focal_loss` of every pair of `logits` Q×P and 0/1 `masks` T×P: Q×T."""
    inside, outside = focal_terms(logits)
    return ((inside - outside) @ masks.T + outside.sum(dim=1, keepdim=True)) / logits.shape[1]


def dice_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """`dice_loss` of every pair of `logits` Q×P and 0/1 `masks` T×P: Q×T."""
    probability = logits.sigmoid()
    return 1 - _dice(probability @ masks.T, probability.sum(dim=1)[:, None], masks.sum(dim=1)[None, :])


def _dice(overlap: Tensor, predicted_area: Tensor, true_area: Tensor) -> Tensor:
    return (2 * overlap + DICE_SMOOTH) / (predicted_area + true_area + DICE_SMOOTH)

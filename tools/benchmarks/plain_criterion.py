"""The loss and the matching as they are defined, one prediction and one image after the other.

What the package's own is compared with, in benchmarks and in tests: autograd's graph of upsampled masks, a
cost matrix and a copy to the CPU for every image of every prediction.

Shapes: N mask pairs · B images · Q queries · C classes without "no object" · T targets of one image · h w
size of the predicted masks · H W size of the ground truth.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.criterion import LossTotals, SetCriterion
from mask_former.losses import dice_cost, dice_loss, focal_cost, focal_loss
from mask_former.matcher import HungarianMatcher, Pairs, Target, assign
from mask_former.matching_costs import resize_nearest
from mask_former.predictor import Prediction


def plain_mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the focal and of the dice loss of `logits` N×h×w, upsampled, and `masks` N×H×W bool."""
    upsampled = F.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)
    flat, truth = upsampled.flatten(1), masks.flatten(1).to(logits.dtype)
    return focal_loss(flat, truth).sum(), dice_loss(flat, truth).sum()


def plain_cost(matcher: HungarianMatcher, logits: Tensor, masks: Tensor, target: Target) -> Tensor:
    """Cost of every pair of one image, float32: `logits` Q×(C+1), `masks` Q×h×w to Q×T."""
    class_cost = -logits.float().softmax(dim=-1)[:, target["labels"]]
    true_masks = resize_nearest(target["masks"], masks.shape[-2:]).flatten(1)
    mask_logits = masks.float().flatten(1)
    return (
        matcher.class_weight * class_cost
        + matcher.mask_weight * focal_cost(mask_logits, true_masks)
        + matcher.dice_weight * dice_cost(mask_logits, true_masks)
    )


@torch.no_grad()
def plain_match(
    matcher: HungarianMatcher, predictions: Sequence[Prediction], targets: Sequence[Target]
) -> list[Pairs]:
    """What `matcher.match` returns."""
    return [
        [
            assign(plain_cost(matcher, logits, masks, target).cpu(), image)
            for image, (logits, masks, target) in enumerate(
                zip(prediction["pred_logits"], prediction["pred_masks"], targets, strict=True)
            )
        ]
        for prediction in predictions
    ]


def plain_losses(
    criterion: SetCriterion,
    predictions: Mapping[str, Prediction],
    targets: Sequence[Target],
    totals: LossTotals,
) -> dict[str, Tensor]:
    """What `criterion.losses` returns."""
    losses = {}
    for suffix, prediction in predictions.items():
        (pairs,) = plain_match(criterion.matcher, [prediction], targets)
        logits, masks = prediction["pred_logits"].float(), prediction["pred_masks"].float()
        images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
        index = (images, torch.cat([queries for queries, _ in pairs]))
        of_images = list(zip(targets, pairs, strict=True))
        labels = logits.new_full(logits.shape[:2], criterion.num_classes, dtype=torch.int64)
        labels[index] = torch.cat([target["labels"][segments] for target, (_, segments) in of_images])
        true_masks = torch.cat([target["masks"][segments] for target, (_, segments) in of_images])
        classes = F.cross_entropy(logits.transpose(1, 2), labels, criterion.empty_weight, reduction="sum")
        focal, dice = plain_mask_losses(masks[index], true_masks)
        losses[f"loss_ce{suffix}"] = classes / totals.class_weight
        losses[f"loss_mask{suffix}"] = focal / totals.targets
        losses[f"loss_dice{suffix}"] = dice / totals.targets
    return losses

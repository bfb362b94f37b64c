"""Which query answers for which ground-truth segment: the assignment of least cost (arXiv 2005.12872).

Shapes: B batch · Q queries · C classes without "no object" · T ground-truth segments of one image ·
H W size of the predicted masks · Hp Wp size of the ground truth (the padded image).
"""

from dataclasses import dataclass, field
from typing import TypedDict

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mask_former.losses import dice_cost, focal_cost
from mask_former.predictor import Prediction

NEVER = 1e9  # cost of a pair whose own is not finite: far above any other, and still a number


class Target(TypedDict):
    """Ground truth of one image."""

    labels: Tensor  # (T,) int64 classes
    masks: Tensor  # T×Hp×Wp bool


@dataclass
class NonFiniteCosts:
    """What a matcher met that was not finite since `clear`: how often, and the first time's tensors."""

    count: int = 0  # predictions (of one image by one decoder layer) with such a cost
    micro_batch: int = 0  # that is being matched, as the training step says
    first: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **tensors: Tensor) -> None:
        """Count one prediction; the tensors are copied to the CPU if it is the first."""
        if not self.count:
            self.first = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            self.first["micro_batch"] = torch.tensor(self.micro_batch)
        self.count += 1

    def clear(self) -> None:
        self.count, self.first = 0, {}


class HungarianMatcher:
    """Cost of a pair: weighted sum of −P(true class), focal and dice, these two at the prediction's size.

    Costs that are not finite raise FloatingPointError; a training loop that wants to decide for itself sets
    `tolerated`, where they are then noted, and such a pair is the last that is chosen.
    """

    def __init__(
        self, class_weight: float = 1.0, mask_weight: float = 20.0, dice_weight: float = 1.0
    ) -> None:
        if class_weight == mask_weight == dice_weight == 0:
            raise ValueError("a matcher whose weights are all 0 cannot tell one assignment from another")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.tolerated: NonFiniteCosts | None = None

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: list[Target]) -> list[tuple[Tensor, Tensor]]:
        """Per image min(Q, T) indices of matched queries and of their segments, int64, on the CPU.

        Query indices ascend. Raises FloatingPointError when a cost is not finite, unless that is tolerated.
        """
        logits, masks = prediction["pred_logits"], prediction["pred_masks"]
        pairs = []
        for i, target in enumerate(targets):
            cost = self.cost(logits[i], masks[i], target).cpu()
            if self.tolerated is not None and not cost.isfinite().all():
                self.tolerated.add(
                    image=torch.tensor(i), cost=cost, pred_logits=logits[i], pred_masks=masks[i]
                )
                cost = torch.where(cost.isfinite(), cost, NEVER)
            pairs.append(assign(cost, image=i))
        return pairs

    def cost(self, logits: Tensor, masks: Tensor, target: Target) -> Tensor:
        """Cost of every pair of one image, float32: `logits` Q×(C+1), `masks` Q×H×W to Q×T."""
        with torch.autocast(logits.device.type, enabled=False):
            class_cost = -logits.float().softmax(dim=-1)[:, target["labels"]]
            true_masks = resize_nearest(target["masks"], masks.shape[-2:]).flatten(1)
            mask_logits = masks.float().flatten(1)
            return (
                self.class_weight * class_cost
                + self.mask_weight * focal_cost(mask_logits, true_masks)
                + self.dice_weight * dice_cost(mask_logits, true_masks)
            )


def resize_nearest(masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """T×Hp×Wp bool masks at another size by nearest neighbour, float32."""
    return F.interpolate(masks[:, None].to(torch.uint8), size=tuple(size), mode="nearest")[:, 0].float()


def assign(cost: Tensor, image: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and columns of the least-cost assignment of Q×T; FloatingPointError when a cost is not finite."""
    cost = cost.cpu()
    if not cost.isfinite().all():
        count = int((~cost.isfinite()).sum())
        raise FloatingPointError(
            f"matching: {count} of {cost.numel()} costs of image {image} of the batch are not finite; "
            "the predictions have diverged: lower the learning rate, or train without fp16"
        )
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)

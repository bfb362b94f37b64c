"""Which query answers for which ground-truth segment: the assignment of least cost (arXiv 2005.12872).

One device is waited for once a step, for the costs of all predictions and images together. The solver itself
takes 0.4 ms for 28 problems of 100×20 and 7 ms for 28 of 100×100, which is not worth a thread: nothing but
the losses could go on meanwhile, and they need its answer.

Shapes: B batch · Q queries · T ground-truth segments of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask_former.matching_costs import Target, matching_costs
from mask_former.predictor import Prediction
from mask_former.transfer import to_host

NEVER = 1e9  # cost of a pair whose own is not finite: far above any other, and still a number


Pairs = list[tuple[Tensor, Tensor]]  # of every image: indices of queries and of their segments


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

    def __call__(self, prediction: Prediction, targets: Sequence[Target]) -> Pairs:
        """`match` of one prediction."""
        return self.match([prediction], targets)[0]

    @torch.no_grad()
    def match(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> list[Pairs]:
        """Of every prediction, per image min(Q, T) indices of matched queries and of their segments.

        The indices are int64 and on the CPU; those of queries ascend. The predictions' masks have one size.
        Raises FloatingPointError when a cost is not finite, unless that is tolerated.
        """
        return [
            [assign(self.finite(cost, image, prediction), image) for image, cost in enumerate(of_images)]
            for prediction, of_images in zip(predictions, self.costs(predictions, targets), strict=True)
        ]

    def costs(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> list[list[Tensor]]:
        """Costs Q×T of every prediction and image, float32, on the CPU."""
        with torch.autocast(predictions[0]["pred_logits"].device.type, enabled=False):
            costs = matching_costs(
                predictions,
                targets,
                class_weight=self.class_weight,
                mask_weight=self.mask_weight,
                dice_weight=self.dice_weight,
            )
        return costs.views(to_host(costs.buffer))

    def finite(self, cost: Tensor, image: int, prediction: Prediction) -> Tensor:
        """`cost`, what is not finite in it noted and replaced if that is tolerated."""
        if self.tolerated is None or cost.isfinite().all():
            return cost
        self.tolerated.add(
            image=torch.tensor(image),
            cost=cost,
            pred_logits=prediction["pred_logits"][image],
            pred_masks=prediction["pred_masks"][image],
        )
        return torch.where(cost.isfinite(), cost, NEVER)


def assign(cost: Tensor, image: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and columns of the least-cost assignment of Q×T on the CPU.

    Raises FloatingPointError, which names `image`, when a cost is not finite.
    """
    if not cost.isfinite().all():
        count = int((~cost.isfinite()).sum())
        raise FloatingPointError(
            f"matching: {count} of {cost.numel()} costs of image {image} of the batch are not finite; "
            "the predictions have diverged: lower the learning rate, or train without fp16"
        )
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)

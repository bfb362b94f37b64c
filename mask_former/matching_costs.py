"""The matching costs of all predictions of a step: few passes over the mask logits, large products.

Focal and dice costs are those of `losses.focal_cost` and `losses.dice_cost`. With p = σ(x), they need
Σ_t (inside − outside), Σ_t p, Σ outside and Σ p: the first two are one product of the stacked rows with the
targets, from one sigmoid and one logarithm, for softplus(−x) = −log p and softplus(x) = x − log p.

Shapes: L predictions · B images · Q queries · C classes without "no object" · T targets of one image · H W
size of the predicted masks · Hp Wp size of the ground truth · R queries at a time, S of them in a cache ·
P = H·W pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.losses import DICE_SMOOTH, FOCAL_ALPHA, FOCAL_GAMMA
from mask_former.predictor import Prediction

# Numbers that R and S queries have; two tensors of each live at a time. A product likes many rows; what leads
# there is passes over memory, which stay in a CPU's caches, and are few kernels on a GPU.
PIXELS_AT_ONCE = {"cpu": 2**22, "cuda": 2**23}
PIXELS_IN_CACHE = {"cpu": 2**18, "cuda": 2**23}
TARGETS_AT_ONCE = 128  # resized masks, in float32: what they take is bounded too


class Target(TypedDict):
    """Ground truth of one image."""

    labels: Tensor  # (T,) int64 classes
    masks: Tensor  # T×Hp×Wp bool


class Costs:
    """Room for the costs of every prediction and image in one buffer, so that they travel in one copy."""

    def __init__(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
        queries = [prediction["pred_logits"].shape[1] for prediction in predictions]
        self.shapes = [[(count, len(target["labels"])) for target in targets] for count in queries]
        self.sizes = [rows * columns for shapes in self.shapes for rows, columns in shapes]
        device = predictions[0]["pred_logits"].device
        self.buffer = torch.zeros(sum(self.sizes), dtype=torch.float32, device=device)

    def views(self, buffer: Tensor) -> list[list[Tensor]]:
        """Q×T costs of every prediction and image, as parts of `buffer`, which is the own one or its copy."""
        parts = iter(buffer.split(self.sizes))
        return [[next(parts).view(shape) for shape in shapes] for shapes in self.shapes]


@torch.no_grad()
def matching_costs(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Costs:
    """Weighted sums of −P(true class), focal and dice cost, float32, on the predictions' device.

    `predictions`: L with masks of one size. `targets`: of every image; resized once for all predictions.
    """
    costs = Costs(predictions, targets)
    views = costs.views(costs.buffer)
    for prediction, of_images in zip(predictions, views, strict=True):
        probability = prediction["pred_logits"].float().softmax(dim=-1)
        for image, (cost, target) in enumerate(zip(of_images, targets, strict=True)):
            cost.sub_(probability[image].index_select(1, target["labels"]), alpha=class_weight)
    size = predictions[0]["pred_masks"].shape[-2:]
    work = workspace(predictions)
    for image, target in enumerate(targets):
        for start in range(0, len(target["labels"]), TARGETS_AT_ONCE):
            part = slice(start, start + TARGETS_AT_ONCE)
            truth = resize_nearest(target["masks"][part], size).flatten(1).T.contiguous()
            areas = truth.sum(dim=0)
            for prediction, of_images in zip(predictions, views, strict=True):
                logits = prediction["pred_masks"][image].flatten(1)
                add_mask_costs(
                    logits, truth, areas, of_images[image][:, part], mask_weight, dice_weight, work
                )
    return costs


class Workspace(NamedTuple):
    """Room to compute in, for a whole step: a CPU takes long to hand out new memory."""

    rows: Tensor  # 2×R×P, what is multiplied with the targets
    scratch: Tensor  # 2×S×P, what leads there


def workspace(predictions: Sequence[Prediction]) -> Workspace:
    """For masks of that size, and the most queries of a prediction."""
    masks = [prediction["pred_masks"] for prediction in predictions]
    pixels, queries = masks[0].shape[-2] * masks[0].shape[-1], max(mask.shape[1] for mask in masks)
    device = masks[0].device

    def room(numbers: dict[str, int], rows: int) -> Tensor:
        at_once = max(1, numbers.get(device.type, numbers["cpu"]) // max(1, pixels))
        parts = max(1, math.ceil(rows / at_once))  # of the same size, or nearly
        return torch.empty((2, max(1, math.ceil(rows / parts)), pixels), dtype=torch.float32, device=device)

    rows = room(PIXELS_AT_ONCE, queries)
    return Workspace(rows, room(PIXELS_IN_CACHE, rows.shape[1]))


def add_mask_costs(
    logits: Tensor,
    truth: Tensor,
    areas: Tensor,
    costs: Tensor,
    mask_weight: float,
    dice_weight: float,
    work: Workspace,
) -> None:
    """Add to `costs` Q×T those of `logits` Q×P with the 0/1 masks `truth` P×T, `areas` (T,) their sums.

    `work` is written over.
    """
    pixels = len(truth)
    for x, of_rows in zip(logits.split(work.rows.shape[1]), costs.split(work.rows.shape[1]), strict=True):
        # In one piece, also for a shorter last part.
        rows = work.rows.view(-1)[: 2 * x.numel()].view(2, *x.shape)
        outside, predicted = _terms(x, rows, work.scratch)
        difference, overlap = _product(rows.flatten(0, 1), truth).unflatten(0, (2, len(x)))
        focal = outside[:, None].sub(difference).mul_(1 - FOCAL_ALPHA)
        dice = overlap.mul_(-2).sub_(DICE_SMOOTH).div_(predicted[:, None] + (areas + DICE_SMOOTH)).add_(1)
        of_rows.add_(focal, alpha=mask_weight / pixels).add_(dice, alpha=dice_weight)


def _terms(logits: Tensor, rows: Tensor, scratch: Tensor) -> Tensor:
    """Sums 2×R of p² softplus(x) and of p of logits x R×P.

    `rows` 2×R×P becomes p² softplus(x) + (1−p)² log p α/(1−α), which is (outside − inside)/(1−α), and p.
    """
    assert FOCAL_GAMMA == 2
    sums = rows.new_empty(2, len(logits))
    for start in range(0, len(logits), scratch.shape[1]):
        part = slice(start, start + scratch.shape[1])
        x = logits[part].float()
        (difference, p), (log, outside) = rows[:, part], scratch[:, : len(x)]
        torch.sigmoid(x, out=p)
        torch.clamp(p, min=torch.finfo(p.dtype).tiny, out=log).log_()
        torch.minimum(log, x, out=log)  # where p is too small a number, log p = x
        torch.sub(x, log, out=outside).mul_(torch.mul(p, p, out=difference))
        torch.sub(1, p, out=difference).square_()
        torch.addcmul(outside, difference, log, value=FOCAL_ALPHA / (1 - FOCAL_ALPHA), out=difference)
        torch.sum(outside, dim=1, out=sums[0, part])
        torch.sum(p, dim=1, out=sums[1, part])
    return sums


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """R×P times P×T. Of so few columns, a CPU's threads share the pixels better than the rows."""
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    parts = max(count for count in range(1, threads + 1) if len(columns) % count == 0)
    if parts == 1:
        return rows @ columns
    by_part = rows.unflatten(1, (parts, -1)).transpose(0, 1)  # parts × R × P/parts, a view
    return torch.bmm(by_part, columns.unflatten(0, (parts, -1))).sum(dim=0)


def resize_nearest(masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """T×Hp×Wp bool masks at another size by nearest neighbour, float32."""
    return F.interpolate(masks[:, None].view(torch.uint8), size=tuple(size), mode="nearest")[:, 0].float()

"""The training loss: matched class and mask losses on every decoder layer (arXiv 2107.06278, Section 3.2).

A batch may be spread over processes, and within one over micro-batches whose gradients add up. What its
losses divide by, `LossTotals`, belongs to the whole of it, so that the spreading changes neither loss nor
gradient.

Shapes: B images of a micro-batch · Q queries · C classes without "no object" · N matched pairs of the
micro-batch · H W size of the predicted masks · Hp Wp size of the ground truth (the padded image).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.matcher import HungarianMatcher, Target
from mask_former.predictor import Prediction, Predictions
from mask_former.registries import CRITERION_REGISTRY
from mask_former.upsampled_losses import upsampled_mask_losses

Pairs = list[tuple[Tensor, Tensor]]


class LossTotals(NamedTuple):
    """What a batch's losses divide by, over all its micro-batches and processes; scalar tensors.

    Both are divided by the number of processes: their gradients are averaged, not added.
    """

    class_weight: Tensor  # sum over all queries of all images of the weight of the query's class
    targets: Tensor  # number of targets; that of the whole batch is taken to be at least 1


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Each loss times its weight; ValueError on a loss without a weight or a weight without a loss."""
    if losses.keys() != weights.keys():
        without_weight = sorted(losses.keys() - weights.keys())
        without_loss = sorted(weights.keys() - losses.keys())
        raise ValueError(f"losses without a weight: {without_weight}; weights without a loss: {without_loss}")
    return {name: loss * weights[name] for name, loss in losses.items()}


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Classification, focal and dice losses of matched queries; every prediction has its own matching.

    `loss_ce` is the mean over all queries, unmatched ones with the class "no object", weighted by class;
    `loss_mask` (focal, mean over pixels) and `loss_dice` are sums over matched pairs divided by the number of
    targets. Means and numbers are the whole batch's (`LossTotals`): a micro-batch's losses are its share, and
    shares add up over micro-batches and are averaged over processes. Earlier decoder layers' losses are
    called `loss_ce_0`, ….
    """

    empty_weight: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        num_earlier_layers: int,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
    ) -> None:
        """`num_earlier_layers`: supervised decoder layers before the last (0 without deep supervision)."""
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        weights = {"loss_ce": 1.0, "loss_mask": mask_weight, "loss_dice": dice_weight}
        suffixes = ["", *(f"_{i}" for i in range(num_earlier_layers))]
        self.weight_dict = {name + suffix: weight for suffix in suffixes for name, weight in weights.items()}
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        mask_weight, dice_weight = mask_former.MASK_WEIGHT, mask_former.DICE_WEIGHT
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": HungarianMatcher(1.0, mask_weight, dice_weight),
            "num_earlier_layers": mask_former.DEC_LAYERS - 1 if mask_former.DEEP_SUPERVISION else 0,
            "mask_weight": mask_weight,
            "dice_weight": dice_weight,
            "no_object_weight": mask_former.NO_OBJECT_WEIGHT,
        }

    def totals(self, labels: Sequence[Tensor], num_queries: int) -> LossTotals:
        """Totals of a batch from the classes of every image that this process has of it, int64 (T,) each.

        Known before any prediction, because each image has min(Q, T) matched queries. (Which ones only
        matters where T > Q and classes differ in weight: each target then counts Q/T of its weight.) All
        processes have to call this together.
        """
        device = self.empty_weight.device
        shares = [torch.full((len(one),), min(1.0, num_queries / max(1, len(one)))) for one in labels]
        unmatched = sum(max(0, num_queries - len(one)) for one in labels)
        weights = self.empty_weight[torch.cat(list(labels)).to(device)]
        sums = torch.stack(
            [
                (weights * torch.cat(shares).to(device)).sum() + unmatched * self.empty_weight[-1],
                torch.tensor(float(sum(len(one) for one in labels)), device=device),
            ]
        )
        processes = comm.get_world_size()
        if processes > 1:
            torch.distributed.all_reduce(sums)
        return LossTotals(sums[0] / processes, sums[1].clamp(min=1) / processes)

    def forward(
        self, outputs: Predictions, targets: list[Target], totals: LossTotals | None = None
    ) -> dict[str, Tensor]:
        """Unweighted losses by name, always the same names, also when no image has a target.

        `totals`: None when these images are all that this process has of the batch.
        """
        if totals is None:
            num_queries = outputs["pred_logits"].shape[1]
            totals = self.totals([target["labels"] for target in targets], num_queries)
        losses = self.prediction_losses(outputs, targets, totals)
        for layer, earlier in enumerate(outputs["aux_outputs"]):
            for name, loss in self.prediction_losses(earlier, targets, totals).items():
                losses[f"{name}_{layer}"] = loss
        return losses

    def prediction_losses(
        self, prediction: Prediction, targets: list[Target], totals: LossTotals
    ) -> dict[str, Tensor]:
        """The three losses of one prediction, with its own matching; float32, outside autocast."""
        pairs = self.matcher(prediction, targets)
        with torch.autocast(prediction["pred_logits"].device.type, enabled=False):
            classes = self.classification_loss(prediction["pred_logits"].float(), targets, pairs)
            focal, dice = self.mask_losses(prediction["pred_masks"].float(), targets, pairs)
        return {
            "loss_ce": classes / totals.class_weight,
            "loss_mask": focal / totals.targets,
            "loss_dice": dice / totals.targets,
        }

    def classification_loss(self, logits: Tensor, targets: list[Target], pairs: Pairs) -> Tensor:
        """Sum over queries of the weighted cross-entropy of `logits` B×Q×(C+1)."""
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        labels[query_index(pairs)] = torch.cat(
            [target["labels"][segments] for target, (_, segments) in zip(targets, pairs, strict=True)]
        )
        return F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight, reduction="sum")

    def mask_losses(self, masks: Tensor, targets: list[Target], pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Sums of focal and dice losses of mask logits B×Q×H×W, upsampled to the ground truth's size."""
        true_masks = torch.cat(
            [target["masks"][segments] for target, (_, segments) in zip(targets, pairs, strict=True)]
        )
        return upsampled_mask_losses(masks[query_index(pairs)], true_masks)


def query_index(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Image and query index of every matched pair of the batch, in the order of the images."""
    images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
    return images, torch.cat([queries for queries, _ in pairs])

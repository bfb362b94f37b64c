"""The training loss: matched class and mask losses on every decoder layer (arXiv 2107.06278, Section 3.2).

Shapes: B batch · Q queries · C classes without "no object" · N matched pairs of the batch · H W size of the
predicted masks · Hp Wp size of the ground truth (the padded image).
"""

from collections.abc import Mapping
from typing import Any

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
    targets averaged over processes, at least 1. Earlier decoder layers' losses are called `loss_ce_0`, ….
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

    def forward(self, outputs: Predictions, targets: list[Target]) -> dict[str, Tensor]:
        """Unweighted losses by name, always the same names, also when no image has a target."""
        num_targets = mean_num_targets(targets, outputs["pred_logits"].device)
        losses = self.prediction_losses(outputs, targets, num_targets)
        for layer, earlier in enumerate(outputs["aux_outputs"]):
            for name, loss in self.prediction_losses(earlier, targets, num_targets).items():
                losses[f"{name}_{layer}"] = loss
        return losses

    def prediction_losses(
        self, prediction: Prediction, targets: list[Target], num_targets: Tensor
    ) -> dict[str, Tensor]:
        """The three losses of one prediction, with its own matching; float32, outside autocast."""
        pairs = self.matcher(prediction, targets)
        with torch.autocast(prediction["pred_logits"].device.type, enabled=False):
            return {
                "loss_ce": self.classification_loss(prediction["pred_logits"].float(), targets, pairs),
                **self.mask_losses(prediction["pred_masks"].float(), targets, pairs, num_targets),
            }

    def classification_loss(self, logits: Tensor, targets: list[Target], pairs: Pairs) -> Tensor:
        """Weighted mean cross-entropy of `logits` B×Q×(C+1)."""
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        labels[query_index(pairs)] = torch.cat(
            [target["labels"][segments] for target, (_, segments) in zip(targets, pairs, strict=True)]
        )
        return F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight)

    def mask_losses(
        self, masks: Tensor, targets: list[Target], pairs: Pairs, num_targets: Tensor
    ) -> dict[str, Tensor]:
        """Focal and dice losses of mask logits B×Q×H×W, upsampled to the ground truth's size."""
        true_masks = torch.cat(
            [target["masks"][segments] for target, (_, segments) in zip(targets, pairs, strict=True)]
        )
        focal, dice = upsampled_mask_losses(masks[query_index(pairs)], true_masks)
        return {"loss_mask": focal / num_targets, "loss_dice": dice / num_targets}


def query_index(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Image and query index of every matched pair of the batch, in the order of the images."""
    images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
    return images, torch.cat([queries for queries, _ in pairs])


def mean_num_targets(targets: list[Target], device: torch.device) -> Tensor:
    """Number of targets averaged over processes, at least 1, as a scalar tensor."""
    count = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
    return (count / comm.get_world_size()).clamp(min=1)

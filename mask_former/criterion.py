"""The training loss: matched class and mask losses on every decoder layer (arXiv 2107.06278, Section 3.2).

A batch may be spread over processes, and within one over micro-batches whose gradients add up. What its
losses divide by, `LossTotals`, belongs to the whole of it, so that the spreading changes neither loss nor
gradient.

All predictions of a step are matched and judged together: one wait for the device, one function for all mask
losses.

Shapes: L predictions · B images of a micro-batch · Q queries · C classes without "no object" · M matched
pairs of one image · H W size of the predicted masks · Hp Wp size of the ground truth (the padded image).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.matcher import HungarianMatcher, Pairs, Target
from mask_former.predictor import Prediction, Predictions
from mask_former.registries import CRITERION_REGISTRY
from mask_former.transfer import to_device
from mask_former.upsampled_losses import upsampled_mask_losses


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
        self.compiled = False  # the mask losses, by torch.compile

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
        counts = [len(one) for one in labels]
        shares = [torch.full((count,), min(1.0, num_queries / max(1, count))) for count in counts]
        together = torch.cat(list(labels))
        # how often each class occurs, then the number of targets: one small copy to the criterion's device
        occurs = torch.zeros(self.num_classes + 2, device=together.device)
        occurs.index_add_(0, together, to_device([torch.cat(shares)], together.device)[0])
        occurs[-2] += sum(max(0, num_queries - count) for count in counts)
        occurs[-1] += sum(counts)
        occurs = to_device([occurs], self.empty_weight.device)[0]
        sums = torch.stack([(self.empty_weight * occurs[:-1]).sum(), occurs[-1]])
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
        return self.losses(by_layer(outputs), targets, totals)

    def losses(
        self,
        predictions: Mapping[str, Prediction],
        targets: list[Target],
        totals: LossTotals | None = None,
    ) -> dict[str, Tensor]:
        """The three losses of every prediction, each with its own matching; float32, outside autocast.

        `predictions`: by what their losses' names end in; all of the same shapes.
        """
        every = list(predictions.values())
        if totals is None:
            num_queries = every[0]["pred_logits"].shape[1]
            totals = self.totals([target["labels"] for target in targets], num_queries)
        pairs = self.matcher.match(every, targets)
        device = every[0]["pred_logits"].device
        with torch.autocast(device.type, enabled=False):
            pairs, labels = self.on_device(pairs, targets, every[0]["pred_logits"].shape)
            logits = torch.stack([prediction["pred_logits"] for prediction in every]).float()
            classes = self.classification_loss(logits, labels) / totals.class_weight
            focal, dice = upsampled_mask_losses(
                [prediction["pred_masks"] for prediction in every],
                [target["masks"] for target in targets],
                pairs,
                compiled=self.compiled,
            )
            focal, dice = focal / totals.targets, dice / totals.targets
        named: dict[str, Tensor] = {}
        for suffix, *three in zip(predictions, classes.unbind(), focal.unbind(), dice.unbind(), strict=True):
            named |= dict(
                zip((f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice")), three, strict=True)
            )
        return named

    def on_device(
        self, pairs: Sequence[Pairs], targets: Sequence[Target], shape: Sequence[int]
    ) -> tuple[list[Pairs], Tensor]:
        """`pairs` on the predictions' device, and the classes L×B×Q that they give to the queries.

        `shape`: of a prediction's logits, B×Q×(C+1). All indices travel in one copy.
        """
        images, queries = shape[:2]
        rows, columns = [], []  # of the matched queries among all, of their segments among all
        for number, of_images in enumerate(pairs):
            first = 0
            for image, ((matched, segments), target) in enumerate(zip(of_images, targets, strict=True)):
                rows.append(matched + (number * images + image) * queries)
                columns.append(segments + first)
                first += len(target["labels"])
        flat = [indices for of_images in pairs for pair in of_images for indices in pair]
        known = torch.cat([target["labels"] for target in targets])
        row, column, *there = to_device([torch.cat(rows), torch.cat(columns), *flat], known.device)
        labels = known.new_full((len(pairs) * images * queries,), self.num_classes)
        labels.index_copy_(0, row, known.index_select(0, column))
        found = iter(zip(there[::2], there[1::2], strict=True))
        return [[next(found) for _ in of_images] for of_images in pairs], labels.view(-1, images, queries)

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums (L,) over queries of the weighted cross-entropy of `logits` L×B×Q×(C+1)."""
        each = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), self.empty_weight, reduction="none")
        return each.view(len(logits), -1).sum(dim=1)


def by_layer(outputs: Predictions) -> dict[str, Prediction]:
    """The predictions of every supervised layer by what their losses' names end in: "" (the last), "_0", …"""
    earlier = {f"_{layer}": prediction for layer, prediction in enumerate(outputs["aux_outputs"])}
    return {"": outputs, **earlier}

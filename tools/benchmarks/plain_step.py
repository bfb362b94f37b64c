"""A training step of this project without what makes it fast: what tools/benchmarks/step.py compares with.

The plain criterion and matching (plain_criterion.py), frozen norms as detectron2 computes them, and an
optimiser that takes one parameter after the other.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from mask_former.criterion import LossTotals, SetCriterion
from mask_former.frozen_norms import FoldedConv2d
from mask_former.matcher import Target
from mask_former.predictor import Prediction
from tools.benchmarks.plain_criterion import plain_losses


def make_plain(model: nn.Module) -> nn.Module:
    """`model` itself, from now on computing its losses and frozen norms the plain way."""
    for part in model.modules():
        if isinstance(part, FoldedConv2d):
            part.__class__ = Conv2d
    criterion: Any = model.get_submodule("criterion")
    criterion.losses = partial(losses_one_by_one, criterion)
    return model


def losses_one_by_one(
    criterion: SetCriterion,
    predictions: Mapping[str, Prediction],
    targets: Sequence[Target],
    totals: LossTotals | None = None,
) -> dict[str, Tensor]:
    """`SetCriterion.losses` by its definition, outside autocast as there."""
    if totals is None:
        queries = next(iter(predictions.values()))["pred_logits"].shape[1]
        totals = criterion.totals([target["labels"] for target in targets], queries)
    with torch.autocast(criterion.empty_weight.device.type, enabled=False):
        return plain_losses(criterion, predictions, targets, totals)


def plain_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, one parameter after the other."""
    return torch.optim.AdamW(groups, foreach=False)

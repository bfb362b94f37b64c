"""From predictions to results, as pure functions of one image's tensors.

Shapes: Q queries · C classes without "no object" · K queries kept · H W size of the result.
`logits` Q×(C+1) are class logits, `masks` Q×H×W mask logits.
"""

from collections.abc import Collection
from typing import TypedDict

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor


class Segment(TypedDict):
    """One segment of a panoptic result."""

    id: int  # its value in the id map, from 1
    isthing: bool
    category_id: int  # contiguous class


def class_probabilities(logits: Tensor) -> Tensor:
    """Q×(C+1) logits to Q×C probabilities of real classes; what is missing to 1 belongs to "no object"."""
    return logits.softmax(dim=-1)[..., :-1]


def semantic_inference(logits: Tensor, masks: Tensor) -> Tensor:
    """C×H×W class scores Σ_q P_qc σ(m_q)."""
    return torch.einsum("qc,qhw->chw", class_probabilities(logits), masks.sigmoid())


def panoptic_inference(
    logits: Tensor,
    masks: Tensor,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[Segment]]:
    """Id map (int32 H×W, 0 where nothing is) and its segments, ids from 1 in the order of the queries.

    A query takes part if its best class is real and scores above `object_mask_threshold`. Every pixel goes to
    the query with the largest score·σ(m). A query is dropped if it won no pixel, if its mask has no pixel
    with σ(m) ≥ 0.5, or if won/mask area is below `overlap_threshold`. Stuff of one class is one segment.
    """
    scores, labels = logits.softmax(dim=-1).max(dim=-1)
    kept = (labels != logits.shape[-1] - 1) & (scores > object_mask_threshold)
    scores, labels, probabilities = scores[kept], labels[kept], masks[kept].sigmoid()
    if len(scores) == 0:
        return torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device), []

    winner = (scores[:, None, None] * probabilities).argmax(dim=0)  # H×W, index among the kept
    won = torch.bincount(winner.flatten(), minlength=len(scores)).tolist()
    mask_area = (probabilities >= 0.5).flatten(1).sum(dim=1).tolist()

    segments: list[Segment] = []
    stuff_segment: dict[int, int] = {}
    segment_of = [0] * len(scores)
    for k, label in enumerate(labels.tolist()):
        if won[k] == 0 or mask_area[k] == 0 or won[k] / mask_area[k] < overlap_threshold:
            continue
        if label in stuff_segment:
            segment_of[k] = stuff_segment[label]
            continue
        is_thing = label in thing_ids
        segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": label})
        segment_of[k] = len(segments)
        if not is_thing:
            stuff_segment[label] = len(segments)
    table = torch.tensor(segment_of, dtype=torch.int32, device=masks.device)
    return table[winner], segments


def instance_inference(
    logits: Tensor, masks: Tensor, thing_ids: Collection[int], max_instances: int = 100
) -> Instances:
    """The best (query, class) pairs of thing classes, with masks, boxes and scores.

    The `max_instances` pairs with the highest class probability are taken; those of things remain.
    A mask is where the logit is above 0; pairs with an empty one are left out. Score = class probability ×
    mean σ(m) over the mask.
    """
    probabilities = class_probabilities(logits)
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    queries, classes = pairs // num_classes, pairs % num_classes

    is_thing = torch.zeros(num_classes, dtype=torch.bool, device=logits.device)
    is_thing[list(thing_ids)] = True
    has_mask = (masks > 0).flatten(1).any(dim=1)
    valid = is_thing[classes] & has_mask[queries]
    scores, queries, classes = scores[valid], queries[valid], classes[valid]

    binary = masks > 0
    area = binary.flatten(1).sum(dim=1).clamp(min=1)
    mask_score = (masks.sigmoid() * binary).flatten(1).sum(dim=1) / area

    result = Instances(tuple(masks.shape[-2:]))
    result.pred_masks = binary[queries]
    result.pred_boxes = BitMasks(result.pred_masks).get_bounding_boxes()
    result.scores = scores * mask_score[queries]
    result.pred_classes = classes
    return result

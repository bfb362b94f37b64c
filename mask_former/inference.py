"""From predictions to results, as pure functions of one image's tensors.

Shapes: Q queries · C classes without "no object" · K queries kept · n queries at a time · h×w size of the
predicted masks · H×W size of the result. `logits` Q×(C+1) are class logits, `masks` Q×h×w mask logits.

Only the queries that a result needs are brought to its size, some of them or some rows at a time, so that no
function holds K×H×W numbers that it does not return. Results carry no gradient.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import TypedDict

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask_former.resizing import Axis, Resizing, bilinear, bilinear_weights, chunks, rows_at_a_time


class Segment(TypedDict):
    """One segment of a panoptic result."""

    id: int  # its value in the id map, from 1
    isthing: bool
    category_id: int  # contiguous class


def class_probabilities(logits: Tensor) -> Tensor:
    """Q×(C+1) logits to Q×C probabilities of real classes; what is missing to 1 belongs to "no object"."""
    return logits.softmax(dim=-1)[..., :-1]


@torch.no_grad()
def semantic_inference(logits: Tensor, masks: Tensor, resizing: Resizing | None = None) -> Tensor:
    """C×H×W class scores Σ_q P_qc σ(m_q); `resizing`: unless masks have the size of the result."""
    resizing = resizing or Resizing.none(masks)
    weights = class_probabilities(logits).T.contiguous()  # C×Q
    height, width = resizing.size
    rows, columns = resizing.axes(masks)
    scores = masks.new_empty((len(weights), height * width))
    step = rows_at_a_time(len(masks) * width, masks.device)
    for start in range(0, height, step):
        block = rows.of(masks, start, start + step, columns)  # Q×step×W
        part = slice(start * width, (start + step) * width)
        torch.mm(weights, block.sigmoid().flatten(1), out=scores[:, part])
    return scores.view(-1, height, width)


@torch.no_grad()
def semantic_inference_then_resize(logits: Tensor, masks: Tensor, resizing: Resizing) -> Tensor:
    """C×H×W class scores, mixed at the size of the image and then brought to that of the result."""
    at_image = replace(resizing, size=resizing.image)
    if resizing == at_image:
        return semantic_inference(logits, masks, resizing)
    weights = class_probabilities(logits).T.contiguous()  # C×Q
    rows, columns = at_image.axes(masks)
    to_result = Axis(bilinear_weights(resizing.image[0], resizing.size[0]), masks.device)
    height, width = resizing.size
    scores = masks.new_empty((len(weights), height, width))
    step = rows_at_a_time(max(len(masks), len(weights)) * resizing.image[1], masks.device)
    for start in range(0, height, step):
        first, last = to_result.sources(start, start + step)
        block = rows.of(masks, first, last, columns).sigmoid().flatten(1)
        mixed = torch.mm(weights, block).view(len(weights), -1, resizing.image[1])
        tall = to_result.weights[start : start + step, first:last] @ mixed
        scores[:, start : start + step] = bilinear(tall, (tall.shape[1], width))
    return scores


@torch.no_grad()
def panoptic_inference(
    logits: Tensor,
    masks: Tensor,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    resizing: Resizing | None = None,
) -> tuple[Tensor, list[Segment]]:
    """Id map (int32 H×W, 0 where nothing is) and its segments, ids from 1 in the order of the queries.

    A query takes part if its best class is real and scores above `object_mask_threshold`. Every pixel goes to
    the query with the largest score·σ(m), the first of equals. A query is dropped if it won no pixel, if its
    mask has no pixel with σ(m) ≥ 0.5, or if won/mask area is below `overlap_threshold`. Stuff of one class is
    one segment. `resizing`: unless masks have the size of the result.
    """
    resizing = resizing or Resizing.none(masks)
    scores, labels = logits.softmax(dim=-1).max(dim=-1)
    kept = (labels != logits.shape[-1] - 1) & (scores > object_mask_threshold)
    label_of = {q: label for q, label in enumerate(labels.where(kept, -1).tolist()) if label >= 0}
    if not label_of:
        return torch.zeros(resizing.size, dtype=torch.int32, device=masks.device), []

    winner, mask_area = _winners(scores, masks, list(label_of), resizing)
    won = torch.bincount(winner.flatten(), minlength=len(label_of))
    areas = torch.stack([won.double(), mask_area], dim=1).tolist()

    segments: list[Segment] = []
    stuff_segment: dict[int, int] = {}
    segment_of = [0] * len(label_of)
    for k, (label, (won_area, area)) in enumerate(zip(label_of.values(), areas, strict=True)):
        if won_area == 0 or area == 0 or won_area / area < overlap_threshold:
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
    return table.index_select(0, winner.flatten()).view(resizing.size), segments


def _winners(scores: Tensor, masks: Tensor, queries: list[int], resizing: Resizing) -> tuple[Tensor, Tensor]:
    """int32 H×W which of the K queries has the largest score·σ(m), and float64 K pixels with σ(m) ≥ 0.5."""
    best = torch.full(resizing.size, -1.0, device=masks.device)
    winner = torch.zeros_like(best)  # float, whose operations are the fast ones
    areas = []
    first = 0
    for chosen, logits in chunks(masks, queries, resizing):
        probabilities = logits.sigmoid()  # n×H×W
        values, index = _largest(probabilities * scores[chosen, None, None])
        areas.append(_count(probabilities.ge_(0.5)))
        higher = torch.maximum(best, values)
        # a query that takes a pixel comes after all before it, so the largest index is the one to keep
        torch.maximum(winner, values.gt_(best).mul_(index + first), out=winner)
        best = higher
        first += len(chosen)
    return winner.to(torch.int32), torch.cat(areas)


def _largest(maps: Tensor) -> tuple[Tensor, Tensor | int]:
    """H×W largest of n×H×W values and the index of the first that is it."""
    if len(maps) == 1:
        return maps[0], 0
    values, index = maps.max(dim=0)
    return values, index


def _count(ones: Tensor) -> Tensor:
    """float64 n: how many of n×H×W zeros and ones are ones; exact, since float32 holds the sum of a row."""
    return ones.sum(dim=-1).sum(dim=-1, dtype=torch.float64)


@torch.no_grad()
def instance_inference(
    logits: Tensor,
    masks: Tensor,
    thing_ids: Collection[int],
    max_instances: int = 100,
    resizing: Resizing | None = None,
) -> Instances:
    """The best (query, class) pairs of thing classes, with masks, boxes and scores.

    The `max_instances` pairs with the highest class probability are taken; those of things remain.
    A mask is where the logit is above 0; pairs with an empty one are left out. Score = class probability ×
    mean σ(m) over the mask. `resizing`: unless masks have the size of the result.
    """
    resizing = resizing or Resizing.none(masks)
    probabilities = class_probabilities(logits)
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    found = [
        (rank, *divmod(pair, num_classes))
        for rank, pair in enumerate(pairs.tolist())
        if pair % num_classes in thing_ids
    ]
    queries = sorted({query for _, query, _ in found})
    binary = torch.zeros((len(queries), *resizing.size), dtype=torch.bool, device=masks.device)
    mask_scores = [torch.zeros(0, device=masks.device)]
    first = 0
    for chosen, mask_logits in chunks(masks, queries, resizing):
        inside = mask_logits.gt(0)
        binary[first : first + len(chosen)] = inside
        total = (mask_logits.sigmoid() * inside).flatten(1).sum(dim=1)
        mask_scores.append(total / inside.flatten(1).sum(dim=1))  # nan where the mask is empty
        first += len(chosen)
    mask_score = torch.cat(mask_scores)

    place = {query: k for k, query in enumerate(queries)}
    not_empty = mask_score.isfinite().tolist()
    found = [(rank, query, label) for rank, query, label in found if not_empty[place[query]]]
    ranks, of_mask, classes = (
        torch.tensor(
            [(rank, place[query], label) for rank, query, label in found],
            dtype=torch.int64,
            device=masks.device,
        )
        .reshape(-1, 3)
        .T
    )
    result = Instances(resizing.size)
    result.pred_masks = binary.index_select(0, of_mask)
    result.pred_boxes = Boxes(_boxes(binary).index_select(0, of_mask))
    result.scores = scores[ranks] * mask_score[of_mask]
    result.pred_classes = classes
    return result


def _boxes(masks: Tensor) -> Tensor:
    """float n×4 (left, top, right, bottom) around masks bool n×H×W, right and bottom exclusive."""
    edges = []
    for across in (1, 2):  # columns, then rows that have a pixel
        there = masks.view(torch.uint8).amax(dim=across)
        length = there.shape[1]
        edges.append((there.argmax(dim=1), length - there.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()

"""The results of one image written down as they are defined, to compare fast ways with.

All masks are brought to full size, and every rule is a loop over whole maps. Shapes as in
`mask_former.inference`; `masks` have the size that the rule works on.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.resizing import Resizing


def resize(masks: Tensor, resizing: Resizing) -> Tensor:
    """All masks at the size of the result: to the padded image, without its padding, to the size."""
    return to_result(to_padded(masks, resizing), resizing)


def to_padded(masks: Tensor, resizing: Resizing) -> Tensor:
    """All masks at the size of the padded image."""
    return F.interpolate(masks[None], size=resizing.padded, mode="bilinear", align_corners=False)[0]


def to_result(maps: Tensor, resizing: Resizing) -> Tensor:
    """Maps of the padded image without the padding, at the size of the result."""
    height, width = resizing.image
    maps = maps[None, :, :height, :width]
    return F.interpolate(maps, size=resizing.size, mode="bilinear", align_corners=False)[0]


def semantic(logits: Tensor, masks: Tensor) -> Tensor:
    """C×H×W class scores Σ_q P_qc σ(m_q)."""
    probabilities = logits.softmax(dim=-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", probabilities, masks.sigmoid())


def panoptic(
    logits: Tensor, masks: Tensor, thing_ids: Collection[int], score_threshold: float, overlap: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Id map (int32 H×W) and its segments, segment by segment."""
    scores, labels = logits.softmax(dim=-1).max(dim=-1)
    probabilities = masks.sigmoid()
    kept = [q for q in range(len(scores)) if labels[q] != logits.shape[1] - 1 and scores[q] > score_threshold]
    ids = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    segments: list[dict[str, Any]] = []
    if not kept:
        return ids, segments
    winner = (scores[kept, None, None] * probabilities[kept]).argmax(dim=0)
    id_of_stuff: dict[int, int] = {}
    for k, q in enumerate(kept):
        won = winner == k
        won_area, mask_area = int(won.sum()), int((probabilities[q] >= 0.5).sum())
        if not won_area or not mask_area or won_area / mask_area < overlap:
            continue
        label = int(labels[q])
        if label in id_of_stuff:
            ids[won] = id_of_stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in thing_ids, "category_id": label})
        ids[won] = len(segments)
        if label not in thing_ids:
            id_of_stuff[label] = len(segments)
    return ids, segments


def instances(
    logits: Tensor, masks: Tensor, thing_ids: Collection[int], max_instances: int = 100
) -> list[tuple[int, float, Tensor, list[int]]]:
    """(class, score, bool H×W mask, [left, top, right, bottom]) of the best pairs, best class first."""
    probabilities = logits.softmax(dim=-1)[:, :-1]
    pairs = probabilities.flatten().argsort(descending=True, stable=True)[:max_instances]
    found = []
    for pair in pairs.tolist():
        query, label = divmod(pair, probabilities.shape[1])
        mask = masks[query] > 0
        if label not in thing_ids or not mask.any():
            continue
        score = probabilities[query, label] * masks[query].sigmoid()[mask].mean()
        rows, columns = (mask.any(dim=across).nonzero().flatten() for across in (1, 0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        found.append((label, float(score), mask, box))
    return found

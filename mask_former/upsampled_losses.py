"""Focal and dice losses of upsampled masks without ever keeping an upsampled mask.

Shapes: L predictions (decoder layers, of both stages) · B images · Q queries · M matched pairs of one
prediction · n pairs at a time · h w size of the predicted masks · H W size of the ground truth.

The plain form (`focal_loss` and `dice_loss` of `F.interpolate`d logits) keeps a dozen M×H×W tensors for its
gradient. Here a few masks at a time, of one image or of several, are upsampled, both losses and their
derivatives with respect to the upsampled logits are computed in closed form, in buffers that are used again
and again, and the derivatives are brought back to h×w at once. What is kept is 2×M×h×w a prediction, where
M ≤ B·Q: at most twice the size of the predictions, whatever the number of targets. (Two slopes and not one,
because the two losses may come back with any two gradients.)

With t the mask (0 or 1), y = x − 2tx (the logit of being wrong), p = σ(y), c = softplus(y) = y − log p and a
the weight of the pixel, the focal loss and its slope are

    focal = a p² c                        d focal/dx = (1−2t) a (2q + p (p² − 2q)), q = p² c

where a = (1−α) − (1−2α) t and (1−2t) a = (1−α) − t. With I, A and T the sums of σ(x) t, σ(x) and t,

    dice  = 1 − (2I + 1)/(A + T + 1)      d dice/dx = (p − p²) ((2I + 1) − 2t (A + T + 1))/(A + T + 1)²

In float32 p − p² loses its digits where p is nearly 1: the dice slope of a pixel that is wrong by a logit of
15 or more is inexact, and beyond 17 it is 0. It is below 1e-7 there, and focal's is near its largest.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mask_former.bilinear import transposed_upsample, upsample
from mask_former.losses import DICE_SMOOTH, FOCAL_ALPHA, FOCAL_GAMMA

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[Tensor, Tensor]]  # of every image: indices of queries and of their segments
Part = tuple[int, Tensor, Tensor]  # some of one image's pairs: image, queries, segments
Terms = tuple[Tensor, tuple[Tensor, ...], Tensor]

# Six tensors of this many numbers live at a time: enough that starting threads costs a CPU little, and that
# a GPU is busy.
PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**22}
SMALLEST = -80.0  # logits below are taken for it: log σ is still a number there, and its losses are zero


def upsampled_mask_losses(
    predictions: Sequence[Tensor], masks: Sequence[Tensor], pairs: Sequence[Pairs], *, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Sums over each prediction's pairs of the focal and of the dice loss of bilinearly upsampled logits.

    `predictions`: L logits B×Q×h×w of any float type; `masks`: of every image T×H×W bool; `pairs`: of every
    prediction, on its device. Returns two tensors (L,), at least float32, zeros where there is no pair.
    Differentiable once with respect to the predictions. `compiled`: by torch.compile, where that works.
    """
    focal, dice = UpsampledMaskLosses.apply(masks, pairs, compiled, *predictions)
    return focal, dice


class UpsampledMaskLosses(torch.autograd.Function):
    """All sums, with their low-resolution derivatives computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, masks: Sequence[Tensor], pairs: Sequence[Pairs], compiled: bool, *predictions: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(predictions[0].dtype, torch.float32)
        sums = predictions[0].new_zeros((2, len(predictions)), dtype=dtype)
        most = max(sum(len(queries) for queries, _ in matched) for matched in pairs)
        chunks = _Chunks(masks, dtype, most, compiled)
        slopes = []
        for number, (prediction, matched) in enumerate(zip(predictions, pairs, strict=True)):
            kept = None
            if ctx.needs_input_grad[3 + number]:
                shape = (2, sum(len(queries) for queries, _ in matched), *prediction.shape[-2:])
                kept = prediction.new_empty(shape, dtype=dtype)
            chunks.add(prediction, matched, sums[:, number], kept)
            slopes.append(kept)
        ctx.pairs, ctx.shapes = pairs, [(prediction.shape, prediction.dtype) for prediction in predictions]
        ctx.save_for_backward(*slopes)
        return sums[0], sums[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal_gradient: Tensor, dice_gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        for number, (kept, matched) in enumerate(zip(ctx.saved_tensors, ctx.pairs, strict=True)):
            if kept is None:
                gradients.append(None)
                continue
            shape, dtype = ctx.shapes[number]
            gradient = torch.zeros(shape, dtype=dtype, device=kept.device)
            start = 0
            for image, (queries, _) in enumerate(matched):
                focal, dice = kept[:, start : start + len(queries)]
                slope = (focal * focal_gradient[number]).addcmul_(dice, dice_gradient[number])
                gradient[image].index_copy_(0, queries, slope.to(dtype))
                start += len(queries)
            gradients.append(gradient)
        return (None, None, None, *gradients)


class _Chunks:
    """Goes through the pairs of a prediction, a few at a time, in its own buffers."""

    def __init__(self, masks: Sequence[Tensor], dtype: torch.dtype, most: int, compiled: bool) -> None:
        """`most`: pairs that any prediction has."""
        self.masks = masks
        self.size = (int(masks[0].shape[-2]), int(masks[0].shape[-1]))
        device = masks[0].device
        pixels = PIXELS_AT_ONCE.get(device.type, PIXELS_AT_ONCE["cpu"])
        self.step = max(1, min(most, pixels // max(1, self.size[0] * self.size[1])))
        self.terms: Callable[..., Terms] = _compiled_terms() if compiled else mask_terms
        count = 2 if compiled else 6  # a compiled function has its own
        self.buffers = torch.empty((count, self.step, *self.size), dtype=dtype, device=device)

    def add(self, prediction: Tensor, pairs: Pairs, sums: Tensor, slopes: Tensor | None) -> None:
        """Add a prediction's losses to `sums` (2,) and write its derivatives to `slopes` 2×M×h×w."""
        start = 0
        for chunk in chunked(pairs, self.step):
            low = torch.cat([prediction[image].index_select(0, queries) for image, queries, _ in chunk])
            part = slopes[:, start : start + len(low)] if slopes is not None else None
            sums += self._losses(low, chunk, part)
            start += len(low)

    def _losses(self, low: Tensor, chunk: Sequence[Part], slopes: Tensor | None) -> Tensor:
        """Sums (2,) of the losses of `low` n×h×w; their derivatives go to `slopes` 2×n×h×w."""
        logits, truth, *work = self.buffers[:, : len(low)]
        upsample(low.to(logits.dtype), out=logits)
        for place, (image, _, segments) in zip(truth.split([len(p[2]) for p in chunk]), chunk, strict=True):
            place.copy_(self.masks[image].index_select(0, segments))
        losses, derivatives, scales = self.terms(logits, truth, work or None, slopes is not None)
        if slopes is not None:
            for slope, derivative, scale in zip(slopes, derivatives, scales, strict=True):
                back = transposed_upsample(derivative, (low.shape[-2], low.shape[-1]))
                torch.mul(back, scale[:, None, None], out=slope)
        return losses.sum(dim=1)


def chunked(pairs: Pairs, size: int) -> Iterator[list[Part]]:
    """The pairs of a prediction in their order, `size` at a time, whichever images they are of."""
    chunk: list[Part] = []
    room = size
    for image, (queries, segments) in enumerate(pairs):
        start = 0
        while start < len(queries):
            some = slice(start, start + room)
            chunk.append((image, queries[some], segments[some]))
            room -= len(chunk[-1][1])
            start += len(chunk[-1][1])
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def mask_terms(x: Tensor, t: Tensor, work: Sequence[Tensor] | None, with_slopes: bool) -> Terms:
    """Losses 2×n of logits `x` n×H×W and masks `t` n×H×W of 0 and 1, and their derivatives up to a factor.

    Returns the losses, the two derivatives n×H×W (none if not wanted) and their factors 2×n. `work`: four
    tensors like `x` to compute in; None to have them made here.
    """
    assert FOCAL_GAMMA == 2, "the derivative below is that of γ = 2"
    y, p, q, square = work if work is not None else [torch.empty_like(x) for _ in range(4)]
    torch.addcmul(x, x, t, value=-2, out=y).clamp_(min=SMALLEST)
    torch.sigmoid(y, out=p)
    c = y.sub_(torch.log(p, out=q))
    torch.mul(p, p, out=square)
    torch.mul(square, c, out=q)

    def summed(values: Tensor) -> tuple[Tensor, Tensor]:
        """Over all pixels, and over the mask; c is no longer needed."""
        return values.sum(dim=(1, 2)), torch.mul(values, t, out=y).sum(dim=(1, 2))

    (focal, focal_inside), (wrong, wrong_inside), area = summed(q), summed(p), t.sum(dim=(1, 2))
    pixels = x.shape[1] * x.shape[2]
    focal = ((1 - FOCAL_ALPHA) * focal - (1 - 2 * FOCAL_ALPHA) * focal_inside) / pixels
    total = 2 * area + wrong - 2 * wrong_inside + DICE_SMOOTH  # A + T + 1
    doubled = 2 * (area - wrong_inside) + DICE_SMOOTH  # 2I + 1
    losses = torch.stack((focal, 1 - doubled / total))
    if not with_slopes:
        return losses, (), losses

    dice_slope = torch.sub(p, square, out=y)
    focal_slope = q.addcmul_(p, square.sub_(q, alpha=2), value=0.5)
    focal_slope.addcmul_(focal_slope, t, value=-1 / (1 - FOCAL_ALPHA))
    dice_slope.addcmul_(dice_slope, torch.mul(t, (-2 * total / doubled)[:, None, None], out=square))
    scales = torch.stack((torch.full_like(total, 2 * (1 - FOCAL_ALPHA) / pixels), doubled / total.square()))
    return losses, (focal_slope, dice_slope), scales


@cache
def _compiled_terms() -> Callable[..., Terms]:
    """`mask_terms` as one or two kernels; the function itself, said once, where there is no compiler."""
    working = [torch.compile(mask_terms, dynamic=True)]  # for any size and number of masks

    def terms(*arguments: Any) -> Terms:
        if working:
            try:
                return working[0](*arguments)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # of a type that changes from release to release
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                logger.warning("the mask losses cannot be compiled here and go on without: %s", reason)
                working.clear()
        return mask_terms(*arguments)

    return terms

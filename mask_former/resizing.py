"""Mask logits on their way from the size predicted to the size of a result, a part at a time.

Some queries at a time, bit for bit as torch resizes all of them; or some rows of all queries at a time, by
one matrix per axis, which is cheaper and differs by rounding.

Shapes: Q queries · n of them · h×w size of the predicted masks · H×W size of the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # height, width

# What is worked on at a time, in elements: on a CPU what stays in its cache, on a GPU what keeps it busy.
CPU_CHUNK = 2**19
GPU_CHUNK = 2**25
FEWEST_ROWS = 16  # fewer, and the rows that neighbouring parts share would be much of the work


@dataclass(frozen=True)
class Resizing:
    """The way of masks n×h×w to the size of a result: to the padded image, without its padding, to `size`."""

    padded: Size
    image: Size  # what the network saw, without padding
    size: Size  # H, W

    def __call__(self, masks: Tensor) -> Tensor:
        """Masks n×H×W."""
        height, width = self.image
        return bilinear(bilinear(masks, self.padded)[:, :height, :width], self.size)

    @classmethod
    def none(cls, masks: Tensor) -> "Resizing":
        """For masks that have the size of the result."""
        height, width = masks.shape[-2:]
        return cls((height, width), (height, width), (height, width))

    def axes(self, masks: Tensor) -> tuple["Axis", "Axis"]:
        """The same for rows and columns on their own."""
        axes = []
        for source, padded, image, size in zip(
            masks.shape[-2:], self.padded, self.image, self.size, strict=True
        ):
            weights = bilinear_weights(source, padded)[:image]
            axes.append(Axis(bilinear_weights(image, size) @ weights, masks.device))
        return axes[0], axes[1]


class Axis:
    """Resizing along one axis, as a matrix of target×source weights."""

    def __init__(self, weights: Tensor, device: torch.device) -> None:
        """`weights`: on the CPU, each row has at least one that is not 0."""
        self.weights = weights.to(device, non_blocking=True)
        used = weights != 0
        self.is_identity = used.shape[0] == used.shape[1] and bool(weights.equal(torch.eye(len(weights))))
        self.first = used.int().argmax(dim=1).tolist()
        self.last = (used.shape[1] - used.flip(1).int().argmax(dim=1)).tolist()

    def sources(self, start: int, stop: int) -> tuple[int, int]:
        """The range of sources that targets start..stop-1 have weights for."""
        return min(self.first[start:stop]), max(self.last[start:stop])

    def of(self, masks: Tensor, start: int, stop: int, columns: "Axis") -> Tensor:
        """Target rows start..stop-1 of masks Q×h×w, this axis being that of the rows."""
        first, last = self.sources(start, stop)
        masks = masks[:, first:last]
        if not columns.is_identity:
            masks = masks @ columns.weights.T
        return masks if self.is_identity else self.weights[start:stop, first:last] @ masks


def bilinear_weights(source: int, target: int) -> Tensor:
    """target×source: what torch's bilinear resizing of one axis multiplies by."""
    return bilinear(torch.eye(source)[None], (target, source))[0]


def bilinear(maps: Tensor, size: Size) -> Tensor:
    """Maps n×h×w at another size."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def at_a_time(elements: int, device: torch.device) -> int:
    """How many things of `elements` elements are worked on at once, at least 1."""
    return max(1, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // max(elements, 1))


def rows_at_a_time(elements: int, device: torch.device) -> int:
    """How many rows of `elements` elements are worked on at once."""
    return max(FEWEST_ROWS, at_a_time(elements, device))


def chunks(masks: Tensor, queries: list[int], resizing: Resizing) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (int64 n) and mask logits n×H×W of some queries at a time, in the order given."""
    chosen = torch.tensor(queries, dtype=torch.int64, device=masks.device)
    step = at_a_time(resizing.padded[0] * resizing.padded[1], masks.device)
    for part in chosen.split(step) if queries else ():
        yield part, resizing(masks.index_select(0, part))

"""Predictions and targets of the criterion's benchmarks: random logits, targets that look like segments.

Shapes: B images · Q queries · C classes without "no object" · T targets of one image.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.matcher import Target
from mask_former.predictor import Prediction

STRIDE = 4  # of predicted masks


@dataclass(frozen=True)
class Sizes:
    """Of one step's predictions and targets."""

    predictions: int = 7  # six decoder layers, and PISR's final one
    images: int = 4
    queries: int = 100
    targets: int = 20
    side: int = 640
    classes: int = 150

    def __str__(self) -> str:
        return (
            f"{self.predictions} predictions, batch {self.images}, {self.queries} queries, "
            f"{self.targets} targets, {self.classes} classes, {self.side}²"
        )


FULL, SMALL = Sizes(), Sizes(predictions=2, images=1, queries=20, targets=4, side=128)


def growth(quick: bool) -> dict[str, list[Sizes]]:
    """What is made larger, and the sizes, everything else staying as it is."""
    if quick:
        return {"targets": [replace(SMALL, targets=count) for count in (1, 8)]}
    base = Sizes(predictions=1, images=1)
    return {
        "targets": [replace(base, targets=count) for count in (1, 10, 100)],
        "side": [replace(base, side=side) for side in (320, 640, 1280)],
        "queries": [replace(base, queries=count) for count in (50, 100, 300)],
        "classes": [replace(base, classes=count) for count in (20, 150, 850)],
        "images": [replace(base, images=count) for count in (1, 4, 16)],
    }


def segments(count: int, side: int, generator: torch.Generator) -> Tensor:
    """`count`×side×side bool masks of blobs."""
    coarse = torch.rand((count, 1, 10, 10), generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0] > 0.5


def predictions_of(sizes: Sizes, device: str) -> dict[str, Prediction]:
    """Leaves that ask for gradients, by what their losses' names end in."""
    generator = torch.Generator().manual_seed(0)
    side = sizes.side // STRIDE
    found: dict[str, Prediction] = {}
    for number in range(sizes.predictions):
        logits = torch.randn((sizes.images, sizes.queries, sizes.classes + 1), generator=generator)
        masks = 3 * torch.randn((sizes.images, sizes.queries, side, side), generator=generator)
        found[f"_{number}"] = {
            "pred_logits": logits.to(device).requires_grad_(),
            "pred_masks": masks.to(device).requires_grad_(),
        }
    return found


def targets_of(sizes: Sizes, device: str) -> list[Target]:
    """One for each image."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "labels": torch.randint(sizes.classes, (sizes.targets,), generator=generator).to(device),
            "masks": segments(sizes.targets, sizes.side, generator).to(device),
        }
        for _ in range(sizes.images)
    ]

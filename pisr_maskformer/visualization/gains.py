"""Δ, the number that the paper's tables rank by: the sum of the gains over the host without PISR.

The three metrics are PQ, mIoU and iIoU; where a data set defines no iIoU (ADE20K, COCO), instance AP stands
in its place, and where that is missing too, Δ is the sum over what there is. A table of Δ says which.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

ALWAYS = ("PQ", "mIoU")
THIRD = ("iIoU", "AP")  # the first that both have


class Gain(NamedTuple):
    """Δ and the metrics it is the sum of; nan over none."""

    value: float
    metrics: tuple[str, ...]

    def definition(self) -> str:
        """In words, for a table's caption."""
        return (
            f"Δ = sum of the gains in {' + '.join(self.metrics)}"
            if self.metrics
            else "Δ: no metric that both sides have"
        )


def gain(baseline: Mapping[str, float], other: Mapping[str, float]) -> Gain:
    """Δ of `other` over `baseline`, name -> 0..100 each; what one lacks, or has as nan, is left out."""
    shared = [
        name
        for name in (*ALWAYS, *THIRD)
        if all(math.isfinite(side.get(name, math.nan)) for side in (baseline, other))
    ]
    third = [name for name in THIRD if name in shared][:1]
    metrics = tuple(name for name in shared if name in ALWAYS or name in third)
    total = math.fsum(other[name] - baseline[name] for name in metrics) if metrics else math.nan
    return Gain(total, metrics)

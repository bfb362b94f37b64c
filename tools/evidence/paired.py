"""Numbers over seeds: mean and deviation, and differences between runs of the same seed.

Runs of one seed see the same data in the same order, so the difference of two rows is taken seed by seed:
what a lucky seed gives to both does not count. The interval is Student's t for the mean of n differences.
"""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from scipy.stats import t as student

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """A mean over seeds and the sample's standard deviation, nan over one seed."""

    mean: float
    deviation: float
    seeds: int


class Difference(NamedTuple):
    """Mean of the paired differences and the ends of its confidence interval, nan over one pair."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def spread(values: Mapping[int, float]) -> Spread | None:
    """Of seed -> value; None over none."""
    if not values:
        return None
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return Spread(statistics.fmean(numbers), deviation, len(numbers))


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` - `baseline` over the seeds of both; None where they share none."""
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    gains = [values[seed] - baseline[seed] for seed in shared]
    mean, count = statistics.fmean(gains), len(gains)
    if count == 1:
        return Difference(mean, math.nan, math.nan, 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(gains) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)

"""PISR without what makes it cheap: what tools/benchmarks/pisr.py compares with, and the tests.

"unfolded": encodings from the queries' pooled sums and F_pan = M F + b, but by PyTorch's own operations, of
which autograd keeps every map, and with F' = F + O_f(GroupNorm(F_pan)) made as a map. The definition itself
is `PISR(direct=True)`.
"""

from functools import partial
from typing import Any

from torch import Tensor

from pisr_maskformer import PISR
from pisr_maskformer.encodings import Gathered, PanopticEncoder, masked, pool
from pisr_maskformer.pixel_sums import at_least_float32


def unfolded(pisr: PISR) -> PISR:
    """`pisr` itself, from now on evaluated without folding."""
    pisr.folds = False
    encoder: Any = pisr.encoder
    encoder.gather = partial(gathered, pisr.encoder)
    return pisr


def gathered(
    encoder: PanopticEncoder,
    features: Tensor,
    region_maps: Tensor,
    class_probs: Tensor,
    valid_pixels: Tensor | None = None,
    **asked: bool,
) -> Gathered:
    """`PanopticEncoder.gather` with one product for the queries and one for the instances, no moments."""
    features, maps = at_least_float32(features), masked(region_maps, valid_pixels)
    scores, kept = encoder.keep_instances(class_probs)
    heatmaps = encoder.instance_heatmaps(maps, class_probs, kept)
    return Gathered(features, pool(features, maps), scores, kept, pool(features, heatmaps), None)

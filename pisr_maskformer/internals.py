"""What PISR works with on its way from the first prediction to the second, and what of it can be looked at.

Shapes: as in module.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pisr_maskformer.attention import AffineFeatures, MapFeatures, PanopticRelationalAttention
from pisr_maskformer.encodings import Gathered, PanopticEncoder, PanopticEncodings, masked, semantic_heatmaps
from pisr_maskformer.pixel_sums import at_least_float32


class Related(NamedTuple):
    """From encodings to panoptic features; the first three are None for the constant relation."""

    encoded: PanopticEncodings | None
    reweighted: Tensor | None
    weights: Tensor | None
    panoptic: AffineFeatures | MapFeatures


class FirstPrediction(NamedTuple):
    """What PISR reads, and what a pass over the pixels made of it."""

    features: Tensor  # in the host's type: whoever reads them widens what it needs
    region_maps: Tensor  # these and the probabilities in float32 or better
    class_probs: Tensor
    gathered: Gathered
    valid_pixels: Tensor | None


@dataclass
class PISRInternals:
    """What a forward computed on its way, for pictures. None where the variant has no such thing."""

    encodings: Tensor  # E_pan, B×E×D: C semantic ones, then N instance slots
    valid: Tensor  # B×E bool: false for slots without a query
    kept: Tensor  # B×N int64: the query in each slot, -1 where none
    reweighted: Tensor | None  # E~, B×E×D, less its mean with CENTRE_ENCODINGS
    weights: Tensor | None  # w of the explicit reweighting, B×E×1 or B×E×D
    semantic_heatmaps: Tensor  # S_c, B×C×H×W
    instance_heatmaps: Tensor  # B×N×H×W, zero for slots without a query
    spatial_features: Tensor | None  # F_sp, B×E×H×W
    panoptic_features: Tensor  # F_pan, B×D×H×W, before the norm; of matmul/matmul up to one factor per image


def internals_of(
    first: FirstPrediction,
    related: Related,
    encoder: PanopticEncoder,
    attention: PanopticRelationalAttention | None,
) -> PISRInternals:
    """The pictures of a forward; `attention` is None for the constant relation."""
    encoded = related.encoded or encoder(*first)
    filled = (encoded.kept >= 0)[..., None, None]
    features, maps = at_least_float32(first.features), masked(first.region_maps, first.valid_pixels)
    instances = encoder.instance_heatmaps(maps, first.class_probs, encoded.kept.clamp(min=0))
    spatial = None
    if attention is not None and related.reweighted is not None:
        spatial = attention.maps(features, related.reweighted)[0]
    return PISRInternals(
        encodings=encoded.encodings,
        valid=encoded.valid,
        kept=encoded.kept,
        reweighted=related.reweighted,
        weights=related.weights,
        semantic_heatmaps=semantic_heatmaps(maps, first.class_probs),
        instance_heatmaps=instances * filled,
        spatial_features=spatial,
        panoptic_features=related.panoptic.on_pixels(features),
    )

"""PISR for any host that gives feature maps, region maps and class probabilities.

Encode (encodings.py), reweight (reweighting.py), relate (attention.py), feed back (feedback.py).

Shapes:
    B batch · Q queries (regions) · C classes, "no object" left out · N instance slots · E = C + N encodings
    D feature channels · D_h query channels · H×W feature resolution
    F features B×D×H×W · s region_maps B×Q×H×W and P class_probs B×Q×C, probabilities · q queries B×Q×D_h

A use without MaskFormer or any configuration:

    pisr = PISR(channels=256, query_channels=None, num_classes=19, thing_ids=range(11, 19),
                settings=PISRSettings(feedback="pixel"))
    new_features = pisr(features, masks.sigmoid(), logits.softmax(-1)[..., :-1]).features
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pisr_maskformer.attention import (
    AffineFeatures,
    ConstantRelation,
    MapFeatures,
    PanopticRelationalAttention,
)
from pisr_maskformer.config import PISRSettings, SettingError
from pisr_maskformer.encodings import PanopticEncoder, PanopticEncodings, Pooled, pool, semantic_heatmaps
from pisr_maskformer.feedback import FEEDBACK, PixelFeedback, QueryFeedback
from pisr_maskformer.reweighting import REWEIGHTING
from pisr_maskformer.statistics import relative_size, weight_statistics
from pisr_maskformer.variants import RELATION, check_names


@dataclass
class PISRInternals:
    """What a forward computed on its way, for pictures. None where the variant has no such thing."""

    encodings: Tensor  # E_pan, B×E×D: C semantic ones, then N instance slots
    valid: Tensor  # B×E bool: false for slots without a query
    kept: Tensor  # B×N int64: the query in each slot, -1 where none
    reweighted: Tensor | None  # E~, B×E×D
    weights: Tensor | None  # w of the explicit reweighting, B×E×1 or B×E×D
    semantic_heatmaps: Tensor  # S_c, B×C×H×W
    instance_heatmaps: Tensor  # B×N×H×W, zero for slots without a query
    spatial_features: Tensor | None  # F_sp, B×E×H×W
    panoptic_features: Tensor  # F_pan, B×D×H×W, before the norm; of matmul/matmul up to one factor per image


class PISROutput(NamedTuple):
    """What the second prediction is made of."""

    features: Tensor  # F' B×D×H×W, in the type of `features`
    queries: Tensor | None  # q' B×Q×D_h, in the type of `queries`; None when none were given
    internals: PISRInternals | None


class Related(NamedTuple):
    """From encodings to panoptic features; the first three are None for the constant relation."""

    encoded: PanopticEncodings | None
    reweighted: Tensor | None
    weights: Tensor | None
    panoptic: AffineFeatures | MapFeatures


class FirstPrediction(NamedTuple):
    """What PISR reads, in float32 or better, and the sums that encodings and query feedback share."""

    features: Tensor
    region_maps: Tensor  # zero on padding
    class_probs: Tensor
    pooled: Pooled


class PISR(nn.Module):
    """Panoptic, Instance, and Semantic Relations.

    Args:
        channels: D. query_channels: D_h; None for a host without queries, with feedback "pixel".
        num_classes: C. thing_ids: the classes that are things, 0..C-1.
        settings: the variant; see config.py.
        direct: evaluate everything by definition; slower, the same up to rounding.

    Only parameters that the variant uses are built, so that each gets a gradient in every step.
    Raises SettingError, listing the valid names, for an unknown variant, used or not.

    After a forward in training mode `last_statistics` holds detached scalars on the device, none of them
    waited for: the size of both residual branches relative to F (without padding) and q, mean and range
    of the weights w, and the standard deviation of F_pan within the groups of the norm that follows it
    (`PixelFeedback.deviation`).
    """

    def __init__(
        self,
        *,
        channels: int,
        query_channels: int | None,
        num_classes: int,
        thing_ids: Iterable[int],
        settings: PISRSettings | None = None,
        direct: bool = False,
    ) -> None:
        super().__init__()
        settings = settings or PISRSettings()
        check_names(settings)
        self.last_statistics: dict[str, Tensor] = {}
        self.encoder = PanopticEncoder(
            num_classes=num_classes,
            thing_ids=thing_ids,
            num_instances=settings.num_instances,
            suppression=settings.suppression,
            slot_order=settings.slot_order,
            semantic_presence=settings.semantic_presence,
            direct=direct,
        )
        self.uses_encodings = RELATION[settings.relation]
        if self.uses_encodings:
            self.reweighting = REWEIGHTING[settings.reweighting](
                channels=channels,
                hidden_layers=settings.reweighting_layers,
                weight_per_channel=settings.weight_per_channel,
                num_classes=num_classes,
                num_instances=settings.num_instances,
            )
            self.attention = PanopticRelationalAttention(
                channels=channels,
                num_encodings=num_classes + settings.num_instances,
                f1=settings.f1,
                f2=settings.f2,
                direct=direct,
            )
        else:
            self.constant = ConstantRelation(channels=channels)
        paths = FEEDBACK[settings.feedback]
        self.pixel_feedback = PixelFeedback(channels=channels) if "pixel" in paths else None
        self.query_feedback = None
        if "query" in paths:
            if query_channels is None:
                raise SettingError(
                    f"MODEL.PISR.FEEDBACK is {settings.feedback!r}; a host without queries needs 'pixel'"
                )
            self.query_feedback = QueryFeedback(channels=channels, query_channels=query_channels)

    def forward(
        self,
        features: Tensor,
        region_maps: Tensor,
        class_probs: Tensor,
        queries: Tensor | None = None,
        valid_pixels: Tensor | None = None,
        return_internals: bool = False,
    ) -> PISROutput:
        """F, s, P and q of the first prediction -> F' and q' for the second.

        `valid_pixels`, B×1×H×W bool, excludes padding from every mean; None when there is none. `queries`
        may be None with pixel feedback alone. Under autocast all but the layer O_f runs in float32.
        """
        off = torch.autocast(features.device.type, enabled=False)
        with off:
            first = first_prediction(features, region_maps, class_probs, valid_pixels)
            related = self.relate(first)
            internals = self._internals(first, related) if return_internals else None

        statistics = self._weight_statistics(related) if self.training else {}
        if self.query_feedback is not None:
            if queries is None:
                raise ValueError("query feedback needs the queries of the first prediction")
            with off:
                residual = self.query_feedback(related.panoptic.under_maps(first.pooled, first.region_maps))
            if self.training:
                statistics["query_residual"] = relative_size(residual, queries)
            queries = queries + residual.to(queries.dtype)
        if self.pixel_feedback is not None:
            with off:
                panoptic = related.panoptic.on_pixels(first.features)
            residual = self.pixel_feedback(panoptic, valid_pixels)
            if self.training:
                statistics["pixel_residual"] = relative_size(residual, features, valid_pixels)
                statistics["group_deviation"] = self.pixel_feedback.deviation(panoptic, valid_pixels)
            features = features + residual.to(features.dtype)
        if self.training:
            self.last_statistics = statistics
        return PISROutput(features, queries, internals)

    def relate(self, first: FirstPrediction) -> Related:
        """Encode, reweight, relate."""
        if not self.uses_encodings:
            return Related(None, None, None, self.constant(first.features))
        encoded = self.encoder(*first)
        reweighted, weights = self.reweighting(encoded.encodings)
        # Biases would revive the empty slots; zero from here to g_s and g_p.
        reweighted = reweighted.masked_fill(~encoded.valid[..., None], 0)
        return Related(encoded, reweighted, weights, self.attention(first.features, reweighted))

    def _weight_statistics(self, related: Related) -> dict[str, Tensor]:
        if related.weights is None or related.encoded is None:
            return {}
        return weight_statistics(related.weights, related.encoded.valid)

    def _internals(self, first: FirstPrediction, related: Related) -> PISRInternals:
        encoded = related.encoded or self.encoder(*first)
        filled = (encoded.kept >= 0)[..., None, None]
        instances = self.encoder.instance_heatmaps(
            first.region_maps, first.class_probs, encoded.kept.clamp(min=0)
        )
        spatial = None
        if related.reweighted is not None:
            spatial = self.attention.maps(first.features, related.reweighted)[0]
        return PISRInternals(
            encodings=encoded.encodings,
            valid=encoded.valid,
            kept=encoded.kept,
            reweighted=related.reweighted,
            weights=related.weights,
            semantic_heatmaps=semantic_heatmaps(first.region_maps, first.class_probs),
            instance_heatmaps=instances * filled,
            spatial_features=spatial,
            panoptic_features=related.panoptic.on_pixels(first.features),
        )


def first_prediction(
    features: Tensor, region_maps: Tensor, class_probs: Tensor, valid_pixels: Tensor | None
) -> FirstPrediction:
    """In float32 or better, with region maps that are zero on padding, and the pooled sums G and a."""
    features, maps, class_probs = (at_least_float32(given) for given in (features, region_maps, class_probs))
    if valid_pixels is not None:
        maps = maps * valid_pixels
    return FirstPrediction(features, maps, class_probs, pool(features, maps))


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

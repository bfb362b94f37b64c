"""PISR for any host that gives feature maps, region maps and class probabilities.

Encode (encodings.py), reweight (reweighting.py), relate (attention.py), feed back (feedback.py).

Shapes:
    B batch · Q queries (regions) · C classes, "no object" left out · N instance slots · E = C + N encodings
    D feature channels · D_h query channels · H×W feature resolution
    F features B×D×H×W · s region_maps B×Q×H×W and P class_probs B×Q×C, probabilities · q queries B×Q×D_h

A use without MaskFormer or any configuration:

    pisr = PISR(channels=256, query_channels=None, num_classes=19, thing_ids=range(11, 19),
                settings=PISRSettings(feedback="pixel"))
    result = pisr(features, masks.sigmoid(), logits.softmax(-1)[..., :-1])
    new_features = result.features.on_pixels()
"""

from collections.abc import Iterable
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
from pisr_maskformer.embeddings import FoldedEmbeddings, MapEmbeddings
from pisr_maskformer.encodings import PanopticEncoder
from pisr_maskformer.feedback import FEEDBACK, PixelFeedback, QueryFeedback
from pisr_maskformer.internals import FirstPrediction, PISRInternals, Related, internals_of
from pisr_maskformer.pixel_sums import at_least_float32
from pisr_maskformer.reweighting import REWEIGHTING, less_mean
from pisr_maskformer.statistics import (
    group_deviation,
    relative_size,
    relative_size_by_moments,
    weight_statistics,
)
from pisr_maskformer.variants import RELATION, check_names


class PISROutput(NamedTuple):
    """What the second prediction is made of."""

    features: FoldedEmbeddings | MapEmbeddings  # F'; on_pixels() and masks(e) give the map and mask logits
    queries: Tensor | None  # q' B×Q×D_h, in the type of `queries`; None when none were given
    internals: PISRInternals | None  # None when not asked for, and without feedback


class PISR(nn.Module):
    """Panoptic, Instance, and Semantic Relations.

    Args:
        channels: D. query_channels: D_h; None for a host without queries, with feedback "pixel".
        num_classes: C. thing_ids: the classes that are things, 0..C-1.
        settings: the variant; see config.py.
        direct: evaluate everything by definition; slower, the same up to rounding.

    Only parameters that the variant uses are built, so that each gets a gradient in every step.
    Raises SettingError, listing the valid names, for an unknown variant, used or not, and for a single
    encoding that is to be centred.

    After a forward in training mode `last_statistics` holds detached scalars on the device, none of them
    waited for: the size of both residual branches relative to F (without padding) and q, mean and range
    of the weights w, and the standard deviation of F_pan within the groups of the norm that follows it
    (`group_deviation`).
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
            instance_presence=settings.instance_presence,
            direct=direct,
        )
        paths = FEEDBACK[settings.feedback]
        self.feeds_back = bool(paths)
        self.uses_encodings = self.feeds_back and RELATION[settings.relation]
        if self.uses_encodings:
            self.reweighting = REWEIGHTING[settings.reweighting](
                channels=channels,
                hidden_layers=settings.reweighting_layers,
                weight_per_channel=settings.weight_per_channel,
                num_classes=num_classes,
                num_instances=settings.num_instances,
            )
            self.centre_encodings = settings.centre_encodings
            if self.centre_encodings and num_classes + settings.num_instances * self.encoder.has_things < 2:
                raise SettingError(
                    "MODEL.PISR.CENTRE_ENCODINGS is True; a single encoding (one class, no instance slots)"
                    " less its mean is zero: use False"
                )
            self.attention = PanopticRelationalAttention(
                channels=channels,
                num_encodings=num_classes + settings.num_instances,
                f1=settings.f1,
                f2=settings.f2,
                direct=direct,
            )
        elif self.feeds_back:
            self.constant = ConstantRelation(channels=channels, rank=settings.constant_rank)
        self.pixel_feedback = PixelFeedback(channels=channels) if "pixel" in paths else None
        self.query_feedback = None
        if "query" in paths:
            if query_channels is None:
                raise SettingError(
                    f"MODEL.PISR.FEEDBACK is {settings.feedback!r}; a host without queries needs 'pixel'"
                )
            self.query_feedback = QueryFeedback(channels=channels, query_channels=query_channels)
        # The pixel path needs no map where F_pan is affine in F; by definition it has one.
        affine = not self.uses_encodings or self.attention.is_affine
        self.folds = affine and not direct and self.pixel_feedback is not None

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
        may be None with pixel feedback alone. Under autocast all but the layer O_f of a map, and products
        of masks, runs in float32.
        """
        if not self.feeds_back:
            return PISROutput(MapEmbeddings(features), queries, None)
        off = torch.autocast(features.device.type, enabled=False)
        with off:
            first = self.first_prediction(features, region_maps, class_probs, valid_pixels, return_internals)
            related = self.relate(first)
            internals = self._internals(first, related) if return_internals else None

        statistics = self._weight_statistics(related) if self.training else {}
        if self.query_feedback is not None:
            if queries is None:
                raise ValueError("query feedback needs the queries of the first prediction")
            with off:
                means = related.panoptic.under_maps(first.gathered.pooled, first.region_maps, valid_pixels)
                residual = self.query_feedback(means)
            if self.training:
                statistics["query_residual"] = relative_size(residual, queries)
            queries = queries + residual.to(queries.dtype)
        embeddings, of_pixels = self._feed_pixels(related.panoptic, first)
        if self.training:
            self.last_statistics = statistics | of_pixels
        return PISROutput(embeddings, queries, internals)

    def first_prediction(
        self,
        features: Tensor,
        region_maps: Tensor,
        class_probs: Tensor,
        valid_pixels: Tensor | None = None,
        instances: bool = False,
    ) -> FirstPrediction:
        """Probabilities in float32 or better, and the sums over pixels; `instances` even where unused."""
        maps, class_probs = at_least_float32(region_maps), at_least_float32(class_probs)
        gathered = self.encoder.gather(
            features,
            maps,
            class_probs,
            valid_pixels,
            instances=instances or self.uses_encodings,
            moments=self.folds,
        )
        return FirstPrediction(gathered.features, maps, class_probs, gathered, valid_pixels)

    def relate(self, first: FirstPrediction) -> Related:
        """Encode, reweight, relate."""
        if not self.uses_encodings:
            return Related(None, None, None, self.constant(first.features))
        encoded = self.encoder(*first)
        reweighted, weights = self.reweighting(encoded.encodings)
        # Biases would revive the empty slots; zero from here to g_s and g_p.
        reweighted = reweighted.masked_fill(~encoded.valid[..., None], 0)
        if self.centre_encodings:
            reweighted = less_mean(reweighted, encoded.valid)
        return Related(encoded, reweighted, weights, self.attention(first.features, reweighted))

    def _feed_pixels(
        self, panoptic: AffineFeatures | MapFeatures, first: FirstPrediction
    ) -> tuple[FoldedEmbeddings | MapEmbeddings, dict[str, Tensor]]:
        """F', and what training wants to know of it."""
        features, feedback, valid_pixels = first.features, self.pixel_feedback, first.valid_pixels
        if feedback is None:
            return MapEmbeddings(features), {}
        statistics = {}
        off = torch.autocast(features.device.type, enabled=False)
        moments = first.gathered.moments
        if moments is not None and isinstance(panoptic, AffineFeatures):
            with off:
                folded, variance = feedback.folded(panoptic, moments)
                if self.training:
                    statistics["pixel_residual"] = relative_size_by_moments(folded, moments)
                    statistics["group_deviation"] = group_deviation(variance)
            return FoldedEmbeddings(features, folded), statistics
        with off:
            values = panoptic.on_pixels(features)
        residual = feedback(values, valid_pixels)
        if self.training:
            statistics["pixel_residual"] = relative_size(residual, features, valid_pixels)
            statistics["group_deviation"] = group_deviation(feedback.variance(values, valid_pixels))
        return MapEmbeddings(features + residual.to(features.dtype)), statistics

    def _weight_statistics(self, related: Related) -> dict[str, Tensor]:
        if related.weights is None or related.encoded is None:
            return {}
        return weight_statistics(related.weights, related.encoded.valid)

    def _internals(self, first: FirstPrediction, related: Related) -> PISRInternals:
        return internals_of(first, related, self.encoder, self.attention if self.uses_encodings else None)

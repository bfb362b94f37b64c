"""Panoptic encodings E_pan (Sections 3.1 and 3.2): one vector of F per class and one per instance.

Shapes:
    B batch · Q queries (regions of any host) · C classes, "no object" left out · N instance slots
    E = C + N encodings · D feature channels · H×W feature resolution
    F features B×D×H×W · s region_maps B×Q×H×W and P class_probs B×Q×C, probabilities
    G sums B×Q×D, over pixels, of s_q F · a areas B×Q, over pixels, of s_q

Pixels that do not count (padding) are those where `valid_pixels`, B×1×H×W bool, is false; None: all count.
Everything here is meant to run in float32 or better: the sums go over tens of thousands of pixels.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pisr_maskformer.config import choose
from pisr_maskformer.moments import FeatureMoments
from pisr_maskformer.pixel_sums import at_least_float32, pixel_sums

# Smallest weight, in pixels, that a mean is divided by: an all-zero map gives a zero mean, never NaN. Far
# below what a confident softmax leaves an absent class (e^-20 of 25,600 pixels is 5e-5), so that no real
# mean is shortened.
MIN_AREA = 1e-8


class Pooled(NamedTuple):
    """G = sum of s F, B×Q×D, and a = sum of s, B×Q, over pixels. Shared by encodings and query feedback."""

    sums: Tensor
    areas: Tensor

    def means(self) -> Tensor:
        """The s-weighted mean of the features for every map, B×Q×D; zero for an all-zero map."""
        return self.sums / self.areas.clamp(min=MIN_AREA)[..., None]


class Gathered(NamedTuple):
    """What PISR wants to know of the pixels; found in one pass over them."""

    features: Tensor  # F itself, to go on with: see `pixel_sums`
    pooled: Pooled  # of all queries
    scores: Tensor  # B×Q, instance score of every query
    kept: Tensor  # B×K int64, the K = min(N, Q) queries with the best ones in slot order
    instances: Pooled | None  # of the kept ones' heatmaps, B×K; None if not asked for
    moments: FeatureMoments | None  # of F; None if not asked for


class PanopticEncodings(NamedTuple):
    """E_pan with what is known about each of its rows."""

    encodings: Tensor  # B×E×D, the C semantic ones first; zero where not valid
    valid: Tensor  # B×E bool: false for instance slots beyond the available queries
    kept: Tensor  # B×N int64: the query in each instance slot, -1 where none


def pool(features: Tensor, maps: Tensor) -> Pooled:
    """Weighted sums of `features` (B×D×H×W) under `maps` (B×K×H×W), and the weights' own sums.

    By definition; `pixel_sums` is the same with less kept for the backward pass.
    """
    weights = maps.flatten(2)
    return Pooled(torch.bmm(weights, features.flatten(2).transpose(1, 2)), weights.sum(-1))


def masked(maps: Tensor, valid_pixels: Tensor | None) -> Tensor:
    """`maps`, B×K×H×W, zero where a pixel is not valid."""
    return maps if valid_pixels is None else maps * valid_pixels


def semantic_heatmaps(region_maps: Tensor, class_probs: Tensor) -> Tensor:
    """S_c = sum_q P_qc s_q (Section 3.1), B×C×H×W."""
    return torch.einsum("bqc,bqhw->bchw", class_probs, region_maps)


def semantic_encodings(features: Tensor, region_maps: Tensor, class_probs: Tensor) -> Tensor:
    """E_sem[c], the S_c-weighted mean of F, B×C×D, as the paper defines it."""
    return pool(features, semantic_heatmaps(region_maps, class_probs)).means()


def pooled_semantic_encodings(pooled: Pooled, class_probs: Tensor) -> Tensor:
    """The same E_sem without building S, which is linear in s: (P^T G) / (P^T a)."""
    mix = class_probs.transpose(1, 2)
    return Pooled(mix @ pooled.sums, (mix @ pooled.areas[..., None]).squeeze(-1)).means()


def soft_suppression(thing: Tensor, stuff: Tensor) -> Tensor:
    """T / (T + U); zero where no query claims the pixel."""
    return thing / (thing + stuff).clamp(min=MIN_AREA)


def binary_suppression(thing: Tensor, stuff: Tensor) -> Tensor:
    """1 where T > U, else 0: the paper's thing mask. No gradient."""
    return (thing > stuff).to(thing.dtype)


# Name -> (T, U) -> factor of every instance heatmap, all B×1×H×W. None: no factor.
SUPPRESSION: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "soft": soft_suppression,
    "binary": binary_suppression,
}

# Name -> kept queries B×K, highest score first -> the same queries in slot order.
SLOT_ORDER: dict[str, Callable[[Tensor], Tensor]] = {
    "query": lambda kept: kept.sort(dim=1).values,
    "score": lambda kept: kept,
}


class PanopticEncoder(nn.Module):
    """Region maps and class probabilities -> panoptic encodings. No parameters.

    A forward hook that returns other `PanopticEncodings` replaces them for the rest of PISR: giving an
    image the encodings of another one shows how much of the result depends on them.

    Args:
        num_classes: C. thing_ids: the classes that are things, 0..C-1; with none, no instance slot is valid.
        num_instances: N, may be 0. suppression, slot_order: names in SUPPRESSION and SLOT_ORDER.
        semantic_presence: multiply E_sem[c] by max_q P_qc. instance_presence: E_ins[n] by its score.
        direct: evaluate by definition, with S built, instead of from the pooled sums.
    """

    is_thing: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        thing_ids: Iterable[int],
        num_instances: int,
        suppression: str,
        slot_order: str,
        semantic_presence: bool,
        instance_presence: bool,
        direct: bool = False,
    ) -> None:
        super().__init__()
        things = sorted(set(thing_ids))
        if any(not 0 <= thing < num_classes for thing in things):
            raise ValueError(f"thing ids must lie in 0..{num_classes - 1}, got {things}")
        is_thing = torch.zeros(num_classes, dtype=torch.bool)
        is_thing[things] = True
        self.register_buffer("is_thing", is_thing, persistent=False)  # known from the data set, not learned
        self.has_things = bool(things)
        self.num_instances = num_instances
        self.suppress = choose(SUPPRESSION, suppression, "suppression")
        self.order = choose(SLOT_ORDER, slot_order, "slot_order")
        self.semantic_presence = semantic_presence
        self.instance_presence = instance_presence
        self.direct = direct

    def gather(
        self,
        features: Tensor,
        region_maps: Tensor,
        class_probs: Tensor,
        valid_pixels: Tensor | None = None,
        *,
        instances: bool = True,
        moments: bool = False,
    ) -> Gathered:
        """Sums of `features` under the maps and, if asked for, under heatmaps; no moments where direct."""
        scores, kept = self.keep_instances(class_probs)
        if self.direct:
            wide, maps = at_least_float32(features), masked(region_maps, valid_pixels)
            heatmaps = self.instance_heatmaps(maps, class_probs, kept)
            return Gathered(features, pool(wide, maps), scores, kept, pool(wide, heatmaps), None)
        factor = self._suppression(region_maps, class_probs) if instances else None
        chosen = None if factor is None else kept
        features, sums, areas, found = pixel_sums(
            features, region_maps, valid_pixels, chosen, factor, moments
        )
        queries = region_maps.shape[1]
        pooled, under_heatmaps = (
            Pooled(sums[:, rows], areas[:, rows]) for rows in (slice(queries), slice(queries, None))
        )
        if factor is None:  # a heatmap is the query's map: its sums are there
            rows = kept[..., None].expand(-1, -1, features.shape[1])
            under_heatmaps = Pooled(pooled.sums.gather(1, rows), pooled.areas.gather(1, kept))
        return Gathered(features, pooled, scores, kept, under_heatmaps if instances else None, found)

    def forward(
        self,
        features: Tensor,
        region_maps: Tensor,
        class_probs: Tensor,
        gathered: Gathered,
        valid_pixels: Tensor | None = None,
    ) -> PanopticEncodings:
        """E_pan of `features` B×D×H×W; `gathered` from the same arguments, with instances."""
        if self.direct:
            maps = masked(region_maps, valid_pixels)
            semantic = semantic_encodings(at_least_float32(features), maps, class_probs)
        else:
            semantic = pooled_semantic_encodings(gathered.pooled, class_probs)
        if self.semantic_presence:
            semantic = semantic * class_probs.amax(dim=1)[..., None]
        assert gathered.instances is not None
        kept, instances = gathered.kept, gathered.instances.means()
        if self.instance_presence:
            instances = instances * gathered.scores.gather(1, kept)[..., None]

        empty_slots = self.num_instances - kept.shape[1]
        encodings = nn.functional.pad(torch.cat([semantic, instances], dim=1), (0, 0, 0, empty_slots))
        kept = nn.functional.pad(kept, (0, empty_slots), value=-1)
        valid = torch.cat([torch.ones_like(semantic[..., 0], dtype=torch.bool), kept >= 0], dim=1)
        return PanopticEncodings(encodings, valid, kept)

    def keep_instances(self, class_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Instance score of every query, B×Q, and the best K = min(N, Q) queries in slot order, B×K.

        K is 0 where no class is a thing.
        """
        scores = (class_probs * self.is_thing).amax(dim=-1)  # P >= 0, so this is the maximum over things
        count = min(self.num_instances, scores.shape[1]) if self.has_things else 0
        return scores, self.order(scores.topk(count, dim=1).indices)

    def instance_heatmaps(self, region_maps: Tensor, class_probs: Tensor, kept: Tensor) -> Tensor:
        """s of the kept queries (B×K) times the background suppression (Section 3.2), B×K×H×W."""
        batch, count = kept.shape
        heatmaps = region_maps.gather(1, kept[..., None, None].expand(batch, count, *region_maps.shape[2:]))
        factor = self._suppression(region_maps, class_probs)
        return heatmaps if factor is None else heatmaps * factor

    def _suppression(self, region_maps: Tensor, class_probs: Tensor) -> Tensor | None:
        """The background suppression, B×1×H×W; None where there is none."""
        if self.suppress is None:
            return None
        kind_of_class = torch.stack([self.is_thing, ~self.is_thing], dim=1).to(class_probs.dtype)  # C×2
        kinds = class_probs @ kind_of_class  # B×Q×2: probability of a thing, of stuff
        thing, stuff = semantic_heatmaps(region_maps, kinds).split(1, dim=1)
        return self.suppress(thing, stuff)

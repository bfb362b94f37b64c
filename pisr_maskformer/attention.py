"""Panoptic relational attention (Section 3.4, Table B.2): encodings and features -> panoptic features.

Shapes: B batch · E encodings · D channels · H×W feature resolution · Q region maps
    F features B×D×H×W · E~ encodings B×E×D
    F_sp  = f1(g_s(E~), h(F))       B×E×H×W   relation of every encoding to every pixel
    F_pan = f2(g_p(E~^T), h'(F_sp)) B×D×H×W

With both relations the matrix product, F_pan is affine in F: one D×D matrix M and one vector b per image,
so that no E×H×W map is ever built (`affine`). The direct evaluation (`maps`) is the definition and serves
the other relations. Everything here is meant to run in float32 or better. F_pan too: where features are
small, what differs from pixel to pixel is a fiftieth of F_pan at initialisation, and half precision would
round a good part of it away.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pisr_maskformer.config import choose
from pisr_maskformer.encodings import MIN_AREA, Pooled, masked, pool
from pisr_maskformer.pixel_sums import at_least_float32

MIN_SIZE = 1e-30  # keeps the division by a zero M finite


class AffineFeatures(NamedTuple):
    """F_pan = M F + b, with M and b one per image."""

    matrix: Tensor  # M, B×D×D
    offset: Tensor  # b, B×D

    def on_pixels(self, features: Tensor) -> Tensor:
        """F_pan as a map, B×D×H×W: one dynamic 1×1 convolution."""
        pixels = at_least_float32(features).flatten(2)
        return torch.baddbmm(self.offset[..., None], self.matrix, pixels).view_as(features)

    def under_maps(self, pooled: Pooled, region_maps: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
        """p_q, the s_q-weighted mean of F_pan, B×Q×D, without a pass over pixels; 0 for an all-zero map."""
        filled = pooled.areas / pooled.areas.clamp(min=MIN_AREA)  # 1, but 0 for an all-zero map
        return pooled.means() @ self.matrix.transpose(1, 2) + filled[..., None] * self.offset[:, None]

    def scaled(self) -> "AffineFeatures":
        """Both divided by one positive number per image, the norm of [M b].

        F_pan grows with the cube of F, far beyond half precision; what follows is normalised and does not
        see the division. By Cauchy-Schwarz |F_pan| <= sqrt(|F|^2 + 1) at every pixel now. Without gradient:
        it would only cancel in the norms.
        """
        size = self.size()
        return AffineFeatures(self.matrix / size[:, None, None], self.offset / size[:, None])

    def size(self) -> Tensor:
        """The Frobenius norm of [M b] of every image, B, positive, without gradient."""
        both = torch.cat([self.matrix, self.offset[..., None]], dim=-1).detach()
        return both.flatten(1).norm(dim=1).clamp(min=MIN_SIZE)


class MapFeatures(NamedTuple):
    """F_pan as the map itself."""

    panoptic: Tensor  # B×D×H×W

    def on_pixels(self, features: Tensor) -> Tensor:
        """F_pan, B×D×H×W."""
        return self.panoptic

    def under_maps(self, pooled: Pooled, region_maps: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
        """p_q, the s_q-weighted mean of F_pan over valid pixels, B×Q×D; zero for an all-zero map."""
        return pool(self.panoptic, masked(region_maps, valid_pixels)).means()


def matmul_relation(rows: Tensor, pixels: Tensor) -> Tensor:
    """Scalar product, divided by the root of the number of channels (choice)."""
    return torch.bmm(rows, pixels.flatten(2)).unflatten(2, pixels.shape[2:]) / math.sqrt(rows.shape[2])


def cosine_relation(rows: Tensor, pixels: Tensor) -> Tensor:
    """Cosine of the angle, zero where either vector is zero."""
    unit_rows = nn.functional.normalize(rows, dim=2, eps=1e-6)
    unit_pixels = nn.functional.normalize(pixels.flatten(2), dim=1, eps=1e-6)
    return torch.bmm(unit_rows, unit_pixels).unflatten(2, pixels.shape[2:])


def l2_relation(rows: Tensor, pixels: Tensor) -> Tensor:
    """Euclidean distance (the paper's p-norm distance with p = 2)."""
    return torch.cdist(rows, pixels.flatten(2).transpose(1, 2)).unflatten(2, pixels.shape[2:])


# Name -> f(rows B×R×K, pixels B×K×H×W) -> B×R×H×W, the relation of every row to every pixel's vector.
RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": matmul_relation,
    "cosine": cosine_relation,
    "l2": l2_relation,
}


def weight_and_bias(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """A 1×1 convolution as a matrix, out×in, and a vector."""
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


class PanopticRelationalAttention(nn.Module):
    """F_pan from encodings and features.

    Args:
        channels: D. num_encodings: E. f1, f2: names in RELATIONS.
        direct: evaluate by definition also where the associative form would do.
    """

    def __init__(self, *, channels: int, num_encodings: int, f1: str, f2: str, direct: bool = False) -> None:
        super().__init__()
        self.g_s = nn.Linear(channels, channels)
        self.h = nn.Conv2d(channels, channels, 1)
        self.g_p = nn.Linear(num_encodings, num_encodings)
        self.h_prime = nn.Conv2d(num_encodings, num_encodings, 1)
        self.f1 = choose(RELATIONS, f1, "f1")
        self.f2 = choose(RELATIONS, f2, "f2")
        self.is_affine = f1 == f2 == "matmul"
        self.direct = direct

    def forward(self, features: Tensor, encodings: Tensor) -> AffineFeatures | MapFeatures:
        """F_pan of `features` B×D×H×W and E~ B×E×D (zero where invalid), in the form that costs least."""
        if self.is_affine and not self.direct:
            return self.affine(encodings).scaled()
        return MapFeatures(self.maps(at_least_float32(features), encodings)[1])

    def affine(self, encodings: Tensor) -> AffineFeatures:
        """M and b of matmul/matmul, by associativity:

        M = A W_h' G W_h / sqrt(D E),  b = A (W_h' G b_h / sqrt(D) + b_h') / sqrt(E)
        with G = g_s(E~) (E×D), A = g_p(E~^T) (D×E) and W, b the two convolutions.
        """
        num_encodings, channels = encodings.shape[1:]
        rows, mix = self._projected(encodings)
        weight, bias = weight_and_bias(self.h)
        weight_prime, bias_prime = weight_and_bias(self.h_prime)
        left = mix @ weight_prime / math.sqrt(num_encodings)  # A W_h', D×E
        both = left @ rows / math.sqrt(channels)  # A W_h' G, D×D
        return AffineFeatures(both @ weight, both @ bias + mix @ bias_prime / math.sqrt(num_encodings))

    def maps(self, features: Tensor, encodings: Tensor) -> tuple[Tensor, Tensor]:
        """F_sp B×E×H×W and F_pan B×D×H×W by definition; of matmul/matmul F_pan is scaled as in `forward`."""
        rows, mix = self._projected(encodings)
        spatial = self.f1(rows, self.h(features))
        panoptic = self.f2(mix, self.h_prime(spatial))
        if self.is_affine:
            panoptic = panoptic / self.affine(encodings).size()[:, None, None, None]
        return spatial, panoptic

    def _projected(self, encodings: Tensor) -> tuple[Tensor, Tensor]:
        """g_s(E~), B×E×D, and g_p(E~^T), B×D×E."""
        return self.g_s(encodings), self.g_p(encodings.transpose(1, 2))


class ConstantRelation(nn.Module):
    """F_pan = M F + b with M and b learned, the same for every image: ignores the encodings (control).

    Args:
        channels: D. rank: M is a product of D×rank and rank×D; 0 for any M.
    """

    def __init__(self, *, channels: int, rank: int = 0) -> None:
        super().__init__()
        self.reduction = nn.Linear(channels, rank, bias=False) if rank else None
        self.convolution = nn.Conv2d(rank or channels, channels, 1)
        if rank:  # b as small at the start as that of any M
            _, bias = weight_and_bias(self.convolution)
            nn.init.uniform_(bias, -(channels**-0.5), channels**-0.5)

    def forward(self, features: Tensor) -> AffineFeatures:
        """M and b, repeated for every image of `features` and scaled like those of the attention."""
        weight, bias = weight_and_bias(self.convolution)
        if self.reduction is not None:
            weight = weight @ self.reduction.weight
        batch = features.shape[0]
        return AffineFeatures(weight.expand(batch, -1, -1), bias.expand(batch, -1)).scaled()

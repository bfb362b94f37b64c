"""Feedback of the panoptic features into the second prediction (supplement D.3).

The paper feeds them "into the MLP which produces mask predictions"; both paths here are a **choice**.

Shapes: B batch · D feature channels · D_h query channels · Q queries · H×W feature resolution
    pixel path  F_pan B×D×H×W -> O_f(GroupNorm(F_pan)) B×D×H×W, added to F; of F_pan = M F + b it is A F + c
    query path  p B×Q×D       -> O_q(LayerNorm(p))     B×Q×D_h, added to q

O_f and O_q start at zero: a new PISR model predicts exactly what its baseline does.
"""

import math

import torch
from torch import Tensor, nn

from pisr_maskformer.attention import AffineFeatures, weight_and_bias
from pisr_maskformer.moments import FeatureMoments

# The norms must see the panoptic features whatever their size: PyTorch's default of 1e-5 would swallow
# deviations below 0.003, which is what a new model has. Small enough for them, large enough for float32
# rounding of a constant.
NORM_EPS = 1e-12

# Name -> the paths that are built.
FEEDBACK: dict[str, frozenset[str]] = {
    "pixel": frozenset({"pixel"}),
    "query": frozenset({"query"}),
    "both": frozenset({"pixel", "query"}),
    "none": frozenset(),
}


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def group_moments(grouped: Tensor, valid_pixels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance, B×G×1×1, of B×G×(D/G)×(HW) over valid pixels (B×1×H×W bool; None: all)."""
    if valid_pixels is None:
        variance, mean = torch.var_mean(grouped, dim=(2, 3), correction=0, keepdim=True)
        return mean, variance
    inside = valid_pixels.flatten(2)[:, :, None].to(grouped.dtype)  # B×1×1×HW
    count = (inside.sum(-1, keepdim=True) * grouped.shape[2]).clamp(min=1)
    mean = (grouped * inside).sum((2, 3), keepdim=True) / count
    return mean, ((grouped - mean).square() * inside).sum((2, 3), keepdim=True) / count


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation whose moments leave out padded pixels: padding does not change the result."""

    def forward(self, features: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
        """`features` B×D×H×W; `valid_pixels` B×1×H×W bool, None when all are."""
        if valid_pixels is None:
            return super().forward(features)
        grouped = self.grouped(features)
        mean, variance = group_moments(grouped, valid_pixels)
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).view_as(features)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]

    def grouped(self, features: Tensor) -> Tensor:
        """B×D×H×W -> B×G×(D/G)×(HW)."""
        return features.reshape(features.shape[0], self.num_groups, -1, features.shape[2] * features.shape[3])


class PixelFeedback(nn.Module):
    """O_f(GroupNorm(F_pan)) with 32 groups, or the largest power of two dividing D where 32 does not."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.norm = MaskedGroupNorm(math.gcd(32, channels), channels, eps=NORM_EPS)
        self.project = nn.Conv2d(channels, channels, 1)  # O_f
        zero(self.project)

    def forward(self, panoptic: Tensor, valid_pixels: Tensor | None) -> Tensor:
        """F_pan in float32 or better -> what is added to F. O_f alone runs under the caller's autocast."""
        with torch.autocast(panoptic.device.type, enabled=False):
            normed = self.norm(panoptic, valid_pixels)
        return self.project(normed)

    def folded(self, panoptic: AffineFeatures, moments: FeatureMoments) -> tuple[AffineFeatures, Tensor]:
        """The same of F_pan = M F + b as A F + c, and the variance of F_pan in every group, B×G.

        The norm's mean and variance follow from those of F, so that F_pan is never made:
        A = W_o diag(scale) M and c = W_o (scale (b - mean) + beta) + b_o with scale = gamma / deviation.
        Autocast must be off.
        """
        norm = self.norm
        means, variances = (
            values.unflatten(1, (norm.num_groups, -1)) for values in moments.affine(*panoptic)
        )  # B×G×(D/G)
        mean = means.mean(2, keepdim=True)
        variance = (variances + (means - mean).square()).mean(2, keepdim=True)
        scale = norm.weight * (variance + norm.eps).rsqrt().expand_as(means).flatten(1)  # B×D
        shift = scale * (panoptic.offset - mean.expand_as(means).flatten(1)) + norm.bias
        weight, bias = weight_and_bias(self.project)
        residual = AffineFeatures(weight @ (scale[..., None] * panoptic.matrix), shift @ weight.T + bias)
        return residual, variance.flatten(1)

    def variance(self, panoptic: Tensor, valid_pixels: Tensor | None) -> Tensor:
        """The variance of F_pan in every group, B×G, by definition."""
        return group_moments(self.norm.grouped(panoptic), valid_pixels)[1].flatten(1)


class QueryFeedback(nn.Module):
    """O_q(LayerNorm(p)), p_q the s_q-weighted mean of F_pan."""

    def __init__(self, *, channels: int, query_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.project = nn.Linear(channels, query_channels)  # O_q
        zero(self.project)

    def forward(self, means: Tensor) -> Tensor:
        """p B×Q×D in float32 or better -> what is added to q, B×Q×D_h. Autocast must be off."""
        return self.project(self.norm(means))

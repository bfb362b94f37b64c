"""Numbers of a training step that tell whether PISR is at work: scalars on the device, no gradient."""

import torch
from torch import Tensor

from pisr_maskformer.attention import AffineFeatures
from pisr_maskformer.moments import FeatureMoments


@torch.no_grad()
def relative_size(residual: Tensor, base: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """|residual| / |base|, Euclidean norms over the whole batch, computed in float32 or better.

    Both B×D×H×W, without the pixels where `valid_pixels` (B×1×H×W bool) is false; or any shape B×K×… .
    """
    wide = torch.promote_types(base.dtype, torch.float32)

    def size(values: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True, dtype=wide)  # no copy of the map
        return torch.linalg.vector_norm(lengths if valid_pixels is None else lengths * valid_pixels)

    return size(residual) / size(base).clamp(min=torch.finfo(wide).tiny)


@torch.no_grad()
def relative_size_by_moments(residual: AffineFeatures, moments: FeatureMoments) -> Tensor:
    """|A F + c| / |F| over the valid pixels of the whole batch, without a pass over them."""
    mean, variance = moments.affine(*residual)
    size = ((mean.square() + variance).sum(1) * moments.pixels).sum()
    base = (moments.squared_norm() * moments.pixels).sum()
    return (size / base.clamp(min=torch.finfo(base.dtype).tiny)).sqrt()


@torch.no_grad()
def group_deviation(variance: Tensor) -> Tensor:
    """Standard deviation of F_pan per group before the norm, averaged over groups and images; from B×G.

    With both relations "matmul", and with the constant one, F_pan was divided by the norm of [M b] before
    (`AffineFeatures.scaled`): comparable between runs of one relation, not between relations.
    """
    return variance.sqrt().mean()


@torch.no_grad()
def weight_statistics(weights: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Mean and range of the weights w (B×E×1 or B×E×D) over the valid (B×E bool) encodings."""
    weights = weights.detach()
    empty = ~valid[..., None].expand_as(weights)
    return {
        "weight_mean": weights.masked_fill(empty, 0).sum() / (~empty).sum(),
        "weight_min": weights.masked_fill(empty, torch.inf).amin(),
        "weight_max": weights.masked_fill(empty, -torch.inf).amax(),
    }

"""Numbers of a training step that tell whether PISR is at work: scalars on the device, no gradient."""

import torch
from torch import Tensor


@torch.no_grad()
def relative_size(residual: Tensor, base: Tensor) -> Tensor:
    """|residual| / |base|, Euclidean norms over the whole batch, computed in float32 or better."""
    wide = torch.promote_types(base.dtype, torch.float32)
    residual_size, base_size = (torch.linalg.vector_norm(x.detach(), dtype=wide) for x in (residual, base))
    return residual_size / base_size.clamp(min=torch.finfo(wide).tiny)


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

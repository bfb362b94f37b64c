"""Sine position embedding of a feature map (DETR; normalised form).

Shapes: H W height and width of the map · D channels, D/2 for y and D/2 for x.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_position(
    size: tuple[int, int] | torch.Size, channels: int, device: torch.device | None = None
) -> Tensor:
    """Embedding of every position of a map of `size` (height, width): 1×D×H×W, float32.

    Rows and columns count from 1 and are scaled so that the last one is at 2π; each coordinate then passes
    through sines and cosines of geometrically spaced frequencies, sine and cosine interleaved. `channels`
    must be divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"a sine position embedding needs channels divisible by 4, not {channels}")
    height, width = size
    half = channels // 2
    exponent = 2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half
    wavelength = TEMPERATURE**exponent

    def embed(size: int) -> Tensor:  # size×D/2
        steps = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        angles = (steps / (size + EPSILON) * (2 * math.pi))[:, None] / wavelength
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    rows = embed(height)[:, None, :].expand(height, width, half)
    columns = embed(width)[None, :, :].expand(height, width, half)
    return torch.cat((rows, columns), dim=2).permute(2, 0, 1)[None]

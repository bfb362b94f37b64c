"""Bilinear upsampling of masks and its transpose, which brings derivatives back to the small size.

Shapes: n masks · h w small size · H W large size. Both are those of F.interpolate(mode="bilinear",
align_corners=False).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(low: Tensor, out: Tensor) -> Tensor:
    """n×h×w upsampled into `out` n×H×W, which is returned."""
    size = out.shape[-2:]
    torch.ops.aten.upsample_bilinear2d.out(low[:, None], size, False, None, None, out=out[:, None])
    return out


def transposed_upsample(high: Tensor, size: tuple[int, int]) -> Tensor:
    """The transpose of upsampling from h×w = `size`: n×H×W to n×h×w.

    On a CPU the library's own is ten times slower than a strided convolution, which does the same wherever
    the large size is a multiple of the small one.
    """
    factors = [large // small for large, small in zip(high.shape[-2:], size, strict=True)]
    whole = all(large % small == 0 for large, small in zip(high.shape[-2:], size, strict=True))
    if high.device.type == "cpu" and whole:
        return _by_convolution(high, factors[0], factors[1])
    low = [1, len(high), *size]  # masks as channels: a CPU spreads them over its threads
    sizes = [int(side) for side in high.shape[-2:]]
    return torch.ops.aten.upsample_bilinear2d_backward(high[None], sizes, low, False, None, None)[0]


def _by_convolution(high: Tensor, rows: int, columns: int) -> Tensor:
    """For H = `rows`·h and W = `columns`·w: each small pixel gathers the triangle of its weights.

    The outermost small pixels stand for those beyond the edge as well: these are gathered too, and added.
    """
    kernel = _triangle(rows, high)[:, None] * _triangle(columns, high)
    padding = (3 * rows // 2, 3 * columns // 2)
    low = F.conv2d(high[:, None], kernel[None, None], stride=(rows, columns), padding=padding)[:, 0]
    low[:, 1] += low[:, 0]
    low[:, -2] += low[:, -1]
    low[:, :, 1] += low[:, :, 0]
    low[:, :, -2] += low[:, :, -1]
    return low[:, 1:-1, 1:-1]


def _triangle(factor: int, like: Tensor) -> Tensor:
    """Weight of one small pixel in the large pixels around it, where that is not zero."""
    count = 2 * factor - factor % 2
    distance = torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2
    return 1 - distance.abs() / factor

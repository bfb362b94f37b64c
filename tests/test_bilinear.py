"""Upsampling is F.interpolate's, and the way back is its transpose, whatever the two sizes."""

import pytest
import torch
from torch.nn import functional as F

from mask_former.bilinear import transposed_upsample, upsample

SIZES = [
    ((4, 6), (16, 24)),
    ((3, 5), (9, 5)),
    ((2, 3), (10, 6)),
    ((1, 1), (7, 8)),
    ((3, 5), (7, 4)),
    ((8, 8), (3, 3)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways(small: tuple[int, int], large: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn((3, *small), generator=generator, dtype=dtype).requires_grad_()
    high = F.interpolate(low[:, None], size=large, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(upsample(low.detach(), torch.empty(3, *large, dtype=dtype)), high.detach())
    derivative = torch.randn((3, *large), generator=generator, dtype=dtype)
    (high * derivative).sum().backward()
    torch.testing.assert_close(transposed_upsample(derivative, small), low.grad)
